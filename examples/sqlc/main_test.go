package main

import (
	"context"
	"database/sql"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/examples/internal/storm"
	"github.com/livepool/livepool/examples/sqlc/items"
)

// sqlcDB is the generated code. Its transactions are those of db, nil in one.
type sqlcDB struct {
	*items.Queries

	db *sql.DB
}

func (f sqlcDB) Insert(ctx context.Context, i *storm.Item) error {
	return f.Queries.Insert(ctx, items.InsertParams{V: i.V, Big: i.Big, Note: i.Note, At: i.At})
}

func (f sqlcDB) Find(ctx context.Context, v int64) (found []storm.Item, err error) {
	rows, err := f.Queries.Find(ctx, v)
	for _, row := range rows {
		found = append(found, storm.Item(row))
	}
	return found, err
}

func (f sqlcDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return storm.Transaction(ctx, f.db, func(tx *sql.Tx) error { return fn(sqlcDB{f.WithTx(tx), nil}) })
}

func TestSqlc(t *testing.T) {
	storm.Test(t, "sqlc", run,
		storm.Mode{Name: "plain", Open: func(p *livepool.Pool) (storm.DB, storm.InUnit, error) {
			return sqlcDB{items.New(p), p.DB}, func(_ context.Context, s *livepool.Session) (storm.DB, error) {
				return sqlcDB{items.New(s), s.DB()}, nil
			}, nil
		}},
		storm.OnDB("prepared", func(ctx context.Context, db *sql.DB) (storm.DB, error) {
			q, err := items.Prepare(ctx, db)
			return sqlcDB{q, db}, err
		}))
}
