package main

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/go-jet/jet/v2/mysql"
	"github.com/go-jet/jet/v2/qrm"
	"github.com/go-jet/jet/v2/stmtcache"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/examples/internal/storm"
)

type item struct {
	ID   int64     `alias:"items.id"   sql:"primary_key"`
	V    int64     `alias:"items.v"`
	Big  uint64    `alias:"items.big"`
	Note *string   `alias:"items.note"`
	At   time.Time `alias:"items.at"`
}

var (
	itemID = mysql.IntegerColumn("id")
	itemV  = mysql.IntegerColumn("v")
	big    = mysql.IntegerColumn("big")
	note   = mysql.StringColumn("note")
	at     = mysql.TimestampColumn("at")
	items  = mysql.NewTable("", "items", "", itemID, itemV, big, note, at)
)

// handle is what Jet runs a statement on.
type handle interface {
	qrm.Executable
	qrm.Queryable
}

// jetDB runs its statements on a handle. Its transactions are those of db, nil in one.
type jetDB struct {
	handle

	db *sql.DB
}

func (f jetDB) Insert(ctx context.Context, i *storm.Item) error {
	_, err := items.INSERT(itemV, big, note, at).MODEL(item(*i)).ExecContext(ctx, f.handle)
	return err
}

func (f jetDB) Find(ctx context.Context, v int64) (found []storm.Item, err error) {
	var rows []item
	err = items.SELECT(itemID, itemV, big, note, at).WHERE(itemV.EQ(mysql.Int(v))).QueryContext(ctx, f.handle, &rows)
	for _, row := range rows {
		found = append(found, storm.Item(row))
	}
	return found, err
}

func (f jetDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return storm.Transaction(ctx, f.db, func(tx *sql.Tx) error { return fn(jetDB{handle: tx}) })
}

// cachedDB prepares each statement once, for as long as what it is on lasts.
type cachedDB struct{ jetDB }

func (f cachedDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	db, ok := f.handle.(*stmtcache.DB)
	if !ok {
		return errors.ErrUnsupported
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := fn(cachedDB{jetDB{handle: tx}}); err != nil {
		return err
	}
	return tx.Commit()
}

func TestJet(t *testing.T) {
	storm.Test(t, "Jet", run,
		storm.Mode{Name: "plain", Open: func(p *livepool.Pool) (storm.DB, storm.InUnit, error) {
			return jetDB{p, p.DB}, func(_ context.Context, s *livepool.Session) (storm.DB, error) {
				return jetDB{s, s.DB()}, nil
			}, nil
		}},
		storm.OnDB("prepared", func(_ context.Context, db *sql.DB) (storm.DB, error) {
			return cachedDB{jetDB{handle: stmtcache.New(db)}}, nil
		}))
}
