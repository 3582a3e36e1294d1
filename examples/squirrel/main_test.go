package main

import (
	"context"
	"database/sql"
	"testing"

	"github.com/Masterminds/squirrel"

	"github.com/livepool/livepool/examples/internal/storm"
)

// squirrelDB builds its statements for db, a *sql.DB or a *sql.Tx; with prepared they are
// kept in a StmtCache, which lasts as long as that.
type squirrelDB struct {
	squirrel.StatementBuilderType

	db       any
	prepared bool
}

func plain(db squirrel.StdSqlCtx) squirrelDB { return squirrelDB{open(db), db, false} }

func prepared(db squirrel.PreparerContext) squirrelDB {
	return squirrelDB{open(squirrel.NewStmtCache(db)), db, true}
}

func (f squirrelDB) Insert(ctx context.Context, i *storm.Item) error {
	_, err := f.StatementBuilderType.Insert("items").Columns("v", "big", "note", "at").Values(i.V, i.Big, i.Note, i.At).ExecContext(ctx)
	return err
}

func (f squirrelDB) Find(ctx context.Context, v int64) (items []storm.Item, err error) {
	rows, err := f.Select("id", "v", "big", "note", "at").From("items").Where(squirrel.Eq{"v": v}).QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	return storm.Scan(rows)
}

func (f squirrelDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return storm.Transaction(ctx, f.db, func(tx *sql.Tx) error {
		if f.prepared {
			return fn(prepared(tx))
		}
		return fn(plain(tx))
	})
}

func TestSquirrel(t *testing.T) {
	storm.Test(t, "squirrel", run,
		storm.OnDB("plain", func(_ context.Context, db *sql.DB) (storm.DB, error) { return plain(db), nil }),
		storm.OnDB("prepared", func(_ context.Context, db *sql.DB) (storm.DB, error) { return prepared(db), nil }))
}
