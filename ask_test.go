package livepool_test

// A slow server is no dead server: what a silence does, and what it does not.

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
)

// frozen lets nothing on a fake database be answered from one time to another.
type frozen struct{ until atomic.Pointer[time.Time] }

func (f *frozen) wait(ctx context.Context) error {
	until := f.until.Load()
	if until == nil {
		return nil
	}
	select {
	case <-time.After(time.Until(*until)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *frozen) freeze(d time.Duration) { until := time.Now().Add(d); f.until.Store(&until) }

// and when the server goes on it meets no storm.
func TestAServerThatStandsStillLosesNoConnections(t *testing.T) {
	for _, still := range []time.Duration{1400 * time.Millisecond, 3 * time.Second, 9 * time.Second} {
		t.Run(still.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var server frozen
				d := &diary{}
				d.onPing = func(ctx context.Context, c *fakeConn) error {
					err := server.wait(ctx)
					c.valid.Store(err == nil)
					return err
				}
				d.onConnect = func(ctx context.Context, _ int64) error {
					err := server.wait(ctx)
					time.Sleep(3 * time.Millisecond) // a handshake takes more than an answer
					return err
				}
				d.onExec = func(ctx context.Context, _ *fakeConn, _ string) error { return server.wait(ctx) }
				const idle, callers = 500, 10
				p := openDiary(t, d, func(c *livepool.Config) { c.PoolSize, c.KeepAlive = idle, 0 })
				warm(t, p.DB, idle)
				time.Sleep(10 * time.Second)
				server.freeze(still)
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for end := time.Now().Add(still + 3*time.Second); time.Now().Before(end); time.Sleep(700 * time.Millisecond) {
							ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
							p.ExecContext(ctx, "DO 1") // a frozen server may cost one his ConnectTimeout
							cancel()
						}
					})
				}
				wg.Wait()
				time.Sleep(30 * time.Second)
				closed := 0
				for _, l := range d.all()[:idle] {
					if !l.died.IsZero() {
						closed++
					}
				}
				s := p.Stats()
				t.Logf("%d of %d closed, %d handshakes, %d deaths, %d pings", closed, idle, d.connects.Load()-idle, s.Deaths, s.Pinged)
				if closed > 5 || d.connects.Load()-idle > 5*callers || s.Deaths > 0 {
					t.Errorf("%d of %d closed, %d handshakes, %d deaths", closed, idle, d.connects.Load()-idle, s.Deaths)
				}
				d.closed(t, p)
			})
		})
	}
}

// counts those that succeeded within the time.
func load(db *sql.DB, workers int, lasts, pause time.Duration) (done int64) {
	var n atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(lasts)
	for range workers {
		wg.Go(func() {
			for time.Now().Before(end) {
				if _, err := db.Exec("DO 1"); err == nil && time.Now().Before(end) {
					n.Add(1)
				}
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	return n.Load()
}

// connection is given up for it; nor is half of the work pings.
func TestASlowServerIsNoDeadServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(f *fake) {
			f.onConnect = func(context.Context, int64) error { time.Sleep(2400 * time.Millisecond); return nil }
			f.onExec = func(context.Context, *fakeConn, string) error { time.Sleep(1200 * time.Millisecond); return nil }
			f.onPing = func(ctx context.Context, c *fakeConn) error {
				select {
				case <-time.After(1200 * time.Millisecond):
					return nil
				case <-ctx.Done():
					c.valid.Store(false)
					return ctx.Err()
				}
			}
		}
		const workers = 20
		run := func(db *sql.DB) int64 { return load(db, workers, 30*time.Second, 700*time.Millisecond) }
		bare, live := &fake{}, &diary{}
		slow(bare)
		slow(&live.fake)
		plain := sql.OpenDB(bare)
		defer plain.Close()
		plain.SetMaxIdleConns(workers)
		p := openDiary(t, live, func(c *livepool.Config) { c.PoolSize = workers })
		want, got := run(plain), run(p.DB)
		s := p.Stats()
		t.Logf("%d statements, plain %d; %d connections, %d pings by callers, %d in the background, %d deaths",
			got, want, s.Opened, s.Pinged-s.KeptAlive, s.KeptAlive, s.Deaths)
		if s.Deaths != 0 || s.Opened > 2*workers || got < want-2*workers {
			t.Errorf("%d statements, plain %d; %d connections, %d deaths", got, want, s.Opened, s.Deaths)
		}
		live.closed(t, p)
	})
}
