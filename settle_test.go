package livepool_test

// A COMMIT whose answer was lost, of a unit with a key, is looked up.

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A unit that took longer than MaxElapsed may still ask.
func TestLostCommitOfALongUnitIsLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{onCommit: func(c *fakeConn) error { c.valid.Store(false); return mysql.ErrInvalidConn }}
		p := openFake(t, f, func(c *livepool.Config) { c.MaxElapsed = time.Second })
		inserts := 0
		f.onExec = func(_ context.Context, _ *fakeConn, query string) error {
			if strings.HasPrefix(query, "INSERT INTO ") && strings.Contains(query, "livepool_commits") {
				if inserts++; inserts > 1 {
					return serverError(1062, "Duplicate entry")
				}
			}
			return nil
		}
		ran := 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			ran++
			time.Sleep(time.Minute)
			return nil
		}, livepool.Once("k"))
		if err != nil || ran != 1 || inserts != 2 || p.Stats().CommitsResolved != 1 {
			t.Errorf("ran %d times, %d looks: %v", ran, inserts-1, err)
		}
	})
}

// Whatever a look meets, another one is made; only the context and the time for it
// end them.
func TestALookThatFailsIsRepeated(t *testing.T) {
	for name, meets := range map[string]error{
		"1317": serverError(1317, "Query execution was interrupted"),
		"1969": serverError(1969, "Query execution was interrupted (max_statement_time exceeded)"),
		"3024": serverError(3024, "Query execution was interrupted, maximum statement execution time exceeded"),
		"1041": serverError(1041, "Out of memory"),
		"1105": serverError(1105, "unknown"),
		"lost": errGone,
		"lock": serverError(1205, "Lock wait timeout exceeded"),
	} {
		for _, lasts := range []time.Duration{5 * time.Second, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				commits := 0
				f := &fake{onCommit: func(c *fakeConn) error {
					if commits++; commits > 1 {
						return nil
					}
					c.valid.Store(false)
					return mysql.ErrInvalidConn
				}}
				p := openFake(t, f, func(c *livepool.Config) { c.PoolTimeout = 0; c.PoolSize, c.MaxOverflow = 1, 0 })
				var lost time.Time
				ran, looks := 0, 0
				f.onExec = func(_ context.Context, c *fakeConn, query string) error {
					if !strings.HasPrefix(query, "INSERT INTO ") || lost.IsZero() {
						return nil
					}
					looks++
					if time.Since(lost) < lasts {
						c.valid.Store(meets != errGone)
						return meets
					}
					return serverError(1062, "Duplicate entry")
				}
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					ran++
					lost = time.Now()
					return nil
				}, livepool.Once("k"))
				took := time.Since(lost)
				unknown := errors.Is(err, livepool.ErrCommitUnknown)
				if ran != 1 || lasts < time.Minute && (err != nil || took > 8*time.Second) {
					t.Errorf("%s for %s: ran %d times, %d looks in %s: %v", name, lasts, ran, looks, took, err)
				}
				if lasts > time.Minute && (!unknown || errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, meets) && meets != errGone || took < 40*time.Second || took > 41*time.Second || !strings.Contains(err.Error(), "40s")) {
					t.Errorf("%s: after %s and %d looks: %v", name, took, looks, err)
				}
			})
		}
	}
}

// A look does not wait behind the units that wait for a place.
func TestALookDoesNotQueueBehindUnits(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "pool_size=1&pool_max_overflow=0&pool_timeout=60s")
	release := make(chan struct{})
	waiting := make(chan error)
	var queued atomic.Bool
	err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
		via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
		if err := insert(1)(ctx, u); err != nil {
			return err
		}
		go func() {
			waiting <- p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				if err := work(ctx, u); err != nil {
					return err
				}
				queued.Store(true)
				<-release
				return nil
			})
		}()
		eventually(t, "another unit waits for the place", func() bool { return p.Stats().SessionsWaited == 1 })
		return nil
	}, livepool.Once("k"))
	if n := count(t, s, "t"); err != nil || n != 1 {
		t.Errorf("%d rows: %v", n, err)
	}
	close(release)
	if err := <-waiting; err != nil || !queued.Load() {
		t.Errorf("the unit that waited: %v", err)
	}
}

// It may not delete, only insert: a single server's insert tells.
func TestLostCommitOfAUserWhoMayOnlyInsert(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		admin := open(t, s.DSN(), "")
		if err := admin.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{
			"CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)",
			"CREATE USER writer IDENTIFIED BY 'pw'", "GRANT INSERT, SELECT ON test.* TO writer",
		} {
			if err := s.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		via := front(t, s)
		my, err := mysql.ParseDSN(s.DSNVia(via.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		my.User, my.Passwd = "writer", "pw"
		p := open(t, my.FormatDSN(), "")
		for _, how := range []func(proxy.Match, proxy.Fault) *proxy.Cut{via.CutBefore, via.CutAfter} {
			how(proxy.QueryPrefix("COMMIT"), proxy.FIN)
			if err := p.WithSession(t.Context(), insert(1), livepool.VerifyCommit()); err != nil {
				t.Error(err)
			}
		}
		if n := count(t, s, "t"); n != 2 {
			t.Errorf("%d rows of two units", n)
		}
	})
}

// On real servers: longer than MaxElapsed elsewhere before the first statement, on a
// pool that has to dial, and before a COMMIT whose answer is lost.
func TestLongUnitsOnRealServers(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		if err := open(t, s.DSN(), "").CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		via := front(t, s)
		p := open(t, s.DSNVia(via.Addr()), "pool_size=0&pool_max_elapsed=500ms")
		long := func(before, after time.Duration) fn {
			return func(ctx context.Context, u *livepool.Session) error {
				time.Sleep(before)
				err := insert(1)(ctx, u)
				time.Sleep(after)
				return err
			}
		}
		const long1 = 700 * time.Millisecond
		if err := p.WithSession(t.Context(), long(long1, 0)); err != nil {
			t.Errorf("long before the first statement: %v", err)
		}
		cut := via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
		if err := p.WithSession(t.Context(), long(0, long1), livepool.Once("k")); err != nil {
			t.Errorf("long before a COMMIT that is lost: %v", err)
		}
		<-cut.Done()
		if n := count(t, s, "t"); n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
		via.CutBefore(proxy.QueryPrefix("COMMIT"), proxy.FIN)
		err := p.WithSession(t.Context(), long(0, long1), livepool.Once("l"))
		if n := count(t, s, "t"); err == nil || errors.Is(err, livepool.ErrCommitUnknown) || n != 2 {
			t.Errorf("long before a COMMIT that does not arrive: %d rows, %v; want to be told that it was not applied", n, err)
		}
	})
}

// Close ends the looks: there is nothing more to look with.
func TestCloseEndsTheLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{onCommit: func(c *fakeConn) error { c.valid.Store(false); return mysql.ErrInvalidConn }}
		p := openFake(t, f, nil)
		var lost time.Time
		f.onExec = func(_ context.Context, _ *fakeConn, query string) error {
			if !lost.IsZero() {
				return serverError(1205, "Lock wait timeout exceeded")
			}
			return nil
		}
		err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error {
			lost = time.Now()
			go func() { time.Sleep(5 * time.Second); p.Close() }()
			return nil
		}, livepool.Once("k"))
		if took := time.Since(lost); !errors.Is(err, livepool.ErrCommitUnknown) || took > 15*time.Second || !strings.Contains(err.Error(), "the pool was closed") {
			t.Errorf("after %s: %v", took, err)
		}
	})
}
