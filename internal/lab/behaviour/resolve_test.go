package behaviour_test

// A COMMIT whose answer was lost, of a unit with a key, is looked up.

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A look does not wait behind the units that wait for a place.
func TestAResolvingProbeDoesNotQueueBehindUnits(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "pool_size=1&pool_max_overflow=0&pool_timeout=60s")
	release := make(chan struct{})
	waiting := make(chan error)
	var queued atomic.Bool
	err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
		via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
		if err := labtest.Insert(1)(ctx, u); err != nil {
			return err
		}
		go func() {
			waiting <- p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				if err := labtest.Work(ctx, u); err != nil {
					return err
				}
				queued.Store(true)
				<-release
				return nil
			})
		}()
		labtest.Eventually(t, "another unit waits for the place", func() bool { return p.Stats().SessionsWaited == 1 })
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
		via := proxyTo(t, s)
		my, err := mysql.ParseDSN(s.DSNVia(via.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		my.User, my.Passwd = "writer", "pw"
		p := open(t, my.FormatDSN(), "")
		for _, how := range []func(proxy.Match, proxy.Fault) *proxy.Cut{via.CutBefore, via.CutAfter} {
			how(proxy.QueryPrefix("COMMIT"), proxy.FIN)
			if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.VerifyCommit()); err != nil {
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
		via := proxyTo(t, s)
		p := open(t, s.DSNVia(via.Addr()), "pool_size=0&pool_max_elapsed=500ms")
		long := func(before, after time.Duration) labtest.UnitFunc {
			return func(ctx context.Context, u *livepool.Session) error {
				time.Sleep(before)
				err := labtest.Insert(1)(ctx, u)
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
