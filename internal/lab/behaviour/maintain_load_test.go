package behaviour_test

// What the maintainer costs, and that it stands everything at once.

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

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
	const full = "pool_size=8&pool_max_overflow=0&pool_ping_timeout=20s"
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
		d := &fakedb.RecordingDB{}
		p := labtest.Open(t, d, func(c *livepool.Config) {
			c.Logger = labtest.DiscardLogger
			c.PoolSize, c.MaxOverflow, c.MinIdle, c.KeepAlive = 8, 4, 4, time.Millisecond
			c.Recycle, c.RecycleJitter, c.LeakAfter = 20*time.Millisecond, 0.5, 5*time.Millisecond
		})
		torture(t, p, 4*time.Second, func(r *rand.Rand) {
			all := d.DB.Conns()
			all[len(all)-1-r.IntN(min(len(all), 12))].Dead.Store(true)
		}, func(err error) bool { return errors.Is(err, fakedb.ErrGone) || errors.Is(err, driver.ErrBadConn) })
		labtest.Eventually(t, "the pool's account is the database's", func() bool {
			s := p.Stats()
			return s.InUse == 0 && d.OpenConns() == s.OpenConnections && s.OpenConnections <= 12
		})
		t.Logf("at most %d connections at a time", d.Peak.Load())
		d.CheckClosed(t, p)
		if n := d.Statements.Load(); n < 0 {
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
				strings.Contains(err.Error(), "was lost before COMMIT was sent") || strings.Contains(err.Error(), "was lost before the statement was sent") || errors.Is(err, livepool.ErrCommitUnknown) ||
				errors.As(err, &my) && (my.Number == 1317 || my.Number == 1927 || my.Number == 1053)
		})
		p.Close()
		labtest.Eventually(t, "nothing of it is left on the server", func() bool {
			list, err := s.Processes()
			return err == nil && len(list) == 0
		})
	})
}
