package main

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/doug-martin/goqu/v9"

	"github.com/livepool/livepool/examples/internal/storm"
)

type item struct {
	ID   int64     `db:"id"   goqu:"skipinsert"`
	V    int64     `db:"v"`
	Big  uint64    `db:"big"`
	Note *string   `db:"note"`
	At   time.Time `db:"at"`
}

// handle is what goqu.Database and goqu.TxDatabase have in common.
type handle interface {
	From(cols ...any) *goqu.SelectDataset
	Insert(table any) *goqu.InsertDataset
}

type goquDB struct {
	handle

	prepared bool
}

func (f goquDB) Insert(ctx context.Context, i *storm.Item) error {
	var row any = item(*i)
	if !f.prepared { // the text that goqu makes of a time has no fractions of a second
		row = goqu.Record{"v": i.V, "big": i.Big, "note": i.Note, "at": i.At.Format("2006-01-02 15:04:05.999999")}
	}
	_, err := f.handle.Insert("items").Prepared(f.prepared).Rows(row).Executor().ExecContext(ctx)
	return err
}

func (f goquDB) Find(ctx context.Context, v int64) ([]storm.Item, error) {
	var items []item
	err := f.From("items").Prepared(f.prepared).Where(goqu.C("v").Eq(v)).ScanStructsContext(ctx, &items)
	return itemsOf(items), err
}

func (f goquDB) Transaction(_ context.Context, fn func(storm.DB) error) error {
	db, ok := f.handle.(*goqu.Database)
	if !ok {
		return errors.ErrUnsupported
	}
	return db.WithTx(func(tx *goqu.TxDatabase) error { return fn(goquDB{tx, f.prepared}) })
}

func itemsOf(rows []item) []storm.Item {
	items := make([]storm.Item, len(rows))
	for i, row := range rows {
		items[i] = storm.Item(row)
	}
	return items
}

func TestGoqu(t *testing.T) {
	storm.Test(t, "goqu", run,
		storm.OnDB("plain", func(_ context.Context, db *sql.DB) (storm.DB, error) { return goquDB{open(db), false}, nil }),
		storm.OnDB("prepared", func(_ context.Context, db *sql.DB) (storm.DB, error) { return goquDB{open(db), true}, nil }))
}
