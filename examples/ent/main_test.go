package main

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/livepool/livepool/examples/internal/storm"
)

// entDB is the layer below the code that ent generates: a dialect.Driver, or a dialect.Tx.
type entDB struct{ dialect.ExecQuerier }

func (f entDB) Insert(ctx context.Context, i *storm.Item) error {
	query, args := entsql.Dialect(dialect.MySQL).Insert("items").Columns("v", "big", "note", "at").Values(i.V, i.Big, i.Note, i.At).Query()
	var res sql.Result
	return f.Exec(ctx, query, args, &res)
}

func (f entDB) Find(ctx context.Context, v int64) (items []storm.Item, err error) {
	query, args := entsql.Dialect(dialect.MySQL).Select("id", "v", "big", "note", "at").From(entsql.Table("items")).Where(entsql.EQ("v", v)).Query()
	var rows entsql.Rows
	if err := f.Query(ctx, query, args, &rows); err != nil {
		return nil, err
	}
	defer rows.Close()
	err = entsql.ScanSlice(rows, &items)
	return items, err
}

func (f entDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	driver, ok := f.ExecQuerier.(dialect.Driver)
	if _, inTx := f.ExecQuerier.(dialect.Tx); !ok || inTx {
		return errors.ErrUnsupported
	}
	tx, err := driver.Tx(ctx)
	if err != nil {
		return err
	}
	if err := fn(entDB{tx}); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func TestEnt(t *testing.T) {
	storm.Test(t, "ent", run,
		storm.OnDB("plain", func(_ context.Context, db *sql.DB) (storm.DB, error) { return entDB{open(db)}, nil }))
}
