package main

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/livepool/livepool/examples/internal/storm"
)

type item struct {
	ID   int64     `db:"id"`
	V    int64     `db:"v"`
	Big  uint64    `db:"big"`
	Note *string   `db:"note"`
	At   time.Time `db:"at"`
}

const (
	insertItem = "INSERT INTO items (v, big, note, at) VALUES (:v, :big, :note, :at)"
	findItems  = "SELECT * FROM items WHERE v = :v"
)

// handle is what sqlx.DB and sqlx.Tx have in common.
type handle interface {
	sqlx.ExtContext
	PrepareNamedContext(ctx context.Context, query string) (*sqlx.NamedStmt, error)
}

// sqlxDB sends its statements as they are, on the pool and in a unit, in a transaction too.
type sqlxDB struct{ handle }

func (f sqlxDB) Insert(ctx context.Context, i *storm.Item) error {
	_, err := sqlx.NamedExecContext(ctx, f.handle, insertItem, item(*i))
	return err
}

func (f sqlxDB) Find(ctx context.Context, v int64) ([]storm.Item, error) {
	var items []item
	if err := sqlx.SelectContext(ctx, f.handle, &items, "SELECT * FROM items WHERE v = ?", v); err != nil {
		return nil, err
	}
	return itemsOf(items), nil
}

func (f sqlxDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return transaction(ctx, f.handle, func(tx *sqlx.Tx) error { return fn(sqlxDB{tx}) })
}

// preparedDB has prepared its statements, for as long as what it is on lasts.
type preparedDB struct {
	handle

	insert, find *sqlx.NamedStmt
}

func prepare(ctx context.Context, h handle) (f preparedDB, err error) {
	f.handle = h
	if f.insert, err = h.PrepareNamedContext(ctx, insertItem); err == nil {
		f.find, err = h.PrepareNamedContext(ctx, findItems)
	}
	return f, err
}

func (f preparedDB) Insert(ctx context.Context, i *storm.Item) error {
	_, err := f.insert.ExecContext(ctx, item(*i))
	return err
}

func (f preparedDB) Find(ctx context.Context, v int64) ([]storm.Item, error) {
	var items []item
	if err := f.find.SelectContext(ctx, &items, item{V: v}); err != nil {
		return nil, err
	}
	return itemsOf(items), nil
}

func (f preparedDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return transaction(ctx, f.handle, func(tx *sqlx.Tx) error {
		return fn(preparedDB{tx, tx.NamedStmtContext(ctx, f.insert), tx.NamedStmtContext(ctx, f.find)})
	})
}

func transaction(ctx context.Context, h handle, fn func(*sqlx.Tx) error) error {
	db, ok := h.(*sqlx.DB)
	if !ok {
		return errors.ErrUnsupported
	}
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func itemsOf(rows []item) []storm.Item {
	items := make([]storm.Item, len(rows))
	for i, row := range rows {
		items[i] = storm.Item(row)
	}
	return items
}

func TestSqlx(t *testing.T) {
	storm.Test(t, "sqlx", run,
		storm.OnDB("plain", func(_ context.Context, db *sql.DB) (storm.DB, error) { return sqlxDB{open(db)}, nil }),
		storm.OnDB("prepared", func(ctx context.Context, db *sql.DB) (storm.DB, error) { return prepare(ctx, open(db)) }))
}
