// Command bun is bun on livepool: bun.NewDB on the pool, and again in a unit of work, on its
// Session.DB.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/bun
//
// It leaves a table example_accounts, and livepool_commits.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/mysqldialect"

	"github.com/livepool/livepool"
)

type account struct {
	bun.BaseModel `bun:"table:example_accounts"`

	ID      int64 `bun:",pk,autoincrement"`
	Balance int64
}

const createAccounts = "CREATE TABLE IF NOT EXISTS example_accounts (id BIGINT AUTO_INCREMENT PRIMARY KEY, balance BIGINT NOT NULL)"

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
	_, err = pool.ExecContext(ctx, createAccounts)
	if err := errors.Join(err, pool.CreateCommitTable(ctx)); err != nil {
		return err
	}
	db := open(pool.DB)
	var a account
	err = pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		a = account{Balance: 100} // it may run again
		_, err := open(s.DB()).NewInsert().Model(&a).Exec(ctx)
		return err
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	if err := db.NewSelect().Model(&a).WherePK().Scan(ctx); err != nil {
		return err
	}
	fmt.Printf("account %d has %d\n", a.ID, a.Balance)
	return nil
}

// open takes the pool's *sql.DB, or that of a unit.
func open(db *sql.DB) *bun.DB { return bun.NewDB(db, mysqldialect.New()) }
