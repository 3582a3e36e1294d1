// Command squirrel is squirrel on livepool: a builder that runs on the pool, and another in a
// unit of work, on its Session.DB.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/squirrel
//
// It leaves a table example_accounts, and livepool_commits.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/Masterminds/squirrel"

	"github.com/livepool/livepool"
)

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
		db := open(s.DB()) // hides the pool's, which must not be used in here
		res, err := db.Insert("example_accounts").Columns("balance").Values(100).ExecContext(ctx)
		if err != nil {
			return 0, err
		}
		return res.LastInsertId()
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	var balance int64
	if err := db.Select("balance").From("example_accounts").Where(squirrel.Eq{"id": id}).QueryRowContext(ctx).Scan(&balance); err != nil {
		return err
	}
	fmt.Printf("account %d has %d\n", id, balance)
	return nil
}

// open takes the pool's *sql.DB, that of a unit, a *sql.Tx or a StmtCache. A Session itself
// lacks the methods without a context, which squirrel asks for.
func open(db squirrel.BaseRunner) squirrel.StatementBuilderType {
	return squirrel.StatementBuilder.RunWith(db)
}
