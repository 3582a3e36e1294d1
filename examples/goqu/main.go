// Command goqu is goqu on livepool: goqu.New on the pool, and again in a unit of work, on its
// Session.DB.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/goqu
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

	"github.com/doug-martin/goqu/v9"
	_ "github.com/doug-martin/goqu/v9/dialect/mysql"

	"github.com/livepool/livepool"
)

type account struct {
	ID      int64 `db:"id"      goqu:"skipinsert"`
	Balance int64 `db:"balance"`
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
	id, err := livepool.Do(ctx, pool, func(ctx context.Context, s *livepool.Session) (int64, error) {
		res, err := open(s.DB()).Insert("example_accounts").Rows(account{Balance: 100}).Executor().ExecContext(ctx)
		if err != nil {
			return 0, err
		}
		return res.LastInsertId()
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	var a account
	if _, err := db.From("example_accounts").Where(goqu.C("id").Eq(id)).ScanStructContext(ctx, &a); err != nil {
		return err
	}
	fmt.Printf("account %d has %d\n", a.ID, a.Balance)
	return nil
}

// open takes the pool's *sql.DB, or that of a unit.
func open(db *sql.DB) *goqu.Database { return goqu.New("mysql", db) }
