// Command embedded serves an empty MySQL-compatible database named test from
// memory, for a first look on a machine that has Go and nothing else. It ends
// when its standard input does, so that it never outlives who started it. It
// is a module of its own, because its server is large.
package main

import (
	"flag"
	"io"
	"log"
	"os"

	sqle "github.com/dolthub/go-mysql-server"
	"github.com/dolthub/go-mysql-server/memory"
	"github.com/dolthub/go-mysql-server/server"
	"github.com/dolthub/go-mysql-server/sql"
)

func main() {
	log.SetFlags(0)
	addr := flag.String("addr", "127.0.0.1:3306", "where to listen")
	flag.Parse()

	db := memory.NewDatabase("test")
	db.EnablePrimaryKeyIndexes()
	provider := memory.NewDBProvider(db)
	engine := sqle.NewDefault(provider)

	srv, err := server.NewServer(
		server.Config{Protocol: "tcp", Address: *addr},
		engine, sql.NewContext, memory.NewSessionBuilder(provider), nil,
	)
	if err != nil {
		log.Fatalf("embedded: %v", err)
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if err := srv.Start(); err != nil {
		log.Fatalf("embedded: %v", err)
	}
}
