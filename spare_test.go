package livepool_test

// What MinIdle keeps ready, and what IdleTimeout leaves of it.

import (
	"context"
	"database/sql/driver"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// IdleTimeout closes what nobody has used for so long (database/sql looks once
// a second), whatever pings there were meanwhile, but for MinIdle.
func TestIdleTimeoutLeavesMinIdle(t *testing.T) {
	for _, minIdle := range []int{0, 3} {
		synctest.Test(t, func(t *testing.T) {
			d := &diary{}
			p := openDiary(t, d, func(c *livepool.Config) {
				c.MinIdle, c.IdleTimeout, c.Recycle = minIdle, 10*time.Minute, 0
			})
			synctest.Wait()
			warm(t, p.DB, 10)
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if n := d.open(); n != 10 {
				t.Errorf("MinIdle=%d: %d open at IdleTimeout, want all 10", minIdle, n)
			}
			d.tellsTruth(t, p)
			time.Sleep(2 * time.Second)
			d.tellsTruth(t, p)
			for range 24 {
				if n := d.open(); n != minIdle {
					t.Fatalf("MinIdle=%d: %d open after IdleTimeout", minIdle, n)
				}
				time.Sleep(5 * time.Minute)
				d.tellsTruth(t, p)
			}
			if n := d.connects.Load(); n != 10 {
				t.Errorf("MinIdle=%d: %d dials, want the first 10: what is there is kept", minIdle, n)
			}
			if d.pings.Load() < 10*19 {
				t.Error("they were not pinged: the test shows nothing")
			}
			d.closed(t, p)
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
				d := &diary{}
				const dial = 100 * time.Millisecond
				d.onConnect = func(context.Context, int64) error { time.Sleep(dial); return nil }
				start := time.Now()
				p := openDiary(t, d, func(c *livepool.Config) { c.MinIdle = 5; tt.change(c) })
				if took := time.Since(start); took != 0 {
					t.Errorf("Open took %s", took)
				}
				time.Sleep(2 * dial) // four at a time
				d.tellsTruth(t, p)
				if s := p.Stats(); s.Idle != 5 || s.OpenConnections != 5 {
					t.Fatalf("%d idle, %d open, want 5", s.Idle, s.OpenConnections)
				}
				begun := time.Now()
				held, _ := takes(t, p.DB, 5)
				if took := time.Since(begun); took != 0 {
					t.Errorf("callers waited for %s while five were ready", took)
				}
				time.Sleep(tt.within + 2*dial)
				d.tellsTruth(t, p)
				if s := p.Stats(); s.Idle != 5 || s.InUse != 5 {
					t.Errorf("after five were taken: %d idle, %d in use, want 5 and 5", s.Idle, s.InUse)
				}
				more, _ := takes(t, p.DB, 3)
				time.Sleep(tt.within + 2*dial)
				d.tellsTruth(t, p)
				if s := p.Stats(); s.Idle != 2 || s.InUse != 8 {
					t.Errorf("at eight in use: %d idle, %d in use, want 2 and 8, which is PoolSize", s.Idle, s.InUse)
				}
				giveBack(append(held, more...))
				time.Sleep(tt.within)
				d.tellsTruth(t, p)
				if n := d.connects.Load(); n != 10 || d.open() != 10 {
					t.Errorf("%d dials, %d open, want 10: nothing was in want of more", n, d.open())
				}
				d.closed(t, p)
			})
		})
	}
}

// All five die, and nobody calls: five fresh ones are there within a keep-alive
// interval, and the time of a ping if the death is a silent one.
func TestMinIdleIsRestoredAfterAMassDeath(t *testing.T) {
	for _, tt := range []struct {
		name   string
		onPing func(context.Context, *fakeConn) error
		within time.Duration
		used   bool // they have been a caller's before
	}{
		{"hung up", nil, 500 * time.Millisecond, false},
		{"hung up after use", nil, 500 * time.Millisecond, true},
		{"black hole", blackHole, 1500 * time.Millisecond, false},
		{"black hole after use", blackHole, 1500 * time.Millisecond, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &diary{}
				d.onPing = tt.onPing
				p := openDiary(t, d, func(c *livepool.Config) { c.MinIdle, c.KeepAlive = 5, 500*time.Millisecond })
				synctest.Wait()
				if tt.used {
					warm(t, p.DB, 5)
				}
				time.Sleep(time.Minute + 123*time.Millisecond)
				synctest.Wait()
				dials := d.connects.Load()
				if dials != 5 {
					t.Fatalf("%d dials, want 5", dials)
				}
				d.kill()
				time.Sleep(tt.within)
				synctest.Wait()
				fresh := 0
				for _, c := range d.fake.all()[dials:] {
					if !c.closed.Load() && !c.dead.Load() {
						fresh++
					}
				}
				if fresh != 5 || d.connects.Load() != 10 {
					t.Errorf("%d fresh connections, %d dials, want 5 and 10", fresh, d.connects.Load())
				}
				time.Sleep(time.Second) // in which those that fell silent could still answer
				synctest.Wait()
				if d.open() != 5 || d.connects.Load() != 10 {
					t.Errorf("%d fresh connections, %d open, %d dials, want 5, 5 and 10", fresh, d.open(), d.connects.Load())
				}
				d.tellsTruth(t, p)
				held, _ := takes(t, p.DB, 5)
				if n := d.connects.Load(); n != 10 {
					t.Errorf("callers dialled %d", n-10)
				}
				giveBack(held)
				if s := p.Stats(); s.Swept != 5 {
					t.Errorf("%d swept, want 5", s.Swept)
				}
				d.closed(t, p)
			})
		})
	}
}

// Five are kept ready. All die, nobody calls, and five fresh ones are there
// soon: in under a second, but a machine under load may take its time.
func TestMinIdleIsRestoredOnRealServers(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, death := range idleDeaths {
			if death.name == "wait_timeout" {
				continue // they are kept alive
			}
			t.Run(death.name, func(t *testing.T) {
				via := front(t, s)
				p := open(t, s.DSNVia(via.Addr()), "pool_size=5&pool_min_idle=5&pool_keepalive=500ms&pool_ping_timeout=500ms&pool_connect_timeout=2s")
				full := func() bool { s := p.Stats(); return s.Idle >= 5 && s.OpenConnections >= 5 }
				eventually(t, "five are ready", full)
				opened := p.Stats().Opened
				before := idsOf(t, p, 5)
				if n := p.Stats().Opened - opened; n != 0 {
					t.Errorf("callers dialled %d with five ready", n)
				}
				start := time.Now()
				death.do(t, s, via)
				eventually(t, "they are gone and five others are ready", func() bool {
					s := p.Stats()
					return s.Deaths > 0 && s.Opened >= 10 && full() && s.OpenConnections == 5
				})
				t.Logf("restored after %s", time.Since(start).Round(time.Millisecond))
				opened = p.Stats().Opened // side connections, for a KILL, do not count
				after := idsOf(t, p, 5)
				if slices.ContainsFunc(after, func(id int64) bool { return slices.Contains(before, id) }) && !strings.Contains(death.name, "restart") {
					t.Errorf("connections %v, %v before", after, before)
				}
				if n := p.Stats().Opened - opened; n != 0 {
					t.Errorf("callers dialled %d with five ready again", n)
				}
			})
		}
	})
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
				d := &diary{}
				var up atomic.Bool
				d.onConnect = func(context.Context, int64) error {
					if up.Load() {
						return nil
					}
					return tt.err
				}
				p := openDiary(t, d, func(c *livepool.Config) { c.MinIdle = 5 })
				time.Sleep(time.Minute)
				synctest.Wait()
				n := d.connects.Load()
				if n > tt.most || n < 30 {
					t.Errorf("%d dials in a minute, want at most %d", n, tt.most)
				}
				d.tellsTruth(t, p)
				up.Store(true)
				time.Sleep(2 * time.Second)
				if n := d.open(); n != 5 {
					t.Errorf("%d open two seconds after it was up, want 5", n)
				}
				d.tellsTruth(t, p)
				d.closed(t, p)
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
		play func(t *testing.T, d *diary, p *livepool.Pool)
	}{
		{"callers dial at the same time as the maintainer", 2, func(t *testing.T, d *diary, p *livepool.Pool) {
			held := concurrently(t, p, limit)
			giveBack(held)
		}},
		{"what is ready is being pinged", 0, func(t *testing.T, d *diary, p *livepool.Pool) {
			time.Sleep(29 * time.Second)
			held, _ := takes(t, p.DB, limit-2)
			for p.Stats().OpenConnections < limit {
				time.Sleep(time.Millisecond)
			}
			for pings := d.pings.Load(); d.pings.Load() < pings+2; {
				time.Sleep(time.Millisecond)
			}
			giveBack(append(held, concurrently(t, p, 2)...))
		}},
		{"random", 0, func(t *testing.T, d *diary, p *livepool.Pool) {
			var wg sync.WaitGroup
			for i := range 12 {
				r := rand.New(rand.NewPCG(7, uint64(i)))
				wg.Go(func() {
					for range 200 {
						time.Sleep(time.Duration(r.Int64N(int64(10 * time.Second))))
						held, _ := takes(t, p.DB, 1)
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
				d := &diary{}
				d.onConnect = func(context.Context, int64) error { time.Sleep(50 * time.Millisecond); return nil }
				d.onPing = func(context.Context, *fakeConn) error { time.Sleep(300 * time.Millisecond); return nil }
				p := openDiary(t, d, func(c *livepool.Config) {
					c.PoolSize, c.MaxOverflow, c.MinIdle, c.Recycle, c.IdleTimeout = limit, 0, 2, 0, time.Minute
				})
				tt.play(t, d, p)
				time.Sleep(5 * time.Minute)
				d.tellsTruth(t, p)
				if n := d.most.Load(); n > int64(limit+tt.more) {
					t.Errorf("%d connections were open or being opened at a time, the limit is %d", n, limit+tt.more)
				}
				if n := d.open(); n < 2 || n > limit {
					t.Errorf("%d open at the end, want MinIdle to PoolSize", n)
				}
				d.closed(t, p)
			})
		})
	}
}

// Recycle opens as many as it closes, also where MinIdle would ask for them.
func TestRecycleAndMinIdleDoNotOpenTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		d.onConnect = func(context.Context, int64) error { time.Sleep(100 * time.Millisecond); return nil }
		p := openDiary(t, d, func(c *livepool.Config) { c.MinIdle, c.Recycle = 6, 0 })
		time.Sleep(time.Second)
		warm(t, p.DB, 6) // they are database/sql's now
		p.Recycle()
		time.Sleep(5 * time.Second)
		d.tellsTruth(t, p)
		if n := d.connects.Load(); n != 12 || d.open() != 6 {
			t.Errorf("%d dials, %d open, want six replaced by six", n, d.open())
		}
		d.closed(t, p)
	})
}
