package connector_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
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
		c.AfterConnect = func(_ context.Context, exec func(string, ...any) error) error { return exec("SET ROLE app") }
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

// What AfterConnect does wrong costs its connection, and is told to whom it was opened for. It
// is no outage: the server has logged the connection in.
func TestAfterConnectThatFails(t *testing.T) {
	own := errors.New("no such role")
	for _, tt := range []struct {
		name string
		hook func(ctx context.Context, exec func(string, ...any) error) error
		want string
	}{
		{"an error", func(context.Context, func(string, ...any) error) error { return own }, "Config.AfterConnect: no such role"},
		{"an error of another server", func(context.Context, func(string, ...any) error) error {
			return fmt.Errorf("the secret store: %w", &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED})
		}, "Config.AfterConnect: the secret store"},
		{"a deadline of its own", func(context.Context, func(string, ...any) error) error { return context.DeadlineExceeded }, "AfterConnect"},
		{"database/sql's sign for another connection", func(context.Context, func(string, ...any) error) error { return driver.ErrBadConn }, "AfterConnect"},
		{"a panic", func(context.Context, func(string, ...any) error) error { panic("a fault") }, "panicked"},
		{"it takes too long", func(ctx context.Context, _ func(string, ...any) error) error {
			<-ctx.Done()
			return ctx.Err()
		}, "AfterConnect"},
		{"it takes too long, and does not say so", func(ctx context.Context, _ func(string, ...any) error) error {
			<-ctx.Done()
			return nil
		}, "AfterConnect"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.AfterConnect, c.ConnectTimeout = tt.hook, 100*time.Millisecond })
			_, err := p.ExecContext(t.Context(), "DO 1")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if tt.name == "an error" && !errors.Is(err, own) {
				t.Errorf("%v does not wrap what the function returned", err)
			}
			if st := p.Stats(); st.Outages != 0 || f.Connects.Load() != 1 {
				t.Errorf("%d outages, and %d connections were opened for one statement", st.Outages, f.Connects.Load())
			}
			labtest.Eventually(t, "no connection stays open", func() bool { return f.OpenConns() == 0 })
			if n := f.Execs.Load(); n != 0 {
				t.Errorf("%d statements ran", n)
			}
		})
	}
}

// What it has left behind in a goroutine sends nothing any more.
func TestAfterConnectIsOverWhenItReturns(t *testing.T) {
	f := &fakedb.DB{}
	late := make(chan func(string, ...any) error, 1)
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.AfterConnect = func(_ context.Context, exec func(string, ...any) error) error {
			late <- exec
			return nil
		}
	})
	if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
		t.Fatal(err)
	}
	if err := (<-late)("DO 2"); err == nil {
		t.Error("a statement was sent after AfterConnect had returned")
	}
	if n := f.Execs.Load(); n != 1 {
		t.Errorf("%d statements ran", n)
	}
}

// A connection on which the server says that it is going down is an outage, as anywhere.
func TestServerGoesDownDuringAfterConnect(t *testing.T) {
	f := &fakedb.DB{}
	f.OnExec = func(context.Context, *fakedb.Conn, string) error {
		if f.Connects.Load() == 1 {
			return fakedb.ServerError(1053, "Server shutdown in progress")
		}
		return nil
	}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.AfterConnect = func(_ context.Context, exec func(string, ...any) error) error { return exec("SET ROLE app") }
	})
	labtest.CheckNoErrors(t, labtest.StartUnits(t.Context(), 1, p, labtest.Work)())
	if n := p.Stats().Outages; n != 1 {
		t.Errorf("%d outages", n)
	}
}
