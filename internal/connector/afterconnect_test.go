package connector_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// AfterConnect runs once on each connection before it is used by anybody, those opened in the
// background among them, and its connection stays what it was made.
func TestAfterConnectSetsUpEachConnection(t *testing.T) {
	var setUp atomic.Int64
	var before atomic.Int64 // statements on a connection that was not set up
	ready := map[int64]*atomic.Bool{1: {}, 2: {}, 3: {}}
	f := &fakedb.DB{OnExec: func(_ context.Context, c *fakedb.Conn, query string) error {
		switch {
		case query == "SET ROLE app":
			setUp.Add(1)
			ready[c.ID].Store(true)
		case !ready[c.ID].Load():
			before.Add(1)
		}
		return nil
	}}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.MinIdle = 2
		c.AfterConnect = func(ctx context.Context, conn *sql.Conn) error {
			_, err := conn.ExecContext(ctx, "SET ROLE app")
			return err
		}
	})
	labtest.Eventually(t, "the connections of MinIdle are set up", func() bool { return setUp.Load() == 2 })
	for range 5 {
		if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
			t.Fatal(err)
		}
		labtest.CheckNoErrors(t, labtest.StartUnits(t.Context(), 1, p, labtest.Work)())
	}
	if n := setUp.Load(); n != f.Connects.Load() || before.Load() != 0 {
		t.Errorf("%d of %d connections were set up, and %d statements ran before that", n, f.Connects.Load(), before.Load())
	}
	if n := f.OpenConns(); n != 2 {
		t.Errorf("%d connections are open, want the 2 that were set up", n)
	}
}

// What AfterConnect does wrong costs its connection, and is told to whom it was opened for.
func TestAfterConnectThatFails(t *testing.T) {
	own := errors.New("no such role")
	for _, tt := range []struct {
		name string
		hook func(ctx context.Context, conn *sql.Conn) error
		want string
	}{
		{"an error", func(context.Context, *sql.Conn) error { return own }, "Config.AfterConnect: no such role"},
		{"a panic", func(context.Context, *sql.Conn) error { panic("a fault") }, "panicked"},
		{"it takes too long", func(ctx context.Context, _ *sql.Conn) error {
			<-ctx.Done()
			return ctx.Err()
		}, "i/o timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, func(c *livepool.Config) {
				c.AfterConnect, c.ConnectTimeout, c.OutageWait = tt.hook, 100*time.Millisecond, 0
			})
			_, err := p.ExecContext(t.Context(), "DO 1")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if tt.name == "an error" && !errors.Is(err, own) {
				t.Errorf("%v does not wrap what the function returned", err)
			}
			labtest.Eventually(t, "no connection stays open", func() bool { return f.OpenConns() == 0 })
			if n := f.Execs.Load(); n != 0 {
				t.Errorf("%d statements ran", n)
			}
		})
	}
}

// A transaction that it leaves open is rolled back before the connection is used.
func TestAfterConnectLeavesNothingOpen(t *testing.T) {
	f := &fakedb.DB{}
	var rolledBack, begun atomic.Int64
	f.OnBegin = func(*fakedb.Conn) error { begun.Add(1); return nil }
	f.OnRollback = func(*fakedb.Conn) error { rolledBack.Add(1); return nil }
	f.OnExec = func(context.Context, *fakedb.Conn, string) error {
		if begun.Load() != rolledBack.Load() {
			t.Error("a statement runs in the transaction that AfterConnect left")
		}
		return nil
	}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.AfterConnect = func(ctx context.Context, conn *sql.Conn) error {
			_, err := conn.BeginTx(ctx, nil)
			return err
		}
	})
	if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil || begun.Load() != 1 {
		t.Errorf("%v; %d transactions were begun", err, begun.Load())
	}
}
