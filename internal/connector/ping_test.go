package connector_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// The kernel reports a silence long after it began. What was proved meanwhile
// is not suspect, what was not is asked.
func TestSilenceReportedByTheKernelSparesThoseThatAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PingAfter, c.KeepAlive = time.Hour, 0 })
		held := make([]*sql.Conn, 3)
		for i := range held {
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fakedb.ServedBy(t, c)
			held[i] = c
		}
		silent, proved, early := held[0], held[1], held[2]
		f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
			if query != "a long statement" {
				return nil
			}
			time.Sleep(time.Minute)
			c.Valid.Store(false)
			return &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := silent.ExecContext(t.Context(), "a long statement"); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("got %v, want ETIMEDOUT", err)
			}
		})
		time.Sleep(10 * time.Second)
		fakedb.ServedBy(t, early)
		time.Sleep(45 * time.Second) // within the kernel's patience of 11s
		fakedb.ServedBy(t, proved)
		wg.Wait()
		for _, c := range held {
			c.Close()
		}
		fakedb.Warm(t, p.DB, 2)
		synctest.Wait()
		if s := p.Stats(); s.Pinged != 1 || s.KeptAlive != 1 || s.Deaths != 1 {
			t.Errorf("%d pings, %d of them in the background, %d deaths, want one each: the one that had not proved itself is asked, and no caller waits for it", s.Pinged, s.KeptAlive, s.Deaths)
		}
		if all := f.Conns(); all[1].Closed.Load() || all[2].Closed.Load() {
			t.Error("one that had proved itself, or did so when it was asked, is closed")
		}
	})
}

// Callers with less patience than PingTimeout do not each pay for a black hole:
// a ping goes on without its caller, and those who come later know.
func TestCallersWhoGiveUpInABlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: fakedb.BlackHole}
		p := labtest.OpenFake(t, f, nil)
		fakedb.Warm(t, p.DB, 10)
		f.Kill()
		time.Sleep(10 * time.Second)
		failed := 0
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
			start := time.Now()
			if _, err := p.ExecContext(ctx, "DO 1"); err != nil {
				failed++
			}
			if took := time.Since(start); took > 900*time.Millisecond {
				t.Errorf("a caller waited %s, beyond his patience of 900ms", took)
			}
			cancel()
		}
		if failed > 2 {
			t.Errorf("%d of 20 callers paid for the black hole, want at most 2", failed)
		}
		time.Sleep(5 * time.Second)
		if n := p.Stats().Deaths; n == 0 {
			t.Error("nobody learnt of the silence")
		}
	})
}

// PrePingOff sends no ping, but it does not hand out what is known to be
// suspect.
func TestWhatIsSuspectIsNotHandedOutUnderPrePingOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: fakedb.BlackHole}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PrePing = livepool.PrePingOff })
		fakedb.Warm(t, p.DB, 3)
		f.Kill()
		time.Sleep(time.Minute)
		if err := p.Ping(); err != nil { // finds the silence
			t.Fatal(err)
		}
		start := time.Now()
		held, ids := fakedb.Take(t, p.DB, 3)
		fakedb.GiveBack(held)
		if slices.Min(ids) <= 3 || time.Since(start) != 0 {
			t.Errorf("served by connections %v after %s, want new ones at once", ids, time.Since(start))
		}
	})
}

// Of two deaths the one that is reported later may have been the earlier. It
// does not bring back trust that the other has taken.
func TestDeathsReportedInAnyOrderLeaveTheLatestNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: func(_ context.Context, c *fakedb.Conn) error {
			if !c.Dead.Load() {
				return nil
			}
			time.Sleep(700 * time.Millisecond)
			return fakedb.ErrGone
		}}
		p := labtest.OpenFake(t, f, nil)
		conns := make([]*sql.Conn, 3)
		for i := range conns {
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fakedb.ServedBy(t, c)
			conns[i] = c
		}
		dies, watched := conns[1], conns[2]
		f.Conns()[0].Dead.Store(true)
		f.Conns()[1].Dead.Store(true)
		conns[0].Close()
		time.Sleep(10 * time.Second)

		var ping sync.WaitGroup
		ping.Go(func() { fakedb.ServedBy(t, p) }) // sent at 0s, answered at 0.7s
		time.Sleep(300 * time.Millisecond)
		fakedb.ServedBy(t, watched)
		time.Sleep(200 * time.Millisecond)
		if _, err := dies.ExecContext(t.Context(), "DO 1"); !errors.Is(err, fakedb.ErrGone) {
			t.Errorf("got %v, want %v", err, fakedb.ErrGone)
		}
		ping.Wait()
		dies.Close()
		watched.Close()
		f.Pings.Store(0)
		fakedb.Warm(t, p.DB, 2)
		if n := f.Pings.Load(); n != 1 {
			t.Errorf("%d pings, want 1: of the one that was proved between the two deaths", n)
		}
	})
}

// A connection that nobody has checked is checked before its first use, however
// long after its birth that is.
func TestConnectionHeldUnusedIsCheckedBeforeItsFirstUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		time.Sleep(time.Hour / 2)
		f.Kill()
		if id := fakedb.ServedBy(t, c); id != 2 {
			t.Errorf("served by connection %d, want a new one", id)
		}
	})
}

// Twenty idle connections are dead. One caller finds out and pays for it, with
// no more than one ping that waits in vain; meanwhile the maintainer sweeps the
// others, and no later caller pays for any.
// Whether the others are silent too is asked of many at once, and not of a few at a time,
// for nobody gets one of them before it answers; but not of any number.
func TestSuspectsAreAskedAHundredAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle, limit = 150, 100
		var asked atomic.Int64
		f := &fakedb.DB{OnPing: func(ctx context.Context, c *fakedb.Conn) error {
			asked.Add(1)
			defer asked.Add(-1)
			return fakedb.BlackHole(ctx, c)
		}}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PoolSize = idle })
		fakedb.Warm(t, p.DB, idle)
		time.Sleep(10 * time.Second)
		f.Kill()
		var most int64
		var counting sync.WaitGroup
		counting.Go(func() {
			for range 2000 {
				most = max(most, asked.Load())
				time.Sleep(time.Millisecond)
			}
		})
		fakedb.ServedBy(t, p)
		counting.Wait()
		if most < limit || most > limit+2 { // and what callers have met
			t.Errorf("%d pings at the same time, want %d", most, limit)
		}
	})
}

// One that nothing runs for in the background does not wait for what is suspect either.
func TestNoCallerWaitsForWhatIsSuspectWithoutAPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: fakedb.BlackHole}
		cfg := livepool.NewConfig()
		cfg.Logger = labtest.DiscardLogger
		ctr, err := livepool.NewConnector(f, cfg)
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(ctr)
		defer db.Close()
		db.SetMaxIdleConns(10)
		fakedb.Warm(t, db, 10)
		time.Sleep(10 * time.Second)
		f.Kill()
		start := time.Now()
		for range 10 {
			fakedb.ServedBy(t, db)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("callers waited for %s, want one PingTimeout of 1s", took)
		}
	})
}

func TestOneCallerWaitsAfterAMassDeath(t *testing.T) {
	const dial = time.Millisecond
	for _, tt := range []struct {
		name   string
		onPing func(context.Context, *fakedb.Conn) error
		cost   time.Duration
		pings  int64 // by callers; database/sql has two tries at what is idle
	}{
		{"black hole", fakedb.BlackHole, time.Second, 1},
		{"hung up", nil, 0, 2},
		{"hung up, and far away", func(_ context.Context, c *fakedb.Conn) error {
			time.Sleep(100 * time.Millisecond)
			if c.Dead.Load() {
				return fakedb.ErrGone
			}
			return nil
		}, 200 * time.Millisecond, 2},
	} {
		for _, keepAlive := range []time.Duration{0, 30 * time.Second} {
			t.Run(fmt.Sprintf("%s, keep-alive %s", tt.name, keepAlive), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := &fakedb.RecordingDB{}
					d.OnPing = tt.onPing
					d.OnConnect = func(context.Context, int64) error { time.Sleep(dial); return nil }
					p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.PoolSize, c.KeepAlive = 20, keepAlive })
					fakedb.Warm(t, p.DB, 20)
					time.Sleep(10 * time.Second)
					d.Kill()
					start := time.Now()
					fakedb.ServedBy(t, p)
					took := time.Since(start)
					s := p.Stats()
					if paid := s.Pinged - s.KeptAlive; took > tt.cost+dial || paid > tt.pings {
						t.Errorf("the caller waited for %s and %d pings, want %s and at most %d", took, paid, tt.cost, tt.pings)
					}
					time.Sleep(time.Second) // the sweep, four at a time
					synctest.Wait()
					for i, l := range d.Records()[:20] {
						if l.ClosedAt.IsZero() {
							t.Errorf("connection %d is dead and has not been swept", i+1)
						}
					}
					labtest.CheckStats(t, d, p)
					paid := p.Stats().Pinged
					start = time.Now()
					fakedb.GiveBack(labtest.TakeConcurrently(t, p, 20))
					if took := time.Since(start); took > tt.cost/2+5*dial { // a few at a time, more where they are quick
						t.Errorf("callers after that waited for %s", took)
					}
					if n := p.Stats().Pinged - paid; n > 1 { // the first one's connection is a second old
						t.Errorf("callers after that waited for %d pings", n)
					}
					if s := p.Stats(); s.Swept < 17 || s.Deaths == 0 {
						t.Errorf("%d swept, %d deaths", s.Swept, s.Deaths)
					}
					d.CheckClosed(t, p)
				})
			})
		}
	}
}

// Keep-alive pings under way in a black hole do not add up for a caller: he is
// not made to wait for the second when the first has told of the silence.
func TestPingsUnderWayDoNotAddUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		d.OnPing = fakedb.BlackHole
		p := labtest.OpenRecording(t, d, nil)
		held, _ := fakedb.Take(t, p.DB, 2)
		time.Sleep(900 * time.Millisecond)
		fakedb.ServedBy(t, held[1]) // its ping is due 900ms after the other's
		held[1].Close()
		held[0].Close() // at the top
		d.Kill()
		time.Sleep(30*time.Second - 899*time.Millisecond) // a millisecond into the first ping
		if n := d.Pings.Load(); n != 1 {
			t.Fatalf("%d pings, want one under way", n)
		}
		start := time.Now()
		fakedb.ServedBy(t, p)
		if took := time.Since(start); took > time.Second {
			t.Errorf("a caller waited for %s, want at most PingTimeout", took)
		}
	})
}
