package main

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"xorm.io/xorm"

	"github.com/livepool/livepool/examples/internal/storm"
)

type item struct {
	ID   int64 `xorm:"pk autoincr 'id'"`
	V    int64
	Big  uint64
	Note *string
	At   time.Time `xorm:"DATETIME(6)"`
}

// TableName is the table of items.
func (item) TableName() string { return "items" }

// xormDB makes a session for each call, or has the one of a transaction.
type xormDB struct {
	engine   *xorm.Engine
	tx       *xorm.Session
	prepared bool
}

func (f xormDB) session(ctx context.Context) *xorm.Session {
	s := f.tx
	if s == nil {
		s = f.engine.Context(ctx)
	}
	if f.prepared {
		s = s.Prepare()
	}
	return s
}

func (f xormDB) Insert(ctx context.Context, i *storm.Item) error {
	row := item(*i)
	_, err := f.session(ctx).Insert(&row)
	return err
}

func (f xormDB) Find(ctx context.Context, v int64) ([]storm.Item, error) {
	var items []item
	err := f.session(ctx).Where("v = ?", v).Find(&items)
	return itemsOf(items), err
}

func (f xormDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	if f.tx != nil {
		return errors.ErrUnsupported
	}
	s := f.engine.NewSession().Context(ctx)
	defer s.Close() // rolls back what is not committed
	if err := s.Begin(); err != nil {
		return err
	}
	if err := fn(xormDB{f.engine, s, f.prepared}); err != nil {
		return err
	}
	return s.Commit()
}

func itemsOf(rows []item) []storm.Item {
	items := make([]storm.Item, len(rows))
	for i, row := range rows {
		items[i] = storm.Item(row)
	}
	return items
}

func mode(name string, prepared bool) storm.Mode {
	return storm.OnDB(name, func(_ context.Context, db *sql.DB) (storm.DB, error) {
		engine, err := open(db)
		return xormDB{engine: engine, prepared: prepared}, err
	})
}

func TestXorm(t *testing.T) {
	storm.Test(t, "xorm", run, mode("plain", false), mode("prepared", true))
}
