// Command xorm is xorm on livepool: an engine on the pool, kept for as long as the program runs,
// and another in each unit of work, on its Session.DB.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/xorm
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
	"runtime"
	"time"

	"xorm.io/xorm"
	"xorm.io/xorm/core"

	"github.com/livepool/livepool"
)

type account struct {
	ID      int64 `xorm:"pk autoincr 'id'"`
	Balance int64
}

// TableName is the table of accounts.
func (account) TableName() string { return "example_accounts" }

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
	db, err := open(pool.DB)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(db) // it closes the *sql.DB when it is garbage
	var a account
	err = pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		db, err := open(s.DB()) // hides the pool's, which must not be used in here
		if err != nil {
			return err
		}
		a = account{Balance: 100} // it may run again
		_, err = db.Context(ctx).Insert(&a)
		return err
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	if _, err := db.Context(ctx).ID(a.ID).Get(&a); err != nil {
		return err
	}
	fmt.Printf("account %d has %d\n", a.ID, a.Balance)
	return nil
}

// open takes the pool's *sql.DB, or that of a unit. Of the DSN xorm reads what the database is
// called and whether times are parsed; it does not dial.
func open(db *sql.DB) (*xorm.Engine, error) {
	e, err := xorm.NewEngineWithDB("mysql", "user@tcp(anywhere)/any?parseTime=true", core.FromDB(db))
	if err != nil {
		return nil, err
	}
	e.SetTZLocation(time.UTC)
	e.SetTZDatabase(time.UTC)
	return e, nil
}
