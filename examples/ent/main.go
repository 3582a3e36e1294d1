// Command ent is ent on livepool: its driver on the pool, and again in a unit of work, on its
// Session.DB. The code that ent generates is opened on such a driver:
// ent.NewClient(ent.Driver(open(s.DB()))).
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/ent
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

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/livepool/livepool"
)

type account struct{ ID, Balance int64 }

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
	id, err := livepool.Do(ctx, pool, func(ctx context.Context, s *livepool.Session) (int64, error) {
		query, args := entsql.Dialect(dialect.MySQL).Insert("example_accounts").Columns("balance").Values(100).Query()
		var res sql.Result
		if err := open(s.DB()).Exec(ctx, query, args, &res); err != nil {
			return 0, err
		}
		return res.LastInsertId()
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	query, args := entsql.Dialect(dialect.MySQL).Select("id", "balance").From(entsql.Table("example_accounts")).Where(entsql.EQ("id", id)).Query()
	var rows entsql.Rows
	if err := open(pool.DB).Query(ctx, query, args, &rows); err != nil {
		return err
	}
	defer rows.Close()
	var found []account
	if err := entsql.ScanSlice(rows, &found); err != nil {
		return err
	}
	for _, a := range found {
		fmt.Printf("account %d has %d\n", a.ID, a.Balance)
	}
	return nil
}

// open takes the pool's *sql.DB, or that of a unit.
func open(db *sql.DB) dialect.Driver { return entsql.OpenDB(dialect.MySQL, db) }
