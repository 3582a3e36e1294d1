package main

import (
	"context"
	"database/sql"
	"io"
	"math"
	"testing"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/go-sql-driver/mysql"
	"github.com/ngrok/sqlmw"

	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// noopRivals are pools on the driver that does nothing: plain, livepool, and
// the wrappers that people already use for other purposes.
func noopRivals(tb testing.TB) []named {
	tb.Helper()
	plain, live, err := noopPools()
	if err != nil {
		tb.Fatal(err)
	}
	return closeLater(tb, []named{
		{name: "plain", db: plain},
		{name: "livepool", db: live.DB},
		{name: "sqlmw", db: sql.OpenDB(fakedb.ByDSN{Of: sqlmw.Driver(noopDriver{}, sqlmw.NullInterceptor{})})},
		{name: "otelsql", db: otelsql.OpenDB(noopConnector{})},
	}, live)
}

func closeLater(tb testing.TB, pools []named, more ...io.Closer) []named {
	tb.Cleanup(func() {
		for _, p := range pools {
			p.db.Close()
		}
		for _, c := range more {
			c.Close()
		}
	})
	return pools
}

// serverRivals are pools on a real MariaDB that has the table of the point
// query: plain, and livepool with each mode of the pre-ping.
func serverRivals(tb testing.TB) []named {
	tb.Helper()
	s := servertest.Run(tb, server.MariaDB)
	cfg, err := mysql.ParseDSN(s.DSN())
	if err != nil {
		tb.Fatal(err)
	}
	pools, closePools, err := realPools(cfg)
	tb.Cleanup(closePools)
	if err != nil {
		tb.Fatal(err)
	}
	if err := fillPointTable(tb.Context(), pools[0].db); err != nil {
		tb.Fatal(err)
	}
	return pools
}

// BenchmarkNoop is the pool alone.
func BenchmarkNoop(b *testing.B) {
	rivals := noopRivals(b)
	for _, op := range operations {
		benchmarkRivals(b, op, rivals)
	}
}

// BenchmarkMariaDB is the pool where it works.
func BenchmarkMariaDB(b *testing.B) {
	rivals := serverRivals(b)
	benchmarkRivals(b, operation{"Conn+Close", connClose}, rivals)
	benchmarkRivals(b, operation{"PointQuery", pointQuery}, rivals)
}

// benchmarkRivals runs one operation on each pool, from one goroutine and from
// many.
func benchmarkRivals(b *testing.B, op operation, rivals []named) {
	ctx := context.Background()
	for _, p := range rivals {
		b.Run(op.name+"/"+p.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := op.run(ctx, p.db); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(op.name+"/"+p.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := op.run(ctx, p.db); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func allocs(t *testing.T, op operation, db *sql.DB) float64 {
	t.Helper()
	n := allocsPerRun(func() error { return op.run(context.Background(), db) })
	if math.IsNaN(n) {
		t.Fatalf("%s fails", op.name)
	}
	return n
}

func TestHotPathAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates for itself")
	}
	t.Run("noop", func(t *testing.T) {
		plain, live, err := noopPools()
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		defer live.Close()
		for _, op := range operations {
			if p, l := allocs(t, op, plain), allocs(t, op, live.DB); l > p {
				t.Errorf("%s: livepool allocates %v times, plain database/sql %v times", op.name, l, p)
			}
		}
	})
	t.Run("MariaDB", func(t *testing.T) {
		pools := serverRivals(t)
		op := operation{"Conn+Close", connClose}
		p, l := allocs(t, op, pools[0].db), allocs(t, op, pools[1].db)
		if l >= p {
			t.Errorf("Conn+Close: %s allocates %v times, plain database/sql %v times", pools[1].name, l, p)
		}
	})
}

// The bound is generous: it notices a mistake, not a percentage.
func TestHotPathTime(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector is not what is measured")
	}
	rows, err := hotOnNoop(t.Context(), 41)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.took.ratio > 3 {
			t.Errorf("%s on %s takes %.1f times as long as plain database/sql", r.operation, r.pool, r.took.ratio)
		}
	}
}

func TestAllocExcess(t *testing.T) {
	rows := []hotRow{
		{operation: "A", pool: "plain", allocs: 1}, {operation: "A", pool: "livepool", allocs: 1},
		{operation: "B", pool: "plain", allocs: 4}, {operation: "B", pool: "livepool", allocs: 2},
	}
	if got := allocExcess(rows); got != "" {
		t.Errorf("no excess, but %q", got)
	}
	rows[3].allocs = 5
	if got := allocExcess(rows); got == "" {
		t.Error("5 allocations instead of 4 went unnoticed")
	}
}

func TestCompare(t *testing.T) {
	renewed := 0
	sleep := func(d time.Duration) contestant {
		return contestant{
			run:   func() error { time.Sleep(d); return nil },
			renew: func() { renewed++ },
		}
	}
	took, err := compare(t.Context(), 3, 20*time.Millisecond, sleep(time.Millisecond), sleep(4*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if took[0].ratio != 1 || took[1].ratio < 1.3 {
		t.Errorf("ratios are %v and %v, want 1 and about 4", took[0].ratio, took[1].ratio)
	}
	if want := 2; renewed != want {
		t.Errorf("renewed %d times, want %d", renewed, want)
	}
	broken := contestant{run: func() error { return io.EOF }, renew: func() {}}
	if _, err := compare(t.Context(), 1, time.Millisecond, sleep(time.Millisecond), broken); err != io.EOF {
		t.Errorf("error is %v, want the contestant's own", err)
	}
}
