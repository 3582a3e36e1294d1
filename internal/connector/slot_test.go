package connector_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A caller who meets a ping waits for its end and gets the connection, but not
// longer than his context lasts; the connection is then closed by who pings.
func TestCallerMeetsAPing(t *testing.T) {
	for _, tt := range []struct {
		name     string
		patience time.Duration
		waits    time.Duration
		err      error
		id       int64
	}{
		{"patient", time.Hour, 200 * time.Millisecond, nil, 1},
		{"without a deadline", 0, 200 * time.Millisecond, nil, 1},
		{"gives up early", 50 * time.Millisecond, 50 * time.Millisecond, context.DeadlineExceeded, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakedb.RecordingDB{}
				d.OnPing = func(context.Context, *fakedb.Conn) error { time.Sleep(300 * time.Millisecond); return nil }
				p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
				fakedb.ServedBy(t, p)
				time.Sleep(30*time.Second + 100*time.Millisecond)
				if n := d.Pings.Load(); n != 1 {
					t.Fatalf("%d pings, want one under way", n)
				}
				ctx, cancel := t.Context(), func() {}
				if tt.patience > 0 {
					ctx, cancel = context.WithTimeout(ctx, tt.patience)
				}
				defer cancel()
				start := time.Now()
				res, err := p.ExecContext(ctx, "DO 1")
				if took := time.Since(start); took != tt.waits || !errors.Is(err, tt.err) {
					t.Errorf("%v after %s, want %v after %s", err, took, tt.err, tt.waits)
				}
				if err == nil {
					if id, _ := res.RowsAffected(); id != tt.id {
						t.Errorf("served by connection %d", id)
					}
				}
				time.Sleep(time.Second)
				labtest.CheckStats(t, d, p)
				if n, want := d.OpenConns(), int(tt.id); n != want {
					t.Errorf("%d open, want %d", n, want)
				}
				fakedb.ServedBy(t, p)
				d.CheckClosed(t, p)
			})
		})
	}
}

// The only connection goes from hand to hand: the maintainer comes between two
// callers for no longer than a ping takes, and costs no dial.
func TestMaintainerDoesNotKeepTheLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ping = 10 * time.Millisecond
		d := &fakedb.RecordingDB{}
		d.OnPing = func(context.Context, *fakedb.Conn) error { time.Sleep(ping); return nil }
		p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.KeepAlive = 1, 0, 5*time.Millisecond })
		var wg sync.WaitGroup
		start := time.Now()
		for range 10 {
			wg.Go(func() {
				for range 10 {
					held, ids := fakedb.Take(t, p.DB, 1)
					d.RecordHeld(ids[0], true)
					time.Sleep(time.Second) // silent, so that a ping is due
					d.RecordHeld(ids[0], false)
					held[0].Close()
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > 100*(time.Second+2*ping) {
			t.Errorf("a hundred turns of a second took %s", took)
		}
		if n := d.Connects.Load(); n != 1 {
			t.Errorf("%d dials, want 1", n)
		}
		d.CheckClosed(t, p)
	})
}

// database/sql closes statements, and connections, under its own lock. During a
// ping neither waits; what is closed meanwhile is closed on the server after it.
func TestClosingDuringAPing(t *testing.T) {
	begin := func(t *testing.T, d *fakedb.RecordingDB, ping time.Duration) (*livepool.Pool, *sql.Stmt) {
		d.OnPing = func(context.Context, *fakedb.Conn) error { time.Sleep(ping); return nil }
		p := labtest.OpenRecording(t, d, nil)
		s, err := p.Prepare("DO 1")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(30*time.Second + ping/2)
		if n := d.Pings.Load(); n != 1 {
			t.Fatalf("%d pings, want one under way", n)
		}
		return p, s
	}
	atOnce := func(t *testing.T, what string, f func()) {
		t.Helper()
		start := time.Now()
		f()
		if took := time.Since(start); took != 0 {
			t.Errorf("%s waited for %s", what, took)
		}
	}
	t.Run("a statement", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &fakedb.RecordingDB{}
			p, s := begin(t, d, 500*time.Millisecond)
			atOnce(t, "sql.Stmt.Close", func() { s.Close() })
			atOnce(t, "Stats", func() { p.Stats() })
			if n := d.Statements.Load(); n != 1 {
				t.Error("the statement was closed in the middle of a ping")
			}
			time.Sleep(time.Second)
			if n := d.Statements.Load(); n != 0 || d.OpenConns() != 1 {
				t.Errorf("%d statements left on the server, %d connections", n, d.OpenConns())
			}
			d.CheckClosed(t, p)
		})
	})
	// In real time: database/sql's own lock of the connection makes Stmt.Close wait here.
	t.Run("a statement, while a caller waits for the ping", func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		var pinging atomic.Bool
		answer := make(chan struct{})
		d.OnPing = func(context.Context, *fakedb.Conn) error {
			pinging.Store(true)
			<-answer
			return nil
		}
		p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.KeepAlive, c.PingTimeout = 100*time.Millisecond, time.Minute })
		s, err := p.Prepare("DO 1")
		if err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, "it is being pinged", pinging.Load)
		var wg sync.WaitGroup
		wg.Go(func() { fakedb.ServedBy(t, p) })
		wg.Go(func() { time.Sleep(20 * time.Millisecond); s.Close() })
		time.Sleep(50 * time.Millisecond)
		another := make(chan struct{})
		go func() { fakedb.ServedBy(t, p); close(another) }()
		select {
		case <-another:
		case <-time.After(10 * time.Second):
			t.Error("another caller waits, too")
		}
		close(answer)
		wg.Wait()
		<-another
		labtest.Eventually(t, "the statement is closed on the server", func() bool { return d.Statements.Load() == 0 })
		d.CheckClosed(t, p)
	})
	t.Run("the connection", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &fakedb.RecordingDB{}
			p, s := begin(t, d, 500*time.Millisecond)
			atOnce(t, "database/sql", func() { p.SetMaxIdleConns(-1) })
			time.Sleep(time.Second)
			labtest.CheckStats(t, d, p)
			if d.OpenConns() != 0 {
				t.Error("it is still open")
			}
			s.Close()
			d.CheckClosed(t, p)
		})
	})
	t.Run("the pool", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &fakedb.RecordingDB{}
			p, _ := begin(t, d, 500*time.Millisecond)
			start := time.Now()
			d.CheckClosed(t, p)
			if took := time.Since(start); took > 250*time.Millisecond {
				t.Errorf("Close took %s, want no longer than the ping", took)
			}
		})
	})
	t.Run("the pool, in a black hole", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &fakedb.RecordingDB{}
			d.OnPing = fakedb.BlackHole
			p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.MinIdle = 3 })
			fakedb.Warm(t, p.DB, 6)
			d.Kill()
			time.Sleep(30*time.Second + time.Millisecond)
			start := time.Now()
			d.CheckClosed(t, p)
			if took := time.Since(start); took != 0 {
				t.Errorf("Close took %s: the pings were to be given up", took)
			}
		})
	})
}
