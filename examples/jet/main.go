// Command jet is Jet on livepool: its statements take the pool, or a unit of work's Session.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/jet
//
// It leaves a table example_accounts, and livepool_commits.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/go-jet/jet/v2/mysql"

	"github.com/livepool/livepool"
)

// What Jet's generator would write for the table.
var (
	accountID      = mysql.IntegerColumn("id")
	accountBalance = mysql.IntegerColumn("balance")
	accounts       = mysql.NewTable("", "example_accounts", "", accountID, accountBalance)
)

type account struct {
	ID      int64 `alias:"example_accounts.id"      sql:"primary_key"`
	Balance int64 `alias:"example_accounts.balance"`
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
	id, err := livepool.Do(ctx, pool, func(ctx context.Context, s *livepool.Session) (int64, error) {
		res, err := accounts.INSERT(accountBalance).VALUES(100).ExecContext(ctx, s)
		if err != nil {
			return 0, err
		}
		return res.LastInsertId()
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	var a account
	if err := accounts.SELECT(accountID, accountBalance).WHERE(accountID.EQ(mysql.Int(id))).QueryContext(ctx, pool, &a); err != nil {
		return err
	}
	fmt.Printf("account %d has %d\n", a.ID, a.Balance)
	return nil
}
