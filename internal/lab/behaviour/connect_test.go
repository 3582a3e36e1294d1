package behaviour_test

// Opening connections to real servers: how many at a time, and what becomes of
// statements outside units while the server restarts.

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
)

// A server that is killed and started again under statements outside units, and
// transactions of database/sql's: errors are only for those that were in the
// middle, at most one for each worker and restart. Where the server needs longer
// to start than OutageWait, who has waited that long is told so.
func TestRestartUnderPlainStatements(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s, _ := openLedger(t, kind)
			const workers = 8
			exec := func(p *livepool.Pool) error {
				_, err := p.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (1)")
				return err
			}
			create := func(p *livepool.Pool) error {
				tx, err := p.BeginTx(t.Context(), nil)
				if err != nil {
					return err
				}
				defer tx.Rollback()
				if _, err := tx.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (2)"); err != nil {
					return err
				}
				return tx.Commit()
			}
			for name, do := range map[string]func(*livepool.Pool) error{"Exec": exec, "Create": create} {
				p, k := openCounting(t, s.DSN(), nil)
				labtest.RestartUnderWorkers(t, s, workers, func() error { return do(p) }, func(began time.Time) {
					t.Logf("%s: %d attempts to connect while it was down", name, k.between(began, time.Now()))
				}, time.Second, 3*time.Second)
			}
		})
	}
}

// When 500 callers need a connection at once, because Recycle was called or one
// was found dead, no more handshakes are under way than ConnectLimit, and all are
// served about as soon as if there were no limit.
func TestConnectLimitUnderManyCallers(t *testing.T) {
	const callers, limit = 500, 16
	s, _ := openLedger(t, server.MariaDB, "--max-connections=1000")
	via := proxyTo(t, s)
	p := openWith(t, withParams(s.DSNVia(via.Addr()), "pool_size=500&pool_max_overflow=0"), func(c *livepool.Config) { c.Logger, c.ConnectLimit = labtest.DiscardLogger, limit })
	unlimited := openWith(t, withParams(s.DSNVia(via.Addr()), "pool_size=500&pool_max_overflow=0&pool_connect_limit=500"), func(c *livepool.Config) { c.Logger = labtest.DiscardLogger })
	round := func(p *livepool.Pool) time.Duration {
		start := time.Now()
		var wg, all sync.WaitGroup
		all.Add(callers)
		for range callers {
			wg.Go(func() {
				var once sync.Once
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					err := labtest.Work(ctx, s)
					once.Do(all.Done)
					all.Wait()
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	var limited, free time.Duration
	for range 3 {
		for _, p := range []*livepool.Pool{p, unlimited} {
			p.Recycle()
			via.ResetCounts()
			took := round(p)
			most := via.Counts().MostLogins
			t.Logf("%s, at most %d logins at a time", took, most)
			if p == unlimited {
				free += took
				continue
			}
			limited += took
			if most > limit {
				t.Errorf("%d logins at a time, want at most %d", most, limit)
			}
		}
	}
	if limited > 2*free+time.Second {
		t.Errorf("with a limit it took %s, without %s", limited, free)
	}
	if err := unlimited.Close(); err != nil { // its own would be counted with them
		t.Error(err)
	}
	via.ResetCounts()
	via.RST() // all of them are found dead
	round(p)
	// And the connection beside the pool, which ends what was cut, and waits for no turn.
	if most := via.Counts().MostLogins; most > limit+1 {
		t.Errorf("after a death %d logins at a time, want at most %d", most, limit+1)
	}
}

// BeforeConnect, by which each attempt has a token of its own, is asked at most
// once a second while there is no server.
func TestTokensInAnOutage(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	var asked atomic.Int64
	p := openWith(t, s.DSNVia(via.Addr()), func(c *livepool.Config) {
		c.Logger = labtest.DiscardLogger
		if err := c.MySQL.Apply(mysql.BeforeConnect(func(context.Context, *mysql.Config) error { asked.Add(1); return nil })); err != nil {
			t.Fatal(err)
		}
	})
	if err := p.WithSession(t.Context(), labtest.Insert(1)); err != nil {
		t.Fatal(err)
	}
	via.Refuse()
	via.RST()
	asked.Store(0)
	wait := labtest.StartUnits(t.Context(), 50, p, labtest.Insert(2))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
				t.Error(err)
			}
		})
	}
	start := time.Now()
	time.Sleep(5 * time.Second)
	n, lasted := asked.Load(), time.Since(start)
	t.Logf("asked %d times in %s", n, lasted)
	if n > int64(lasted.Seconds())+4 { // the first few found out by themselves
		t.Errorf("%d tokens were asked for in %s", n, lasted)
	}
	if err := via.Reopen(); err != nil {
		t.Fatal(err)
	}
	labtest.CheckNoErrors(t, wait())
	wg.Wait()
}
