package connector_test

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
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// freezable lets nothing on a fake database be answered from one time to another. One
// channel is for all who wait: under the race detector a few hundred timers' channels in
// a bubble of synctest may crash the runtime of Go 1.26 (golang/go#78156).
type freezable struct{ thawed atomic.Pointer[chan struct{}] }

func (f *freezable) wait(ctx context.Context) error {
	thawed := f.thawed.Load()
	if thawed == nil {
		return nil
	}
	select {
	case <-*thawed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *freezable) freeze(d time.Duration) {
	thawed := make(chan struct{})
	f.thawed.Store(&thawed)
	time.AfterFunc(d, func() { close(thawed) })
}

// A server that stands still for a while and goes on has lost none of the idle
// connections, and no callers storm it with new ones.
func TestAServerThatStandsStillLosesNoConnections(t *testing.T) {
	// Of a standstill longer than ConnectTimeout some attempts of the callers are given up.
	for still, atMost := range map[time.Duration]int{1400 * time.Millisecond: 1, 3 * time.Second: 1, 9 * time.Second: 5} {
		t.Run(still.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var server freezable
				d := &fakedb.RecordingDB{}
				d.OnPing = func(ctx context.Context, c *fakedb.Conn) error {
					err := server.wait(ctx)
					c.Valid.Store(err == nil)
					return err
				}
				d.OnConnect = func(ctx context.Context, _ int64) error {
					err := server.wait(ctx)
					time.Sleep(3 * time.Millisecond) // a handshake takes more than an answer
					return err
				}
				d.OnExec = func(ctx context.Context, _ *fakedb.Conn, _ string) error { return server.wait(ctx) }
				const idle, callers = 500, 10
				p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.PoolSize, c.KeepAlive = idle, 0 })
				fakedb.Warm(t, p.DB, idle)
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
				for _, l := range d.Records()[:idle] {
					if !l.ClosedAt.IsZero() {
						closed++
					}
				}
				s := p.Stats()
				t.Logf("%d of %d closed, %d handshakes, %d deaths, %d pings", closed, idle, d.Connects.Load()-idle, s.Deaths, s.Pinged)
				if closed > atMost || d.Connects.Load()-idle > 5*callers || s.Deaths > 0 {
					t.Errorf("%d of %d closed, %d handshakes, %d deaths", closed, idle, d.Connects.Load()-idle, s.Deaths)
				}
				d.CheckClosed(t, p)
			})
		})
	}
}

// Each answer takes longer than PingTimeout. The pool learns that: no connection is
// given up for it, and the pings cost little of the work.
func TestASlowServerIsNoDeadServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(f *fakedb.DB) {
			f.OnConnect = func(context.Context, int64) error { time.Sleep(2400 * time.Millisecond); return nil }
			f.OnExec = func(context.Context, *fakedb.Conn, string) error { time.Sleep(1200 * time.Millisecond); return nil }
			f.OnPing = func(ctx context.Context, c *fakedb.Conn) error {
				select {
				case <-time.After(1200 * time.Millisecond):
					return nil
				case <-ctx.Done():
					c.Valid.Store(false)
					return ctx.Err()
				}
			}
		}
		const workers = 20
		run := func(db *sql.DB) int64 { return labtest.RunLoad(db, workers, 30*time.Second, 700*time.Millisecond) }
		bare, live := &fakedb.DB{}, &fakedb.RecordingDB{}
		slow(bare)
		slow(&live.DB)
		plain := sql.OpenDB(bare)
		defer plain.Close()
		plain.SetMaxIdleConns(workers)
		p := labtest.OpenRecording(t, live, func(c *livepool.Config) { c.PoolSize = workers })
		want, got := run(plain), run(p.DB)
		s := p.Stats()
		t.Logf("%d statements, plain %d; %d connections, %d pings by callers, %d in the background, %d deaths",
			got, want, s.Opened, s.Pinged-s.KeptAlive, s.KeptAlive, s.Deaths)
		if s.Deaths != 0 || s.Opened > 2*workers || got < want-2*workers {
			t.Errorf("%d statements, plain %d; %d connections, %d deaths", got, want, s.Opened, s.Deaths)
		}
		live.CheckClosed(t, p)
	})
}
