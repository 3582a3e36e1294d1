package livepool_test

import (
	"context"
	"database/sql"
	"math"
	"runtime"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

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
