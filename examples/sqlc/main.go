// Command sqlc is the code that sqlc generates on livepool: accounts.New on the pool, and
// again in a unit of work, on its Session.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/sqlc
//
// It leaves a table example_accounts, and livepool_commits.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/examples/sqlc/accounts"
)

//go:embed accounts/schema.sql
var schema string

func main() {
	if err := run(context.Background(), os.Getenv("DSN")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dsn string) error {
	pool, err := livepool.Open(dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = pool.ExecContext(ctx, schema)
	if err := errors.Join(err, pool.CreateCommitTable(ctx)); err != nil {
		return err
	}
	queries := accounts.New(pool)
	id, err := livepool.Do(ctx, pool, func(ctx context.Context, s *livepool.Session) (int64, error) {
		queries := accounts.New(s) // hides the pool's, which must not be used in here
		return queries.CreateAccount(ctx, 100)
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	a, err := queries.GetAccount(ctx, id)
	if err != nil {
		return err
	}
	fmt.Printf("account %d has %d\n", a.ID, a.Balance)
	return nil
}
