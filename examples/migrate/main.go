// Command migrate is golang-migrate on livepool: it holds one connection of a pool of its own
// from the first migration to the last, and its lock on that.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/migrate
//
// It leaves the tables example_accounts, example_currencies and schema_migrations.
package main

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/database/mysql"
	"github.com/golang-migrate/migrate/v4/source/iofs"

	"github.com/livepool/livepool"
)

//go:embed migrations
var migrations embed.FS

func main() {
	if err := run(context.Background(), os.Getenv("DSN")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dsn string) error {
	cfg, err := livepool.ParseDSN(dsn)
	if err != nil {
		return err
	}
	cfg.MySQL.MultiStatements = true // a file is sent as it is; not for the pool of the program itself
	pool, err := livepool.OpenConfig(cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := up(ctx, pool, migrations); err != nil {
		return err
	}
	fmt.Println("the schema is up to date")
	return nil
}

// up applies what is missing. It begins again if the connection is lost between two
// migrations. That is safe, because golang-migrate marks the version as dirty before it sends
// a migration: of one that may have run in part the next try says so, and runs nothing.
func up(ctx context.Context, pool *livepool.Pool, files fs.FS) error {
	return pool.Retry(ctx, func(ctx context.Context) error {
		conn, err := pool.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close() // on which livepool closes the connection, and the server frees the lock
		return showCause(upOn(ctx, conn, files))
	}, livepool.Name("migrations"))
}

func upOn(ctx context.Context, conn *sql.Conn, files fs.FS) error {
	source, err := iofs.New(files, "migrations")
	if err != nil {
		return err
	}
	driver, err := mysql.WithConnection(ctx, conn, &mysql.Config{})
	if err != nil {
		return err
	}
	m, err := migrate.NewWithInstance("iofs", source, "mysql", driver)
	if err != nil {
		return err
	}
	if err := m.Up(); !errors.Is(err, migrate.ErrNoChange) {
		return err
	}
	return nil
}

// showCause shows livepool the cause of golang-migrate's error, which that only prints; but not
// if a migration itself has failed, which is a database.Error and no pointer: that may have run.
func showCause(err error) error {
	var failed *database.Error
	if errors.As(err, new(database.Error)) || !errors.As(err, &failed) {
		return err
	}
	return fmt.Errorf("%w (%w)", err, failed.OrigErr)
}
