package connector_test

// What MinIdle keeps ready, and what IdleTimeout leaves of it.

import (
	"context"
	"database/sql/driver"
	"math/rand/v2"
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

// A session whose connection is found dead takes one that is ready in its place,
// and does not wait for a dial.
func TestSessionOnADeadConnectionTakesWhatIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnConnect: func(_ context.Context, n int64) error {
			if n > 2 {
				time.Sleep(time.Second)
			}
			return nil
		}}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.MinIdle = 2 })
		synctest.Wait()
		used := fakedb.ServedBy(t, p) // one of the two that are ready, and now database/sql's
		time.Sleep(time.Second)
		f.Conns()[used-1].Dead.Store(true)
		start := time.Now()
		if err := p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
			if id := fakedb.ServedBy(t, s); id == used || time.Since(start) != 0 {
				t.Errorf("served by connection %d after %s, want another than %d at once", id, time.Since(start), used)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// What ends connections one after the other may end a spare just after it was checked, too.
// database/sql asks for a last connection after the loss of two: it gets one that did not
// exist then.
func TestTheLastConnectionIsANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ending atomic.Bool
		f := &fakedb.DB{OnBegin: func(c *fakedb.Conn) error {
			if ending.Load() && c.ID <= 3 {
				c.Valid.Store(false)
				return fakedb.ErrGone
			}
			return nil
		}}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MinIdle = 3, 3 })
		synctest.Wait()
		fakedb.Warm(t, p.DB, 2) // these are database/sql's now, and the third is a spare
		ending.Store(true)
		tx, err := p.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		tx.Rollback()
		if open := f.OpenConns(); open > 3 {
			t.Errorf("%d connections are open, want at most 3", open)
		}
	})
}

// IdleTimeout closes what nobody has used for so long (database/sql looks once
// a second), whatever pings there were meanwhile, but for MinIdle.
func TestIdleTimeoutLeavesMinIdle(t *testing.T) {
	for _, minIdle := range []int{0, 3} {
		synctest.Test(t, func(t *testing.T) {
			d := &fakedb.RecordingDB{}
			p := labtest.OpenRecording(t, d, func(c *livepool.Config) {
				c.MinIdle, c.IdleTimeout, c.Recycle = minIdle, 10*time.Minute, 0
			})
			synctest.Wait()
			fakedb.Warm(t, p.DB, 10)
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if n := d.OpenConns(); n != 10 {
				t.Errorf("MinIdle=%d: %d open at IdleTimeout, want all 10", minIdle, n)
			}
			labtest.CheckStats(t, d, p)
			time.Sleep(2 * time.Second)
			labtest.CheckStats(t, d, p)
			for range 24 {
				if n := d.OpenConns(); n != minIdle {
					t.Fatalf("MinIdle=%d: %d open after IdleTimeout", minIdle, n)
				}
				time.Sleep(5 * time.Minute)
				labtest.CheckStats(t, d, p)
			}
			if n := d.Connects.Load(); n != 10 {
				t.Errorf("MinIdle=%d: %d dials, want the first 10: what is there is kept", minIdle, n)
			}
			if d.Pings.Load() < 10*19 {
				t.Error("they were not pinged: the test shows nothing")
			}
			d.CheckClosed(t, p)
		})
	}
}

// Open neither dials nor waits. What MinIdle asks for is opened behind it, and
// callers take it without dialling; what they take is made up for.
func TestMinIdleIsOpenedAheadOfDemand(t *testing.T) {
	for _, tt := range []struct {
		name   string
		within time.Duration
		change func(*livepool.Config)
	}{
		{"defaults", 30 * time.Second, func(*livepool.Config) {}},
		{"keep-alive every 500ms", 500 * time.Millisecond, func(c *livepool.Config) { c.KeepAlive = 500 * time.Millisecond }},
		{"no keep-alive and no age limit", 30 * time.Second, func(c *livepool.Config) { c.KeepAlive, c.Recycle = 0, 0 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakedb.RecordingDB{}
				const dial = 100 * time.Millisecond
				d.OnConnect = func(context.Context, int64) error { time.Sleep(dial); return nil }
				start := time.Now()
				p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.MinIdle = 5; tt.change(c) })
				if took := time.Since(start); took != 0 {
					t.Errorf("Open took %s", took)
				}
				time.Sleep(2 * dial) // four at a time
				labtest.CheckStats(t, d, p)
				if s := p.Stats(); s.Idle != 5 || s.OpenConnections != 5 {
					t.Fatalf("%d idle, %d open, want 5", s.Idle, s.OpenConnections)
				}
				begun := time.Now()
				held, _ := fakedb.Take(t, p.DB, 5)
				if took := time.Since(begun); took != 0 {
					t.Errorf("callers waited for %s while five were ready", took)
				}
				time.Sleep(tt.within + 2*dial)
				labtest.CheckStats(t, d, p)
				if s := p.Stats(); s.Idle != 5 || s.InUse != 5 {
					t.Errorf("after five were taken: %d idle, %d in use, want 5 and 5", s.Idle, s.InUse)
				}
				more, _ := fakedb.Take(t, p.DB, 3)
				time.Sleep(tt.within + 2*dial)
				labtest.CheckStats(t, d, p)
				if s := p.Stats(); s.Idle != 2 || s.InUse != 8 {
					t.Errorf("at eight in use: %d idle, %d in use, want 2 and 8, which is PoolSize", s.Idle, s.InUse)
				}
				fakedb.GiveBack(append(held, more...))
				time.Sleep(tt.within)
				labtest.CheckStats(t, d, p)
				if n := d.Connects.Load(); n != 10 || d.OpenConns() != 10 {
					t.Errorf("%d dials, %d open, want 10: nothing was in want of more", n, d.OpenConns())
				}
				d.CheckClosed(t, p)
			})
		})
	}
}

// A unit that finds at the checkout that its connection has died gets one that is ready, and
// waits for no dial.
func TestUnitWhoseConnectionDiedTakesWhatIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		const dial = 100 * time.Millisecond
		d.OnConnect = func(context.Context, int64) error { time.Sleep(dial); return nil }
		p := labtest.OpenRecording(t, d, func(c *livepool.Config) {
			c.MinIdle, c.PrePing, c.KeepAlive = 2, livepool.PrePingAlways, 0
		})
		time.Sleep(2 * dial)
		held, ids := fakedb.Take(t, p.DB, 1) // one of the two is the sql.DB's now
		fakedb.GiveBack(held)
		for _, c := range d.Conns() {
			c.Dead.Store(c.ID == ids[0])
		}
		begun := time.Now()
		if err := p.WithSession(t.Context(), labtest.Work); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("it waited for %s while a connection was ready", took)
		}
		if p.Stats().Deaths != 1 {
			t.Error("no connection has died: the test shows nothing")
		}
		d.CheckClosed(t, p)
	})
}

// All five die, and nobody calls: five fresh ones are there within a keep-alive
// interval, and the time of a ping if the death is a silent one.
func TestMinIdleIsRestoredAfterAMassDeath(t *testing.T) {
	for _, tt := range []struct {
		name   string
		onPing func(context.Context, *fakedb.Conn) error
		within time.Duration
		used   bool // they have been a caller's before
	}{
		{"hung up", nil, 500 * time.Millisecond, false},
		{"hung up after use", nil, 500 * time.Millisecond, true},
		{"black hole", fakedb.BlackHole, 1500 * time.Millisecond, false},
		{"black hole after use", fakedb.BlackHole, 1500 * time.Millisecond, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakedb.RecordingDB{}
				d.OnPing = tt.onPing
				p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.MinIdle, c.KeepAlive = 5, 500*time.Millisecond })
				synctest.Wait()
				if tt.used {
					fakedb.Warm(t, p.DB, 5)
				}
				time.Sleep(time.Minute + 123*time.Millisecond)
				synctest.Wait()
				dials := d.Connects.Load()
				if dials != 5 {
					t.Fatalf("%d dials, want 5", dials)
				}
				d.Kill()
				time.Sleep(tt.within)
				synctest.Wait()
				fresh := 0
				for _, c := range d.DB.Conns()[dials:] {
					if !c.Closed.Load() && !c.Dead.Load() {
						fresh++
					}
				}
				if fresh != 5 || d.Connects.Load() != 10 {
					t.Errorf("%d fresh connections, %d dials, want 5 and 10", fresh, d.Connects.Load())
				}
				time.Sleep(time.Second) // in which those that fell silent could still answer
				synctest.Wait()
				if d.OpenConns() != 5 || d.Connects.Load() != 10 {
					t.Errorf("%d fresh connections, %d open, %d dials, want 5, 5 and 10", fresh, d.OpenConns(), d.Connects.Load())
				}
				labtest.CheckStats(t, d, p)
				held, _ := fakedb.Take(t, p.DB, 5)
				if n := d.Connects.Load(); n != 10 {
					t.Errorf("callers dialled %d", n-10)
				}
				fakedb.GiveBack(held)
				if s := p.Stats(); s.Swept != 5 {
					t.Errorf("%d swept, want 5", s.Swept)
				}
				d.CheckClosed(t, p)
			})
		})
	}
}

// A server that refuses is not stormed: four dials a second, and the five that
// MinIdle asks for soon after it takes connections again.
func TestMinIdleBacksOff(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		most int64
	}{
		{"unreachable", driver.ErrBadConn, 60 + 4},
		{"refusing", &mysql.MySQLError{Number: 1040, Message: "Too many connections"}, 4 * 63},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakedb.RecordingDB{}
				var up atomic.Bool
				d.OnConnect = func(context.Context, int64) error {
					if up.Load() {
						return nil
					}
					return tt.err
				}
				p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.MinIdle = 5 })
				time.Sleep(time.Minute)
				synctest.Wait()
				n := d.Connects.Load()
				if n > tt.most || n < 30 {
					t.Errorf("%d dials in a minute, want at most %d", n, tt.most)
				}
				labtest.CheckStats(t, d, p)
				up.Store(true)
				time.Sleep(2 * time.Second)
				if n := d.OpenConns(); n != 5 {
					t.Errorf("%d open two seconds after it was up, want 5", n)
				}
				labtest.CheckStats(t, d, p)
				d.CheckClosed(t, p)
			})
		})
	}
}

// What MinIdle opens counts: however the callers come, no more are open, or
// being opened, than PoolSize and MaxOverflow allow, but for those that were on
// their way when callers came who did not wait for them.
func TestMinIdleKeepsTheLimit(t *testing.T) {
	const limit = 5
	for _, tt := range []struct {
		name string
		more int // than the limit, for a moment
		play func(t *testing.T, d *fakedb.RecordingDB, p *livepool.Pool)
	}{
		{"callers dial at the same time as the maintainer", 2, func(t *testing.T, d *fakedb.RecordingDB, p *livepool.Pool) {
			held := labtest.TakeConcurrently(t, p, limit)
			fakedb.GiveBack(held)
		}},
		{"what is ready is being pinged", 0, func(t *testing.T, d *fakedb.RecordingDB, p *livepool.Pool) {
			time.Sleep(29 * time.Second)
			held, _ := fakedb.Take(t, p.DB, limit-2)
			for p.Stats().OpenConnections < limit {
				time.Sleep(time.Millisecond)
			}
			for pings := d.Pings.Load(); d.Pings.Load() < pings+2; {
				time.Sleep(time.Millisecond)
			}
			fakedb.GiveBack(append(held, labtest.TakeConcurrently(t, p, 2)...))
		}},
		{"random", 0, func(t *testing.T, d *fakedb.RecordingDB, p *livepool.Pool) {
			var wg sync.WaitGroup
			for i := range 12 {
				r := rand.New(rand.NewPCG(7, uint64(i)))
				wg.Go(func() {
					for range 200 {
						time.Sleep(time.Duration(r.Int64N(int64(10 * time.Second))))
						held, _ := fakedb.Take(t, p.DB, 1)
						time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
						held[0].Close()
					}
				})
			}
			wg.Wait()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakedb.RecordingDB{}
				d.OnConnect = func(context.Context, int64) error { time.Sleep(50 * time.Millisecond); return nil }
				d.OnPing = func(context.Context, *fakedb.Conn) error { time.Sleep(300 * time.Millisecond); return nil }
				p := labtest.OpenRecording(t, d, func(c *livepool.Config) {
					c.PoolSize, c.MaxOverflow, c.MinIdle, c.Recycle, c.IdleTimeout = limit, 0, 2, 0, time.Minute
				})
				tt.play(t, d, p)
				time.Sleep(5 * time.Minute)
				labtest.CheckStats(t, d, p)
				if n := d.Peak.Load(); n > int64(limit+tt.more) {
					t.Errorf("%d connections were open or being opened at a time, the limit is %d", n, limit+tt.more)
				}
				if n := d.OpenConns(); n < 2 || n > limit {
					t.Errorf("%d open at the end, want MinIdle to PoolSize", n)
				}
				d.CheckClosed(t, p)
			})
		})
	}
}

// Recycle opens as many as it closes, also where MinIdle would ask for them.
func TestRecycleAndMinIdleDoNotOpenTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		d.OnConnect = func(context.Context, int64) error { time.Sleep(100 * time.Millisecond); return nil }
		p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.MinIdle, c.Recycle = 6, 0 })
		time.Sleep(time.Second)
		fakedb.Warm(t, p.DB, 6) // they are database/sql's now
		p.Recycle()
		time.Sleep(5 * time.Second)
		labtest.CheckStats(t, d, p)
		if n := d.Connects.Load(); n != 12 || d.OpenConns() != 6 {
			t.Errorf("%d dials, %d open, want six replaced by six", n, d.OpenConns())
		}
		d.CheckClosed(t, p)
	})
}
