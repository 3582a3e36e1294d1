// Command gorm is GORM on livepool: opened once on the pool, and in a unit of work by Unit,
// which is to be copied.
//
//	DSN='app:secret@tcp(db:3306)/shop?parseTime=true' go run ./examples/gorm
//
// It leaves a table example_accounts, and livepool_commits.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"gorm.io/driver/mysql"
	"gorm.io/gorm"

	"github.com/livepool/livepool"
)

type account struct {
	ID      int64
	Balance int64
}

func (account) TableName() string { return "example_accounts" }

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
	db, err := gorm.Open(mysql.New(mysql.Config{Conn: pool.DB}), &gorm.Config{})
	if err != nil {
		return err
	}
	if err := errors.Join(db.WithContext(ctx).AutoMigrate(&account{}), pool.CreateCommitTable(ctx)); err != nil {
		return err
	}
	var a account
	err = pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		db, err := Unit(ctx, s, db) // hides the pool's, which must not be used in here
		if err != nil {
			return err
		}
		a = account{Balance: 100} // it may run again
		return db.Create(&a).Error
	}, livepool.VerifyCommit())
	if err != nil {
		return err
	}
	if err := db.WithContext(ctx).First(&a, a.ID).Error; err != nil {
		return err
	}
	fmt.Printf("account %d has %d\n", a.ID, a.Balance)
	return nil
}

// Unit returns db in a unit of work: what it does is committed, or undone, with the unit, and
// its own transactions are savepoints. It is given a *sql.Tx, because GORM puts the pool in
// the place of what it does not know for a transaction. With PrepareStmt, too, statements in
// a unit are prepared for that unit alone: by GORM's own store of them, units would wait for
// each other, and fail with each other's errors.
func Unit(ctx context.Context, s *livepool.Session, db *gorm.DB) (*gorm.DB, error) {
	tx, err := s.Tx(ctx)
	if err != nil {
		return nil, err
	}
	unit := db.Session(&gorm.Session{NewDB: true, Context: ctx})
	unit.Statement.ConnPool = tx
	return unit, nil
}
