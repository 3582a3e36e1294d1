package livepool_test

// What the maintainer costs.

import (
	"context"
	"database/sql"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// What the maintainer costs a pool at rest: its looks allocate next to nothing.
// Without LeakAfter a checkout allocates what plain database/sql does.
func TestMaintainerIsFrugal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := livepool.OpenConnector(fakedb.Noop{}, func() *livepool.Config {
			c := livepool.NewConfig()
			c.KeepAlive, c.MinIdle = 100*time.Millisecond, 5
			return c
		}())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		labtest.Eventually(t, "five are ready", func() bool { return p.Stats().KeptAlive >= 5 })
		var before, after runtime.MemStats
		pings := p.Stats().KeptAlive
		runtime.ReadMemStats(&before)
		for end := time.Now().Add(20 * time.Second); p.Stats().KeptAlive < pings+80 && time.Now().Before(end); {
			time.Sleep(250 * time.Millisecond)
		}
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
		watched, err := livepool.OpenConnector(fakedb.Noop{}, func() *livepool.Config { c := livepool.NewConfig(); c.LeakAfter = time.Hour; return c }())
		if err != nil {
			t.Fatal(err)
		}
		defer watched.Close()
		a, b, c := testing.AllocsPerRun(1000, take(plain)), testing.AllocsPerRun(1000, take(live)), testing.AllocsPerRun(1000, take(watched.DB))
		t.Logf("allocations of a checkout: plain %v, livepool %v, with LeakAfter %v", a, b, c)
		if b > a {
			t.Errorf("without LeakAfter a checkout allocates %v, plain database/sql %v", b, a)
		}
	})
}
