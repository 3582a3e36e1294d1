package connector_test

import (
	"database/sql"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

// openBare opens a sql.DB on a connector of livepool's, for which nothing runs in
// the background: whatever is wrong with a connection is found at its checkout.
func openBare(t *testing.T, f *fakedb.DB, change func(*livepool.Config)) *sql.DB {
	t.Helper()
	cfg := livepool.NewConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	change(cfg)
	c, err := livepool.NewConnector(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	db.SetMaxIdleConns(10)
	t.Cleanup(func() { db.Close() })
	return db
}

// The news that a connection was closed has the others pinged at their checkout,
// also where nobody does it in the background before.
func TestHangUpIsNewsWithoutAPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		db := openBare(t, f, func(*livepool.Config) {})
		fakedb.Warm(t, db, 3)
		last := f.Conns()[2]
		last.Dead.Store(true)
		if _, err := db.Exec("DO 1"); !errors.Is(err, fakedb.ErrGone) {
			t.Fatalf("got %v from a connection that is gone", err)
		}
		time.Sleep(time.Millisecond)
		for range 2 {
			fakedb.Warm(t, db, 2)
			if n := f.Pings.Load(); n != 2 {
				t.Errorf("%d pings, want one of each of the others", n)
			}
		}
	})
}

func TestAgeLimitHoldsWithoutAPool(t *testing.T) {
	for _, tt := range []struct {
		age  time.Duration
		want int64
	}{
		{time.Minute - time.Nanosecond, 1},
		{time.Minute, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			db := openBare(t, &fakedb.DB{}, func(c *livepool.Config) { c.Recycle, c.RecycleJitter = time.Minute, 0 })
			fakedb.ServedBy(t, db)
			time.Sleep(tt.age)
			if id := fakedb.ServedBy(t, db); id != tt.want {
				t.Errorf("at the age of %s: served by connection %d, want %d", tt.age, id, tt.want)
			}
		})
	}
}
