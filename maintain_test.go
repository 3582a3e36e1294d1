package livepool_test

// What the maintainer promises, as seen from outside: exactly, in fake time, on
// a driver that notes what happens to each connection.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// Ten connections are left alone for an hour. Each is pinged at every thirtieth
// second of its silence, and not otherwise; each is replaced when its own time
// is up, by one that was opened a little before; a caller then finds them.
func TestAnHourOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		p := openRecording(t, d, func(c *livepool.Config) { c.Recycle, c.IdleTimeout = 20*time.Minute, 0 })
		start := time.Now()
		fakedb.Warm(t, p.DB, 10)
		for range 3600 {
			time.Sleep(time.Second)
			synctest.Wait()
			early := 0 // successors, opened a quarter of a second before they are needed
			for _, l := range d.Lives() {
				if l.Died.IsZero() && l.Born.After(start) && time.Since(l.Born) < 250*time.Millisecond {
					early++
				}
			}
			if open, told := d.OpenConns(), p.Stats().OpenConnections; told != 10 || open != 10+early {
				t.Fatalf("after %s: %d open, the pool says %d, %d of the others wait to take over", time.Since(start), open, told, early)
			}
		}
		dials := d.Connects.Load()
		held, _ := fakedb.Take(t, p.DB, 10)
		fakedb.GiveBack(held)
		if n := d.Connects.Load(); n != dials {
			t.Errorf("%d callers had to dial", n-dials)
		}
		d.CheckClosed(t, p)

		var deaths, births []time.Duration
		replaced := 0
		for i, l := range d.Lives() {
			if i >= 10 {
				births = append(births, l.Born.Sub(start)+250*time.Millisecond)
			}
			if l.Died.Sub(start) < time.Hour {
				replaced++
				deaths = append(deaths, l.Died.Sub(start))
				if age := l.Died.Sub(l.Born); age < 16*time.Minute || age > 20*time.Minute {
					t.Errorf("connection %d was closed at the age of %s, want 16m to 20m", i+1, age)
				}
			}
			until := min(l.Died.Sub(l.Born), start.Add(time.Hour).Sub(l.Born))
			var want []time.Time
			for at := 30 * time.Second; at < until; at += 30 * time.Second {
				want = append(want, l.Born.Add(at))
			}
			got := slices.DeleteFunc(slices.Clone(l.Pings), func(at time.Time) bool { return !at.Before(start.Add(time.Hour)) })
			// Rounds are a millisecond apart, so that each ping may be one late,
			// and the next is counted from there.
			if !slices.EqualFunc(got, want, func(got, want time.Time) bool {
				late := got.Sub(want)
				return late >= 0 && late <= want.Sub(l.Born)/(30*time.Second)*time.Millisecond
			}) {
				t.Errorf("connection %d was pinged %d times, want %d, at each 30s of its life of %s", i+1, len(got), len(want), until)
			}
		}
		slices.Sort(deaths)
		births = births[:min(len(births), len(deaths))] // one may wait to take over
		if replaced < 20 || !slices.Equal(births, deaths) {
			t.Errorf("%d were replaced; successors to the tick: %v", replaced, slices.Equal(births, deaths))
		}
	})
}

// The same with traffic: whatever the callers do, none meets an error, no
// connection is silent for longer than KeepAlive and the maintainer's interval
// (a quarter of it), none outlives its limit but in a caller's hands, and the
// pool's account is true.
func TestAnHourOfTraffic(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakedb.RecordingDB{}
				const (
					longest = 20 * time.Second     // that a caller holds a connection
					soon    = 30 * time.Second / 4 // until a connection that was in use is looked at
				)
				p := openRecording(t, d, func(c *livepool.Config) {
					c.PoolSize, c.MaxOverflow, c.MinIdle = 8, 4, 2
					c.Recycle, c.IdleTimeout = 10*time.Minute, 5*time.Minute
					c.PrePing = livepool.PrePingOff // so that all pings are the maintainer's
				})
				start := time.Now()
				var wg sync.WaitGroup
				for i := range 14 {
					r := rand.New(rand.NewPCG(seed, uint64(i)))
					wg.Go(func() {
						for time.Since(start) < time.Hour {
							time.Sleep(time.Duration(r.Int64N(int64(2 * time.Minute))))
							held, ids := fakedb.Take(t, p.DB, 1)
							d.NoteHeld(ids[0], true)
							time.Sleep(time.Duration(r.Int64N(int64(longest))))
							d.NoteHeld(ids[0], false)
							held[0].Close()
						}
					})
				}
				for time.Since(start) < time.Hour {
					time.Sleep(977 * time.Millisecond)
					synctest.Wait()
					now := time.Now()
					open, early := 0, 0
					for i, l := range d.Lives() {
						if !l.Died.IsZero() {
							continue
						}
						open++
						if now.Sub(l.Born) < 6*time.Second { // a hundredth of Recycle at most
							early++
						}
						if l.InUse {
							continue
						}
						if now.Sub(l.LastAnswer) > 30*time.Second && now.Sub(l.Returned) > soon {
							t.Errorf("after %s: connection %d has been silent for %s", now.Sub(start), i+1, now.Sub(l.LastAnswer))
						}
						// The clock is not read at a return, only by the maintainer's next look.
						if age := now.Sub(l.Born); age > 10*time.Minute && now.Sub(l.Returned) > soon {
							t.Errorf("after %s: connection %d is idle and %s old", now.Sub(start), i+1, age)
						}
					}
					if s := p.Stats(); open < s.OpenConnections || open > s.OpenConnections+early || s.Idle != s.OpenConnections-s.InUse || s.Idle < 0 {
						t.Errorf("after %s: %d open; the pool says %d, %d idle, %d in use", now.Sub(start), open, s.OpenConnections, s.Idle, s.InUse)
					}
				}
				wg.Wait()
				time.Sleep(time.Minute)
				if s := p.Stats(); s.ClosedByAge < 20 || s.KeptAlive < 100 || s.Deaths != 0 {
					t.Errorf("the test shows nothing, or deaths: %+v", s)
				}
				t.Logf("%d dials, %d pings, at most %d open", d.Connects.Load(), d.Pings.Load(), d.Peak.Load())
				d.CheckClosed(t, p)
			})
		})
	}
}

// A replacement that the server refuses is not tried again at once: the server
// may refuse because too many try. In real time, since a storm stops the fake one.
func TestRefusedReplacementIsNoStorm(t *testing.T) {
	t.Parallel()
	d := &fakedb.RecordingDB{}
	d.OnConnect = func(_ context.Context, n int64) error {
		if n > 1 {
			return &mysql.MySQLError{Number: 1203, Message: "User has too many active connections"}
		}
		return nil
	}
	p := openRecording(t, d, func(c *livepool.Config) {
		c.Recycle, c.RecycleJitter, c.KeepAlive = 3*time.Second, 0, 500*time.Millisecond
	})
	fakedb.ServedBy(t, p)
	labtest.Eventually(t, "the replacement is dialled", func() bool { return d.Connects.Load() > 1 })
	time.Sleep(200 * time.Millisecond)
	p.Close()
	if n := d.Connects.Load() - 1; n > 8 || n < 1 {
		t.Errorf("one connection's replacement was dialled %d times", n)
	}
}

// Twenty idle connections are dead. One caller finds out and pays for it, with
// no more than one ping that waits in vain; meanwhile the maintainer sweeps the
// others, and no later caller pays for any.
func TestOneCallerPaysForAMassDeath(t *testing.T) {
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
					p := openRecording(t, d, func(c *livepool.Config) { c.PoolSize, c.KeepAlive = 20, keepAlive })
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
					for i, l := range d.Lives()[:20] {
						if l.Died.IsZero() {
							t.Errorf("connection %d is dead and has not been swept", i+1)
						}
					}
					tellsTruth(t, d, p)
					paid := p.Stats().Pinged
					start = time.Now()
					fakedb.GiveBack(takeConcurrently(t, p, 20))
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
		p := openRecording(t, d, nil)
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

// database/sql hands out what was returned last; the maintainer's pings change
// nothing about it.
func TestPingsDoNotReorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		p := openRecording(t, d, nil)
		held, ids := fakedb.Take(t, p.DB, 5)
		for _, i := range []int{3, 0, 4, 1, 2} {
			time.Sleep(time.Second)
			fakedb.ServedBy(t, held[i])
			held[i].Close()
		}
		for range 4 {
			time.Sleep(40 * time.Second)
		}
		if d.Pings.Load() < 20 {
			t.Fatalf("%d pings: the test shows nothing", d.Pings.Load())
		}
		held, got := fakedb.Take(t, p.DB, 5)
		if want := []int64{ids[2], ids[1], ids[4], ids[0], ids[3]}; !slices.Equal(got, want) {
			t.Errorf("handed out in the order %v, want %v", got, want)
		}
		fakedb.GiveBack(held)
		d.CheckClosed(t, p)
	})
}

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
		{"impatient", 50 * time.Millisecond, 50 * time.Millisecond, context.DeadlineExceeded, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakedb.RecordingDB{}
				d.OnPing = func(context.Context, *fakedb.Conn) error { time.Sleep(300 * time.Millisecond); return nil }
				p := openRecording(t, d, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
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
				tellsTruth(t, d, p)
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
		p := openRecording(t, d, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.KeepAlive = 1, 0, 5*time.Millisecond })
		var wg sync.WaitGroup
		start := time.Now()
		for range 10 {
			wg.Go(func() {
				for range 10 {
					held, ids := fakedb.Take(t, p.DB, 1)
					d.NoteHeld(ids[0], true)
					time.Sleep(time.Second) // silent, so that a ping is due
					d.NoteHeld(ids[0], false)
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
		p := openRecording(t, d, nil)
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
		p := openRecording(t, d, func(c *livepool.Config) { c.KeepAlive, c.PingTimeout = 100*time.Millisecond, time.Minute })
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
			tellsTruth(t, d, p)
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
			p := openRecording(t, d, func(c *livepool.Config) { c.MinIdle = 3 })
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

// A pool is closed while it opens connections, or keeps one ready for later.
func TestCloseDuringMaintenance(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 150 * time.Millisecond, time.Minute, time.Hour - 500*time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			d := &fakedb.RecordingDB{}
			d.OnConnect = func(ctx context.Context, _ int64) error {
				select {
				case <-time.After(100 * time.Millisecond):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			p := openRecording(t, d, func(c *livepool.Config) { c.MinIdle, c.RecycleJitter, c.IdleTimeout = 6, 0, 0 })
			if after >= time.Minute {
				fakedb.Warm(t, p.DB, 8)
			}
			time.Sleep(after)
			start := time.Now()
			d.CheckClosed(t, p)
			if took := time.Since(start); took != 0 {
				t.Errorf("Close after %s took %s", after, took)
			}
		})
	}
}
