package connector_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// Connections born together die one by one, over the share of their age that
// the jitter names, and none lives longer than it may, whether it is used or
// not.
func TestAgeLimitsAreSpread(t *testing.T) {
	for _, tt := range []struct {
		name  string
		using bool
	}{{"idle", false}, {"in constant use", true}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				p := labtest.OpenFake(t, f, func(c *livepool.Config) {
					c.PoolSize, c.Recycle, c.RecycleJitter = 100, 2*time.Second, 0.5
				})
				fakedb.Warm(t, p.DB, 100)
				generation := f.Conns()[:100]
				died := map[int64]time.Duration{}
				for start := time.Now(); time.Since(start) <= 2100*time.Millisecond; time.Sleep(5 * time.Millisecond) {
					if tt.using {
						fakedb.Warm(t, p.DB, 100)
					}
					synctest.Wait()
					for _, c := range generation {
						if _, seen := died[c.ID]; c.Closed.Load() && !seen {
							died[c.ID] = time.Since(start)
						}
					}
				}
				if len(died) != 100 {
					t.Fatalf("%d of 100 died by their limit of 2s", len(died))
				}
				var ages []time.Duration
				for _, age := range died {
					ages = append(ages, age)
				}
				slices.Sort(ages)
				if ages[0] < time.Second || ages[99] > 2005*time.Millisecond {
					t.Errorf("they died from %s to %s, want within the second half of 2s", ages[0], ages[99])
				}
				if spread := ages[89] - ages[10]; spread < 500*time.Millisecond {
					t.Errorf("80 of them died within %s, want them spread over a second", spread)
				}
			})
		})
	}
}

func TestAgeLimitIsExactBelowASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.Recycle, c.RecycleJitter = 250*time.Millisecond, 0 })
		fakedb.ServedBy(t, p)
		time.Sleep(250*time.Millisecond - time.Nanosecond)
		if id := fakedb.ServedBy(t, p); id != 1 {
			t.Errorf("a tick before the limit: connection %d, want the first", id)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if id := fakedb.ServedBy(t, p); id != 2 {
			t.Errorf("at the limit: connection %d, want the second", id)
		}
	})
}

func TestRecycleZeroIsNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.Recycle, c.IdleTimeout = 0, 0 })
		fakedb.ServedBy(t, p)
		time.Sleep(10000 * time.Hour)
		if id := fakedb.ServedBy(t, p); id != 1 {
			t.Errorf("served by connection %d, want the first", id)
		}
	})
}

// A connection in use past its limit is closed when it is returned, also when
// it has been silent since before.
func TestOneInUsePastItsLimitIsNotKept(t *testing.T) {
	for _, silent := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.Recycle, c.RecycleJitter = time.Minute, 0 })
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fakedb.ServedBy(t, c)
			time.Sleep(2 * time.Minute)
			if !silent && fakedb.ServedBy(t, c) != 1 {
				t.Error("a connection was taken from its user")
			}
			c.Close()
			time.Sleep(3 * time.Second) // a twentieth of Recycle
			synctest.Wait()
			if !f.Conns()[0].Closed.Load() {
				t.Errorf("silent %v: still open", silent)
			}
		})
	}
}

func TestRecycleReplacesAllThatExist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		fakedb.Warm(t, p.DB, 5)
		held, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		old := fakedb.ServedBy(t, held)
		p.Recycle()
		if id := fakedb.ServedBy(t, p); id <= 5 {
			t.Errorf("the next checkout got connection %d, one that existed", id)
		}
		if id := fakedb.ServedBy(t, held); id != old {
			t.Errorf("a connection in use was replaced under its user: %d became %d", old, id)
		}
		held.Close()
		synctest.Wait()
		for _, c := range f.Conns()[:5] {
			if !c.Closed.Load() {
				t.Errorf("connection %d still exists", c.ID)
			}
		}
	})
}

// A connection whose opening began before Recycle is one that exists.
func TestRecycleReachesConnectionsBeingOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		f.OnConnect = func(_ context.Context, n int64) error {
			if n == 1 {
				time.Sleep(time.Second)
			}
			return nil
		}
		p := labtest.OpenFake(t, f, nil)
		var wg sync.WaitGroup
		wg.Go(func() { fakedb.ServedBy(t, p) })
		synctest.Wait()
		p.Recycle()
		wg.Wait()
		if id := fakedb.ServedBy(t, p); id == 1 {
			t.Error("served by the connection to the server of before")
		}
	})
}

// A replacement that fails leaves a pool that works as soon as the server does,
// and no connection that counts for nothing.
func TestReplacementThatFailsCostsNoCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 3, 0 })
		fakedb.Warm(t, p.DB, 3)
		f.OnConnect = func(context.Context, int64) error { return errors.New("server is down") }
		p.Recycle()
		synctest.Wait()
		f.OnConnect = nil
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { fakedb.ServedBy(t, p) })
		}
		wg.Wait()
		if n := f.OpenConns(); n > 3 {
			t.Errorf("%d connections open, want at most 3", n)
		}
	})
}

// The maintainer and the callers use the same connections at the same time
// without ever talking over each other; the race detector watches.
func TestReplacementUnderLoad(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.PoolSize, c.Recycle, c.RecycleJitter = 4, 5*time.Millisecond, 0.9
	})
	s, err := p.Prepare("INSERT INTO t VALUES (?)")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				fakedb.ServedBy(t, p)
				if _, err := s.Exec(1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if p.Stats().ClosedByAge == 0 {
		t.Error("nothing was replaced: the test shows nothing")
	}
}

func TestNoLimitOverflows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) {
			c.Recycle, c.RecycleJitter, c.IdleTimeout = math.MaxInt64, 0.5, 0
		})
		time.Sleep(time.Hour)
		if a, b := fakedb.ServedBy(t, p), fakedb.ServedBy(t, p); a != b {
			t.Errorf("connections %d and %d, want one for ever", a, b)
		}
	})
}
