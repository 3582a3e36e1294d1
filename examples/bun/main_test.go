package main

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/uptrace/bun"

	"github.com/livepool/livepool/examples/internal/storm"
)

type item struct {
	ID   int64 `bun:",pk,autoincrement"`
	V    int64
	Big  uint64
	Note *string `bun:",nullzero"`
	At   time.Time
}

type bunDB struct{ bun.IDB }

func (f bunDB) Insert(ctx context.Context, i *storm.Item) error {
	row := item(*i)
	_, err := f.NewInsert().Model(&row).Exec(ctx)
	return err
}

func (f bunDB) Find(ctx context.Context, v int64) ([]storm.Item, error) {
	var items []item
	err := f.NewSelect().Model(&items).Where("v = ?", v).Scan(ctx)
	return itemsOf(items), err
}

func (f bunDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return f.RunInTx(ctx, nil, func(_ context.Context, tx bun.Tx) error { return fn(bunDB{tx}) })
}

func itemsOf(rows []item) []storm.Item {
	items := make([]storm.Item, len(rows))
	for i, row := range rows {
		items[i] = storm.Item(row)
	}
	return items
}

func TestBun(t *testing.T) {
	storm.Test(t, "bun", run,
		storm.OnDB("plain", func(_ context.Context, db *sql.DB) (storm.DB, error) { return bunDB{open(db)}, nil }))
}
