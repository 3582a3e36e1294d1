package livepool_test

// What the maintainer promises, as seen from outside: exactly, in fake time, on
// a driver that keeps a diary; and on real servers.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/proxy"
	"github.com/livepool/livepool/internal/server"
	"github.com/livepool/livepool/internal/server/servertest"
)

// diary is a fake database that notes when its connections are opened, pinged,
// used and closed, and what a driver must never see: a connection closed twice,
// used after its end, or by two at a time. Its zero value works.
type diary struct {
	fake
	mu    sync.Mutex
	lives map[int64]*life

	dialling, most atomic.Int64 // connections open or being opened: now, and at most ever
	twice          atomic.Int64
	overlaps       atomic.Int64
	afterlife      atomic.Int64
	pingedInUse    atomic.Int64
	statements     atomic.Int64 // prepared, less closed on a living connection
}

// life is one connection's. Times are since the test's start.
type life struct {
	born, died time.Time // died is zero while it lives
	pings      []time.Time
	spoke      time.Time // its last answer
	inUse      bool
	returned   time.Time
}

type diaryConn struct {
	*fakeConn
	d    *diary
	life *life
	busy atomic.Bool
}

func (d *diary) Connect(ctx context.Context) (driver.Conn, error) {
	if n := d.dialling.Add(1); n > d.most.Load() {
		d.most.Store(n)
	}
	dc, err := d.fake.Connect(ctx)
	if err != nil {
		d.dialling.Add(-1)
		return nil, err
	}
	c := &diaryConn{fakeConn: dc.(*fakeConn), d: d, life: &life{born: time.Now(), spoke: time.Now()}}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lives == nil {
		d.lives = map[int64]*life{}
	}
	d.lives[c.id] = c.life
	return c, nil
}

// all are copies of the lives, in the order of their births.
func (d *diary) all() (lives []life) {
	conns := d.fake.all()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range conns {
		lives = append(lives, *d.lives[c.id])
	}
	return lives
}

// isHeld notes that a caller has the connection, or has returned it.
func (d *diary) isHeld(id int64, held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lives[id].inUse, d.lives[id].returned = held, time.Now()
}

// busily runs f as something that the driver does on the connection.
func (c *diaryConn) busily(f func() error) error {
	if c.closed.Load() {
		c.d.afterlife.Add(1)
	}
	if c.busy.Swap(true) {
		c.d.overlaps.Add(1)
	}
	err := f()
	c.busy.Store(false)
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if err == nil {
		c.life.spoke = time.Now()
	}
	return err
}

func (c *diaryConn) Close() error {
	if c.closed.Load() {
		c.d.twice.Add(1)
	} else {
		c.d.dialling.Add(-1)
	}
	if c.busy.Load() {
		c.d.overlaps.Add(1)
	}
	c.d.mu.Lock()
	c.life.died = time.Now()
	c.d.mu.Unlock()
	return c.fakeConn.Close()
}

func (c *diaryConn) Ping(ctx context.Context) error {
	c.d.mu.Lock()
	if c.life.inUse {
		c.d.pingedInUse.Add(1)
	}
	c.life.pings = append(c.life.pings, time.Now())
	c.d.mu.Unlock()
	return c.busily(func() error { return c.fakeConn.Ping(ctx) })
}

func (c *diaryConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	err = c.busily(func() error { res, err = c.fakeConn.ExecContext(ctx, query, args); return err })
	return res, err
}

func (c *diaryConn) Prepare(query string) (s driver.Stmt, err error) {
	err = c.busily(func() error { s, err = c.fakeConn.Prepare(query); return err })
	if err != nil {
		return nil, err
	}
	c.d.statements.Add(1)
	return &diaryStmt{s, c}, nil
}

func (c *diaryConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return &noopRows{}, nil
}

type diaryStmt struct {
	driver.Stmt
	c *diaryConn
}

func (s *diaryStmt) Exec([]driver.Value) (driver.Result, error) {
	return s.c.ExecContext(context.Background(), "prepared", nil)
}

func (s *diaryStmt) Close() error {
	return s.c.busily(func() error {
		if !s.c.closed.Load() {
			s.c.d.statements.Add(-1)
		}
		return s.Stmt.Close()
	})
}

// isSound fails the test if a driver saw what none must see.
func (d *diary) isSound(t *testing.T) {
	t.Helper()
	for what, n := range map[string]*atomic.Int64{
		"closed twice": &d.twice, "used by two at a time": &d.overlaps,
		"used after the end": &d.afterlife, "pinged in use": &d.pingedInUse,
	} {
		if n := n.Load(); n != 0 {
			t.Errorf("%d times a connection was %s", n, what)
		}
	}
}

// openDiary opens a pool of the defaults as changed by change.
func openDiary(t testing.TB, d *diary, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg := livepool.NewConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	if change != nil {
		change(cfg)
	}
	p, err := livepool.OpenConnector(d, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// closed closes the pool, after which nothing is open.
func (d *diary) closed(t *testing.T, p *livepool.Pool) {
	t.Helper()
	p.Close()
	if n := d.open(); n != 0 {
		t.Errorf("%d connections open after Close", n)
	}
	d.isSound(t)
}

// tellsTruth compares the pool's own account with the database's.
func (d *diary) tellsTruth(t *testing.T, p *livepool.Pool) {
	t.Helper()
	synctest.Wait()
	s := p.Stats()
	if n := d.open(); s.OpenConnections != n || s.Idle != n-s.InUse {
		t.Errorf("%d connections are open; the pool says %d, of which %d in use and %d idle", n, s.OpenConnections, s.InUse, s.Idle)
	}
}

// takes takes n connections, uses each and returns which they are.
func takes(t testing.TB, db *sql.DB, n int) (held []*sql.Conn, ids []int64) {
	t.Helper()
	for range n {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held, ids = append(held, c), append(ids, servedBy(t, c))
	}
	return held, ids
}

func giveBack(held []*sql.Conn) {
	for _, c := range held {
		c.Close()
	}
}

// Ten connections are left alone for an hour. Each is pinged at every thirtieth
// second of its silence, and not otherwise; each is replaced when its own time
// is up, by one that was opened a little before; a caller then finds them.
func TestAnHourOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		p := openDiary(t, d, func(c *livepool.Config) { c.Recycle, c.IdleTimeout = 20*time.Minute, 0 })
		start := time.Now()
		warm(t, p.DB, 10)
		for range 3600 {
			time.Sleep(time.Second)
			synctest.Wait()
			early := 0 // successors, opened a quarter of a second before they are needed
			for _, l := range d.all() {
				if l.died.IsZero() && l.born.After(start) && time.Since(l.born) < 250*time.Millisecond {
					early++
				}
			}
			if open, told := d.open(), p.Stats().OpenConnections; told != 10 || open != 10+early {
				t.Fatalf("after %s: %d open, the pool says %d, %d of the others wait to take over", time.Since(start), open, told, early)
			}
		}
		dials := d.connects.Load()
		held, _ := takes(t, p.DB, 10)
		giveBack(held)
		if n := d.connects.Load(); n != dials {
			t.Errorf("%d callers had to dial", n-dials)
		}
		d.closed(t, p)

		var deaths, births []time.Duration
		replaced := 0
		for i, l := range d.all() {
			if i >= 10 {
				births = append(births, l.born.Sub(start)+250*time.Millisecond)
			}
			if l.died.Sub(start) < time.Hour {
				replaced++
				deaths = append(deaths, l.died.Sub(start))
				if age := l.died.Sub(l.born); age < 16*time.Minute || age > 20*time.Minute {
					t.Errorf("connection %d was closed at the age of %s, want 16m to 20m", i+1, age)
				}
			}
			until := min(l.died.Sub(l.born), start.Add(time.Hour).Sub(l.born))
			var want []time.Time
			for at := 30 * time.Second; at < until; at += 30 * time.Second {
				want = append(want, l.born.Add(at))
			}
			got := slices.DeleteFunc(slices.Clone(l.pings), func(at time.Time) bool { return !at.Before(start.Add(time.Hour)) })
			// Rounds are a millisecond apart, so that each ping may be one late,
			// and the next is counted from there.
			if !slices.EqualFunc(got, want, func(got, want time.Time) bool {
				late := got.Sub(want)
				return late >= 0 && late <= want.Sub(l.born)/(30*time.Second)*time.Millisecond
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
				d := &diary{}
				const (
					longest = 20 * time.Second     // that a caller holds a connection
					soon    = 30 * time.Second / 4 // until a connection that was in use is looked at
				)
				p := openDiary(t, d, func(c *livepool.Config) {
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
							held, ids := takes(t, p.DB, 1)
							d.isHeld(ids[0], true)
							time.Sleep(time.Duration(r.Int64N(int64(longest))))
							d.isHeld(ids[0], false)
							held[0].Close()
						}
					})
				}
				for time.Since(start) < time.Hour {
					time.Sleep(977 * time.Millisecond)
					synctest.Wait()
					now := time.Now()
					open, early := 0, 0
					for i, l := range d.all() {
						if !l.died.IsZero() {
							continue
						}
						open++
						if now.Sub(l.born) < 6*time.Second { // a hundredth of Recycle at most
							early++
						}
						if l.inUse {
							continue
						}
						if now.Sub(l.spoke) > 30*time.Second && now.Sub(l.returned) > soon {
							t.Errorf("after %s: connection %d has been silent for %s", now.Sub(start), i+1, now.Sub(l.spoke))
						}
						// The clock is not read at a return, only by the maintainer's next look.
						if age := now.Sub(l.born); age > 10*time.Minute && now.Sub(l.returned) > soon {
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
				t.Logf("%d dials, %d pings, at most %d open", d.connects.Load(), d.pings.Load(), d.most.Load())
				d.closed(t, p)
			})
		})
	}
}

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
				if fresh != 5 || d.open() != 5 || d.connects.Load() != 10 {
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

// concurrently has n callers take a connection each at the same time.
func concurrently(t testing.TB, p *livepool.Pool, n int) []*sql.Conn {
	held := make([]*sql.Conn, n)
	var wg sync.WaitGroup
	for i := range held {
		wg.Go(func() {
			c, _ := takes(t, p.DB, 1)
			held[i] = c[0]
		})
	}
	wg.Wait()
	return held
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

// A replacement that the server refuses is not tried again at once: the server
// may refuse because too many try. In real time, since a storm stops the fake one.
func TestRefusedReplacementIsNoStorm(t *testing.T) {
	d := &diary{}
	d.onConnect = func(_ context.Context, n int64) error {
		if n > 1 {
			return &mysql.MySQLError{Number: 1203, Message: "User has too many active connections"}
		}
		return nil
	}
	p := openDiary(t, d, func(c *livepool.Config) {
		c.Recycle, c.RecycleJitter, c.KeepAlive = 3*time.Second, 0, 500*time.Millisecond
	})
	servedBy(t, p)
	time.Sleep(3200 * time.Millisecond)
	p.Close()
	if n := d.connects.Load() - 1; n > 8 || n < 1 {
		t.Errorf("one connection's replacement was dialled %d times in %s", n, 30*time.Millisecond)
	}
}

// Twenty idle connections are dead. One caller finds out and pays for it, with
// no more than one ping that waits in vain; meanwhile the maintainer sweeps the
// others, and no later caller pays for any.
func TestOneCallerPaysForAMassDeath(t *testing.T) {
	const dial = time.Millisecond
	for _, tt := range []struct {
		name   string
		onPing func(context.Context, *fakeConn) error
		cost   time.Duration
		pings  int64 // by callers; database/sql has two tries at what is idle
	}{
		{"black hole", blackHole, time.Second, 1},
		{"hung up", nil, 0, 2},
		{"hung up, and far away", func(_ context.Context, c *fakeConn) error {
			time.Sleep(100 * time.Millisecond)
			if c.dead.Load() {
				return errGone
			}
			return nil
		}, 200 * time.Millisecond, 2},
	} {
		for _, keepAlive := range []time.Duration{0, 30 * time.Second} {
			t.Run(fmt.Sprintf("%s, keep-alive %s", tt.name, keepAlive), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := &diary{}
					d.onPing = tt.onPing
					d.onConnect = func(context.Context, int64) error { time.Sleep(dial); return nil }
					p := openDiary(t, d, func(c *livepool.Config) { c.PoolSize, c.KeepAlive = 20, keepAlive })
					warm(t, p.DB, 20)
					time.Sleep(10 * time.Second)
					d.kill()
					start := time.Now()
					servedBy(t, p)
					took := time.Since(start)
					s := p.Stats()
					if paid := s.Pinged - s.KeptAlive; took > tt.cost+dial || paid > tt.pings {
						t.Errorf("the caller waited for %s and %d pings, want %s and at most %d", took, paid, tt.cost, tt.pings)
					}
					time.Sleep(time.Second) // the sweep, four at a time
					synctest.Wait()
					for i, l := range d.all()[:20] {
						if l.died.IsZero() {
							t.Errorf("connection %d is dead and has not been swept", i+1)
						}
					}
					d.tellsTruth(t, p)
					paid := p.Stats().Pinged
					start = time.Now()
					giveBack(concurrently(t, p, 20))
					if took := time.Since(start); took > tt.cost/2+dial {
						t.Errorf("callers after that waited for %s", took)
					}
					if n := p.Stats().Pinged - paid; n > 1 { // the first one's connection is a second old
						t.Errorf("callers after that waited for %d pings", n)
					}
					if s := p.Stats(); s.Swept < 17 || s.Deaths == 0 {
						t.Errorf("%d swept, %d deaths", s.Swept, s.Deaths)
					}
					d.closed(t, p)
				})
			})
		}
	}
}

// Keep-alive pings under way in a black hole do not add up for a caller: he is
// not made to wait for the second when the first has told of the silence.
func TestPingsUnderWayDoNotAddUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		d.onPing = blackHole
		p := openDiary(t, d, nil)
		held, _ := takes(t, p.DB, 2)
		time.Sleep(900 * time.Millisecond)
		servedBy(t, held[1]) // its ping is due 900ms after the other's
		held[1].Close()
		held[0].Close() // at the top
		d.kill()
		time.Sleep(30*time.Second - 899*time.Millisecond) // a millisecond into the first ping
		if n := d.pings.Load(); n != 1 {
			t.Fatalf("%d pings, want one under way", n)
		}
		start := time.Now()
		servedBy(t, p)
		if took := time.Since(start); took > time.Second {
			t.Errorf("a caller waited for %s, want at most PingTimeout", took)
		}
	})
}

// database/sql hands out what was returned last; the maintainer's pings change
// nothing about it.
func TestPingsDoNotReorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		p := openDiary(t, d, nil)
		held, ids := takes(t, p.DB, 5)
		for _, i := range []int{3, 0, 4, 1, 2} {
			time.Sleep(time.Second)
			servedBy(t, held[i])
			held[i].Close()
		}
		for range 4 {
			time.Sleep(40 * time.Second)
		}
		if d.pings.Load() < 20 {
			t.Fatalf("%d pings: the test shows nothing", d.pings.Load())
		}
		held, got := takes(t, p.DB, 5)
		if want := []int64{ids[2], ids[1], ids[4], ids[0], ids[3]}; !slices.Equal(got, want) {
			t.Errorf("handed out in the order %v, want %v", got, want)
		}
		giveBack(held)
		d.closed(t, p)
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
				d := &diary{}
				d.onPing = func(context.Context, *fakeConn) error { time.Sleep(300 * time.Millisecond); return nil }
				p := openDiary(t, d, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
				servedBy(t, p)
				time.Sleep(30*time.Second + 100*time.Millisecond)
				if n := d.pings.Load(); n != 1 {
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
				d.tellsTruth(t, p)
				if n, want := d.open(), int(tt.id); n != want {
					t.Errorf("%d open, want %d", n, want)
				}
				servedBy(t, p)
				d.closed(t, p)
			})
		})
	}
}

// The only connection goes from hand to hand: the maintainer comes between two
// callers for no longer than a ping takes, and costs no dial.
func TestMaintainerDoesNotKeepTheLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ping = 10 * time.Millisecond
		d := &diary{}
		d.onPing = func(context.Context, *fakeConn) error { time.Sleep(ping); return nil }
		p := openDiary(t, d, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.KeepAlive = 1, 0, 5*time.Millisecond })
		var wg sync.WaitGroup
		start := time.Now()
		for range 10 {
			wg.Go(func() {
				for range 10 {
					held, ids := takes(t, p.DB, 1)
					d.isHeld(ids[0], true)
					time.Sleep(time.Second) // silent, so that a ping is due
					d.isHeld(ids[0], false)
					held[0].Close()
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > 100*(time.Second+2*ping) {
			t.Errorf("a hundred turns of a second took %s", took)
		}
		if n := d.connects.Load(); n != 1 {
			t.Errorf("%d dials, want 1", n)
		}
		d.closed(t, p)
	})
}

// database/sql closes statements, and connections, under its own lock. During a
// ping neither waits; what is closed meanwhile is closed on the server after it.
func TestClosingDuringAPing(t *testing.T) {
	begin := func(t *testing.T, d *diary, ping time.Duration) (*livepool.Pool, *sql.Stmt) {
		d.onPing = func(context.Context, *fakeConn) error { time.Sleep(ping); return nil }
		p := openDiary(t, d, nil)
		s, err := p.Prepare("DO 1")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(30*time.Second + ping/2)
		if n := d.pings.Load(); n != 1 {
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
			d := &diary{}
			p, s := begin(t, d, 500*time.Millisecond)
			atOnce(t, "sql.Stmt.Close", func() { s.Close() })
			atOnce(t, "Stats", func() { p.Stats() })
			if n := d.statements.Load(); n != 1 {
				t.Error("the statement was closed in the middle of a ping")
			}
			time.Sleep(time.Second)
			if n := d.statements.Load(); n != 0 || d.open() != 1 {
				t.Errorf("%d statements left on the server, %d connections", n, d.open())
			}
			d.closed(t, p)
		})
	})
	// In real time: database/sql's own lock of the connection makes Stmt.Close wait here.
	t.Run("a statement, while a caller waits for the ping", func(t *testing.T) {
		d := &diary{}
		var pinging atomic.Bool
		answer := make(chan struct{})
		d.onPing = func(context.Context, *fakeConn) error {
			pinging.Store(true)
			<-answer
			return nil
		}
		p := openDiary(t, d, func(c *livepool.Config) { c.KeepAlive, c.PingTimeout = 100*time.Millisecond, time.Minute })
		s, err := p.Prepare("DO 1")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is being pinged", pinging.Load)
		var wg sync.WaitGroup
		wg.Go(func() { servedBy(t, p) })
		wg.Go(func() { time.Sleep(20 * time.Millisecond); s.Close() })
		time.Sleep(50 * time.Millisecond)
		another := make(chan struct{})
		go func() { servedBy(t, p); close(another) }()
		select {
		case <-another:
		case <-time.After(10 * time.Second):
			t.Error("another caller waits, too")
		}
		close(answer)
		wg.Wait()
		<-another
		eventually(t, "the statement is closed on the server", func() bool { return d.statements.Load() == 0 })
		d.closed(t, p)
	})
	t.Run("the connection", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &diary{}
			p, s := begin(t, d, 500*time.Millisecond)
			atOnce(t, "database/sql", func() { p.SetMaxIdleConns(-1) })
			time.Sleep(time.Second)
			d.tellsTruth(t, p)
			if d.open() != 0 {
				t.Error("it is still open")
			}
			s.Close()
			d.closed(t, p)
		})
	})
	t.Run("the pool", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &diary{}
			p, _ := begin(t, d, 500*time.Millisecond)
			start := time.Now()
			d.closed(t, p)
			if took := time.Since(start); took > 250*time.Millisecond {
				t.Errorf("Close took %s, want no longer than the ping", took)
			}
		})
	})
	t.Run("the pool, in a black hole", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &diary{}
			d.onPing = blackHole
			p := openDiary(t, d, func(c *livepool.Config) { c.MinIdle = 3 })
			warm(t, p.DB, 6)
			d.kill()
			time.Sleep(30*time.Second + time.Millisecond)
			start := time.Now()
			d.closed(t, p)
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
			d := &diary{}
			d.onConnect = func(ctx context.Context, _ int64) error {
				select {
				case <-time.After(100 * time.Millisecond):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			p := openDiary(t, d, func(c *livepool.Config) { c.MinIdle, c.RecycleJitter, c.IdleTimeout = 6, 0, 0 })
			if after >= time.Minute {
				warm(t, p.DB, 8)
			}
			time.Sleep(after)
			start := time.Now()
			d.closed(t, p)
			if took := time.Since(start); took != 0 {
				t.Errorf("Close after %s took %s", after, took)
			}
		})
	}
}

// lifeLog gathers what the pool says.
type lifeLog struct {
	mu      sync.Mutex
	records []slog.Record
}

func (l *lifeLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l *lifeLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *lifeLog) WithGroup(string) slog.Handler                    { return l }
func (l *lifeLog) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
	return nil
}

// about returns the records whose message contains s, as text.
func (l *lifeLog) about(s string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if strings.Contains(r.Message, s) {
			text := r.Message
			r.Attrs(func(a slog.Attr) bool { text += "\n" + a.String(); return true })
			found = append(found, text)
		}
	}
	return found
}

// Who holds a connection for longer than LeakAfter is reported, once, by name,
// with the stack of where he took it. Who returns it in time is not.
func TestLeaksAreReported(t *testing.T) {
	ways := []struct {
		name string
		take func(t *testing.T, p *livepool.Pool) (release func())
	}{
		{"sql.Conn", leakConn}, {"sql.Tx", leakTx}, {"sql.Rows", leakRows}, {"Session", leakSession},
	}
	for _, tt := range ways {
		for _, ready := range []string{"dialled", "idle", "ready", "waited for"} {
			t.Run(tt.name+", "+ready, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var log lifeLog
					d := &diary{}
					p := openDiary(t, d, func(c *livepool.Config) {
						c.LeakAfter, c.Logger, c.KeepAlive = 10*time.Second, slog.New(&log), 0
						c.PoolSize, c.MaxOverflow = 1, 0
						if ready == "ready" {
							c.MinIdle = 1
						}
					})
					time.Sleep(3 * time.Second)
					synctest.Wait()
					if ready == "idle" {
						servedBy(t, p)
					}
					if ready == "waited for" {
						held, _ := takes(t, p.DB, 1)
						time.AfterFunc(time.Second, func() { held[0].Close() })
					}
					reports := func() []string { synctest.Wait(); return log.about("LeakAfter") }

					release := tt.take(t, p)
					time.Sleep(10*time.Second - time.Nanosecond)
					if r := reports(); len(r) != 0 || p.Stats().Leaks != 0 {
						t.Errorf("reported before its time: %s", r)
					}
					release()
					time.Sleep(time.Minute)
					if r := reports(); len(r) != 0 || p.Stats().Leaks != 0 {
						t.Errorf("returned in time and reported: %s", r)
					}

					release = tt.take(t, p)
					time.Sleep(10*time.Second + time.Millisecond)
					if r := reports(); len(r) != 1 {
						t.Errorf("%d reports just after LeakAfter, want 1", len(r))
					}
					time.Sleep(time.Hour)
					r := reports()
					if len(r) != 1 || p.Stats().Leaks != 1 {
						t.Fatalf("%d reports, Stats says %d, want 1: %s", len(r), p.Stats().Leaks, r)
					}
					release()
					taker := "leak" + strings.TrimPrefix(tt.name, "sql.")
					for _, want := range []string{"held=10", "livepool_test." + taker, "life_test.go:"} {
						if !strings.Contains(r[0], want) {
							t.Errorf("the report lacks %q: %s", want, r[0])
						}
					}
					if named := strings.Contains(r[0], "unit=nightly report"); named != (tt.name == "Session") {
						t.Errorf("the unit's name: %s", r[0])
					}
					release = tt.take(t, p)
					time.Sleep(time.Minute)
					if n := len(reports()); n != 2 {
						t.Errorf("%d reports after the next leak, want 2", n)
					}
					release()
					d.closed(t, p)
				})
			})
		}
	}
}

func leakConn(t *testing.T, p *livepool.Pool) func() {
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return func() { c.Close() }
}

func leakTx(t *testing.T, p *livepool.Pool) func() {
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	return func() { tx.Rollback() }
}

func leakRows(t *testing.T, p *livepool.Pool) func() {
	rows, err := p.Query("SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	return func() { rows.Close() }
}

func leakSession(t *testing.T, p *livepool.Pool) func() {
	begun, finish, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "DO 1")
			close(begun)
			<-finish
			return err
		}, livepool.Name("nightly report"))
		if err != nil {
			t.Error(err)
		}
	}()
	<-begun
	return func() { close(finish); <-done }
}

// What the maintainer costs a pool at rest: its looks allocate next to nothing.
// Without LeakAfter a checkout allocates what plain database/sql does.
func TestMaintainerIsFrugal(t *testing.T) {
	p, err := livepool.OpenConnector(noop{}, func() *livepool.Config {
		c := livepool.NewConfig()
		c.KeepAlive, c.MinIdle = 100*time.Millisecond, 5
		return c
	}())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	time.Sleep(50 * time.Millisecond)
	var before, after runtime.MemStats
	pings := p.Stats().KeptAlive
	runtime.ReadMemStats(&before)
	time.Sleep(2 * time.Second)
	runtime.ReadMemStats(&after)
	pings = p.Stats().KeptAlive - pings
	perPing := float64(after.Mallocs-before.Mallocs) / float64(max(pings, 1))
	t.Logf("%d background pings: %.1f allocations and %.0f bytes each, all rounds included",
		pings, perPing, float64(after.TotalAlloc-before.TotalAlloc)/float64(max(pings, 1)))
	if pings < 50 || perPing > 60 {
		t.Errorf("%d pings, %.1f allocations each", pings, perPing)
	}

	plain, live := openNoop(t)
	take := func(db *sql.DB) func() {
		return func() {
			c, err := db.Conn(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	}
	watched, err := livepool.OpenConnector(noop{}, func() *livepool.Config { c := livepool.NewConfig(); c.LeakAfter = time.Hour; return c }())
	if err != nil {
		t.Fatal(err)
	}
	defer watched.Close()
	a, b, c := testing.AllocsPerRun(1000, take(plain)), testing.AllocsPerRun(1000, take(live)), testing.AllocsPerRun(1000, take(watched.DB))
	t.Logf("allocations of a checkout: plain %v, livepool %v, with LeakAfter %v", a, b, c)
	if b > a {
		t.Errorf("without LeakAfter a checkout allocates %v, plain database/sql %v", b, a)
	}
}

// ids asks n connections of a pool, held at the same time, who they are.
func idsOf(t testing.TB, p *livepool.Pool, n int) (ids []int64) {
	t.Helper()
	var held []*sql.Conn
	for range n {
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held, ids = append(held, c), append(ids, connectionID(t, c))
	}
	giveBack(held)
	slices.Sort(ids)
	return ids
}

// openLogged opens a pool whose log is kept.
func openLogged(t testing.TB, dsn, params string) (*livepool.Pool, *lifeLog) {
	t.Helper()
	cfg, err := livepool.ParseDSN(withParams(dsn, params))
	if err != nil {
		t.Fatal(err)
	}
	log := &lifeLog{}
	cfg.Logger = slog.New(log)
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, log
}

// Under a wait_timeout of two seconds idle connections live on: with a
// keep-alive that fits, and with the default, which livepool fits by itself and
// without a word. A setting that was chosen and cannot work is warned of, once.
func TestKeepAliveUnderAShortWaitTimeout(t *testing.T) {
	type trial struct {
		name   string
		params string
		warns  []string // nil: not at all
		dies   bool
		via    *proxy.Proxy
		pool   *livepool.Pool
		log    *lifeLog
		before []int64
		stats  livepool.Stats
	}
	var trials []*trial
	for _, kind := range server.Kinds() {
		s := servertest.Run(t, kind)
		for _, tt := range []*trial{
			{params: "pool_keepalive=500ms"},
			{params: ""},
			{params: "pool_keepalive=500ms&pool_min_idle=4"},
			{params: "pool_keepalive=60s", warns: []string{"KeepAlive (pool_keepalive) is 1m0s", "set it below 2s", "wait_timeout"}},
			{params: "pool_keepalive=0&pool_pre_ping=off", warns: []string{"pool_keepalive", "pool_pre_ping", "wait_timeout=2s"}, dies: true},
		} {
			tt.name, tt.via = fmt.Sprintf("%s, %q", kind, tt.params), countingProxy(t, s)
			tt.pool, tt.log = openLogged(t, s.DSNVia(tt.via.Addr()), "wait_timeout=2&"+tt.params)
			if strings.Contains(tt.params, "min_idle") {
				eventually(t, "four are ready", func() bool { return tt.pool.Stats().Idle == 4 })
			}
			trials = append(trials, tt)
		}
	}
	for range 10 {
		for _, tt := range trials {
			tt.before, tt.stats = idsOf(t, tt.pool, 4), tt.pool.Stats()
		}
		if stoodStill(10*time.Second) < 500*time.Millisecond { // nobody calls
			break
		}
	}
	for _, tt := range trials {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.dies {
				for range 3 {
					if after := idsOf(t, tt.pool, 4); !slices.Equal(tt.before, after) {
						t.Errorf("connections %v became %v", tt.before, after)
					}
				}
				if s := tt.pool.Stats(); s.Deaths != tt.stats.Deaths || s.Opened != tt.stats.Opened || s.KeptAlive < tt.stats.KeptAlive+4*10 {
					t.Errorf("%d deaths, %d opened, %d pings; before: %d, %d, %d",
						s.Deaths, s.Opened, s.KeptAlive, tt.stats.Deaths, tt.stats.Opened, tt.stats.KeptAlive)
				}
			}
			warnings := tt.log.about("wait_timeout")
			if len(warnings) != min(len(tt.warns), 1) {
				t.Fatalf("%d warnings: %s", len(warnings), warnings)
			}
			for _, want := range tt.warns {
				if !strings.Contains(warnings[0], want) {
					t.Errorf("the warning lacks %q: %s", want, warnings[0])
				}
			}
			asked := 0
			for _, q := range tt.via.Queries() {
				if strings.Contains(q, "@@wait_timeout") {
					asked++
				}
			}
			if asked != 1 {
				t.Errorf("the server was asked for its wait_timeout %d times, want once per pool", asked)
			}
		})
	}
}

// stoodStill lets time pass and returns the longest of it in which the machine
// did not get to run this: then it did not get to ping in time either.
func stoodStill(d time.Duration) (longest time.Duration) {
	for start, last := time.Now(), time.Now(); time.Since(start) < d; last = time.Now() {
		time.Sleep(10 * time.Millisecond)
		longest = max(longest, time.Since(last))
	}
	return longest
}

func countingProxy(t testing.TB, s *server.Server) *proxy.Proxy {
	t.Helper()
	via, err := proxy.New(s.Addr(), proxy.WithQueries())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { via.Close() })
	return via
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
					return p.Stats().Deaths > 0 && p.Stats().Opened >= 10 && full()
				})
				t.Logf("restored after %s", time.Since(start).Round(time.Millisecond))
				if n := p.Stats().OpenConnections; n > 5 {
					t.Errorf("%d were opened for five", n)
				}
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

// Twenty idle connections die together: at most one caller notices.
func TestSweepOnRealServers(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, tt := range []struct {
			name  string
			do    func(*proxy.Proxy)
			pings int64 // for which the first caller may have to wait
		}{{"FIN", (*proxy.Proxy).FIN, 2}, {"black hole", (*proxy.Proxy).Stall, 1}} {
			t.Run(tt.name, func(t *testing.T) {
				via := front(t, s)
				p := open(t, s.DSNVia(via.Addr()), "pool_size=20")
				warmReal(t, p.DB, 20)
				time.Sleep(600 * time.Millisecond)
				tt.do(via)
				time.Sleep(50 * time.Millisecond)
				connectionID(t, p.DB)
				paid := p.Stats().Pinged - p.Stats().KeptAlive
				if paid > tt.pings {
					t.Errorf("the first caller waited for %d pings, want at most %d", paid, tt.pings)
				}
				eventually(t, "the others are swept", func() bool { st := p.Stats(); return st.OpenConnections == 1 && st.Swept >= 17 })
				warmReal(t, p.DB, 20)
				if n := p.Stats().Pinged - p.Stats().KeptAlive - paid; n > 1 { // the first one's connection may be old enough
					t.Errorf("twenty callers after that waited for %d pings", n)
				}
				via.Heal()
			})
		}
	})
}

// Every place is in use and callers wait: the maintainer adds no error, and
// takes nothing to speak of.
func TestMaintainerUnderFullLoad(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	const slice, rounds = 250 * time.Millisecond, 9
	load := func(p *livepool.Pool) float64 {
		var n atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for range 16 {
			wg.Go(func() {
				for time.Since(start) < slice {
					if _, err := p.Exec("DO 1"); err != nil {
						t.Error(err)
						return
					}
					n.Add(1)
				}
			})
		}
		wg.Wait()
		return float64(n.Load()) / time.Since(start).Seconds()
	}
	const full = "pool_size=8&pool_max_overflow=0"
	busy := open(t, s.DSN(), full+"&pool_keepalive=20ms&pool_min_idle=4&pool_leak_after=1m")
	calm := open(t, s.DSN(), full+"&pool_keepalive=0&pool_stall_after=0&pool_recycle=0")
	load(busy)
	load(calm)
	var ratios, with, without []float64
	for i := range rounds {
		var a, b float64
		if i%2 == 0 {
			a, b = load(busy), load(calm)
		} else {
			b, a = load(calm), load(busy)
		}
		with, without, ratios = append(with, a), append(without, b), append(ratios, a/b)
	}
	median := func(x []float64) float64 { slices.Sort(x); return x[len(x)/2] }
	ratio := median(with) / median(without)
	t.Logf("statements per second: %.0f with the maintainer at work, %.0f without; ratio of medians %.3f, median of ratios %.3f (%.3f to %.3f)",
		median(with), median(without), ratio, median(ratios), ratios[0], ratios[len(ratios)-1])
	if ratio < 0.5 {
		t.Errorf("the maintainer takes %.0f%% of the throughput", 100*(1-ratio))
	}
	if s := busy.Stats(); s.Deaths != 0 || s.ConnectFailed != 0 || s.Leaks != 0 || s.OpenConnections > 8 {
		t.Errorf("%+v", s)
	}
}

// Everything at once, as fast as it goes; the race detector watches.
func TestMaintainerTorture(t *testing.T) {
	torture := func(t *testing.T, p *livepool.Pool, lasts time.Duration, disturb func(r *rand.Rand), excused func(error) bool) {
		var wg sync.WaitGroup
		var ran, failed atomic.Int64
		start := time.Now()
		running := func() bool { return time.Since(start) < lasts }
		shared, err := p.Prepare("DO ?")
		if err != nil {
			t.Fatal(err)
		}
		check := func(what string, err error) {
			ran.Add(1)
			if err != nil {
				failed.Add(1)
				if !excused(err) {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
		ways := []func(ctx context.Context, r *rand.Rand){
			func(ctx context.Context, _ *rand.Rand) {
				_, err := p.ExecContext(ctx, "DO 1")
				check("Exec", err)
			},
			func(ctx context.Context, _ *rand.Rand) {
				_, err := shared.ExecContext(ctx, 1)
				check("Stmt.Exec", err)
			},
			func(ctx context.Context, _ *rand.Rand) {
				s, err := p.PrepareContext(ctx, "DO ?")
				check("Prepare", err)
				if err != nil {
					return
				}
				_, err = s.ExecContext(ctx, 2)
				check("Stmt.Exec", err)
				time.Sleep(time.Millisecond) // it is closed on an idle connection
				check("Stmt.Close", s.Close())
			},
			func(ctx context.Context, _ *rand.Rand) {
				tx, err := p.BeginTx(ctx, nil)
				check("Begin", err)
				if err != nil {
					return
				}
				_, err = tx.ExecContext(ctx, "DO 3")
				check("Tx.Exec", err)
				if err != nil {
					tx.Rollback()
					return
				}
				check("Commit", tx.Commit())
			},
			func(ctx context.Context, r *rand.Rand) {
				c, err := p.Conn(ctx)
				check("Conn", err)
				if err != nil {
					return
				}
				defer c.Close()
				_, err = c.ExecContext(ctx, "DO 4")
				check("Conn.Exec", err)
				time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
			},
			func(ctx context.Context, r *rand.Rand) {
				ctx, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(1000))*time.Microsecond)
				defer cancel()
				p.ExecContext(ctx, "DO 5") // may end in any way
			},
		}
		for i := range 16 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(1, uint64(i)))
				for running() {
					ways[r.IntN(len(ways))](t.Context(), r)
					if r.IntN(4) == 0 {
						time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
					}
				}
			})
		}
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, 2))
			for running() {
				p.Recycle()
				p.Stats()
				time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
			}
		})
		wg.Go(func() {
			r := rand.New(rand.NewPCG(3, 3))
			for running() {
				disturb(r)
				time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
			}
		})
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(lasts + 20*time.Second):
			buf := make([]byte, 1<<20)
			t.Fatalf("a deadlock\n%s", buf[:runtime.Stack(buf, true)])
		}
		check("Stmt.Close", shared.Close())
		st := p.Stats()
		t.Logf("%d requests, %d excused failures; %d opened, %d pings in the background, %d deaths, %d by age, %d by Recycle",
			ran.Load(), failed.Load(), st.Opened, st.KeptAlive, st.Deaths, st.ClosedByAge, st.ClosedByRecycle)
	}
	const settings = "pool_size=8&pool_max_overflow=4&pool_min_idle=4&pool_keepalive=1ms&pool_recycle=20ms&pool_recycle_jitter=0.5&pool_ping_timeout=200ms&pool_leak_after=5ms"

	t.Run("fake", func(t *testing.T) {
		d := &diary{}
		p := openDiary(t, d, func(c *livepool.Config) {
			c.PoolSize, c.MaxOverflow, c.MinIdle, c.KeepAlive = 8, 4, 4, time.Millisecond
			c.Recycle, c.RecycleJitter, c.LeakAfter = 20*time.Millisecond, 0.5, 5*time.Millisecond
		})
		torture(t, p, 4*time.Second, func(r *rand.Rand) {
			all := d.fake.all()
			all[len(all)-1-r.IntN(min(len(all), 12))].dead.Store(true)
		}, func(err error) bool { return errors.Is(err, errGone) || errors.Is(err, driver.ErrBadConn) })
		eventually(t, "the pool's account is the database's", func() bool {
			s := p.Stats()
			return s.InUse == 0 && d.open() == s.OpenConnections && s.OpenConnections <= 12
		})
		t.Logf("at most %d connections at a time", d.most.Load())
		d.closed(t, p)
		if n := d.statements.Load(); n < 0 {
			t.Errorf("%d statements were closed more often than prepared", -n)
		}
	})
	t.Run("MariaDB", func(t *testing.T) {
		s := servertest.Run(t, server.MariaDB)
		p, _ := openLogged(t, s.DSN(), settings)
		torture(t, p, 5*time.Second, func(r *rand.Rand) {
			list, err := s.Processes()
			if err != nil || len(list) == 0 {
				return
			}
			s.Exec(fmt.Sprintf("KILL %d", list[r.IntN(len(list))].ID))
		}, func(err error) bool {
			var my *mysql.MySQLError
			// ErrBadConn: each of database/sql's three tries was killed or recycled.
			return errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, livepool.ErrPoisoned) || errors.Is(err, driver.ErrBadConn) ||
				strings.Contains(err.Error(), "was lost before COMMIT was sent") || errors.Is(err, livepool.ErrCommitUnknown) ||
				errors.As(err, &my) && (my.Number == 1317 || my.Number == 1927 || my.Number == 1053)
		})
		p.Close()
		eventually(t, "nothing of it is left on the server", func() bool {
			list, err := s.Processes()
			return err == nil && len(list) == 0
		})
	})
}
