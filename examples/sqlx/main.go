// Command sqlx is sqlx on livepool: sqlx.NewDb on the pool, and again in a unit of work, on
// its Session.DB.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/sqlx
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

	"github.com/jmoiron/sqlx"

	"github.com/livepool/livepool"
)

type account struct {
	ID      int64 `db:"id"`
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
	db := open(pool.DB)
	_, err = db.ExecContext(ctx, createAccounts)
	if err := errors.Join(err, pool.CreateCommitTable(ctx)); err != nil {
		return err
	}
	id, err := livepool.Do(ctx, pool, func(ctx context.Context, s *livepool.Session) (int64, error) {
		db := open(s.DB()) // hides the pool's, which must not be used in here
		res, err := db.NamedExecContext(ctx, "INSERT INTO example_accounts (balance) VALUES (:balance)", account{Balance: 100})
		if err != nil {
			return 0, err
		}
		return res.LastInsertId()
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	var a account
	if err := db.GetContext(ctx, &a, "SELECT id, balance FROM example_accounts WHERE id = ?", id); err != nil {
		return err
	}
	fmt.Printf("account %d has %d\n", a.ID, a.Balance)
	return nil
}

// open takes the pool's *sql.DB, or that of a unit. The driver's name says which
// placeholders there are.
func open(db *sql.DB) *sqlx.DB { return sqlx.NewDb(db, "mysql") }
