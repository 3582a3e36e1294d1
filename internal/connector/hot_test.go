package connector_test

import (
	"context"
	"database/sql"
	"math"
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

var hotOperations = []struct {
	name string
	run  func(*sql.DB) error
}{
	{"Conn+Close", func(db *sql.DB) error {
		c, err := db.Conn(context.Background())
		if err != nil {
			return err
		}
		return c.Close()
	}},
	{"QueryRow", func(db *sql.DB) error {
		var n int64
		return db.QueryRow("SELECT 1").Scan(&n)
	}},
	{"Exec", func(db *sql.DB) error {
		_, err := db.Exec("DO 1")
		return err
	}},
	{"Begin+Commit", func(db *sql.DB) error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		return tx.Commit()
	}},
}

func openNoop(tb testing.TB) (plain, live *sql.DB) {
	tb.Helper()
	plain = sql.OpenDB(fakedb.Noop{})
	pool, err := livepool.OpenConnector(fakedb.Noop{}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { plain.Close(); pool.Close() })
	return plain, pool.DB
}

// The hot path allocates nothing that plain database/sql does not.
func TestHotPathAllocatesNoMoreThanPlain(t *testing.T) {
	plain, live := openNoop(t)
	for _, op := range hotOperations {
		measure := func(db *sql.DB) float64 {
			least := math.Inf(1) // the runtime's own allocations come and go
			for range 5 {
				least = min(least, testing.AllocsPerRun(100, func() {
					if err := op.run(db); err != nil {
						t.Fatal(err)
					}
					runtime.Gosched() // so that the goroutine of a sql.Tx ends, and the next finds its stack
				}))
			}
			return least
		}
		if p, l := measure(plain), measure(live); l > p {
			t.Errorf("%s: %v allocations, plain database/sql has %v", op.name, l, p)
		}
	}
}

func BenchmarkHotPath(b *testing.B) {
	plain, live := openNoop(b)
	for _, op := range hotOperations {
		for _, side := range []struct {
			name string
			db   *sql.DB
		}{{"plain", plain}, {"livepool", live}} {
			b.Run(op.name+"/"+side.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := op.run(side.db); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
