package behaviour_test

// Connections whose server answers and refuses.

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A session whose password has expired may log in and be pinged, and is refused
// all else, for ever: also when the password has been changed meanwhile.
func TestConnectionsThatRefuseAllWorkLeaveThePool(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s, "CREATE USER 'old'@'%' IDENTIFIED BY 'old' PASSWORD EXPIRE", "GRANT ALL ON test.* TO 'old'@'%'")
		p := open(t, fmt.Sprintf("old:old@tcp(%s)/test", s.Addr()), "pool_keepalive=0")
		held := make([]*sql.Conn, 3)
		for i := range held {
			c, err := p.Conn(t.Context())
			if err == nil {
				err = c.PingContext(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			held[i] = c
		}
		if _, err := held[0].ExecContext(t.Context(), "INSERT INTO t (v) VALUES (1)"); !labtest.IsServerError(err, 1820) {
			t.Fatalf("got %v, want 1820: the test shows nothing", err)
		}
		if err := s.Exec("ALTER USER 'old'@'%' IDENTIFIED BY 'old'"); err != nil {
			t.Fatal(err)
		}
		fakedb.GiveBack(held)
		time.Sleep(1100 * time.Millisecond) // a refusal right after the login would be trusted
		if err := p.WithSession(t.Context(), labtest.Insert(1)); err != nil {
			t.Errorf("unit: %v", err)
		}
		for range 5 {
			if _, err := p.Exec("INSERT INTO t (v) VALUES (?)", 2); err != nil {
				t.Errorf("plain: %v", err)
			}
		}
		if n := count(t, s, "t"); n != 6 {
			t.Errorf("%d rows", n)
		}
		if st := p.Stats(); st.Opened > 5 {
			t.Errorf("%d connections opened for 3", st.Opened)
		}
	}, "--disconnect-on-expired-password=OFF")
}

// What of a request was done before a refusal is not done again: by a procedure, or
// by several statements in one.
func TestRequestThatMeetsABranchInItsMiddleIsSentOnce(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, query := range []string{"CALL half()", "INSERT INTO t (v) VALUES (1); XA END 'x'"} {
			withTable(t, s, "DROP PROCEDURE IF EXISTS test.half", "CREATE PROCEDURE test.half() BEGIN INSERT INTO t (v) VALUES (1); XA END 'x'; END")
			p := open(t, s.DSN(), "pool_size=1&multiStatements=true")
			if err := p.Ping(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1200 * time.Millisecond) // until it is no new login
			_, err := p.Exec(query)
			if n := count(t, s, "t"); n != 1 || !labtest.IsServerError(err, 1399) {
				t.Errorf("%s: %d rows, %v; want one, 1399", query, n, err)
			}
			if err := p.Ping(); err != nil {
				t.Error(err)
			}
		}
	})
}

// One kind of job writes to a server that stays read-only, and others read: the
// pool is replaced once.
func TestServerThatStaysReadOnlyIsLeftOnce(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		p := open(t, s.AppDSN(s.Addr()), "pool_size=8&pool_max_overflow=0")
		warmReal(t, p.DB, 8)
		if err := s.SetReadOnly(true); err != nil {
			t.Fatal(err)
		}
		before := p.Stats().Opened
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		var failed atomic.Int64
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if i%2 == 0 {
						connectionID(t, p)
					} else if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.MaxAttempts(1)); err != nil {
						failed.Add(1)
					}
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		opened := p.Stats().Opened - before
		t.Logf("%d units failed, %d connections opened", failed.Load(), opened)
		if failed.Load() < 20 || opened > 16 {
			t.Errorf("%d connections opened for %d failed units, want the 8 once", opened, failed.Load())
		}
		if err := s.SetReadOnly(false); err != nil {
			t.Fatal(err)
		}
		if err := p.WithSession(t.Context(), labtest.Insert(1)); err != nil {
			t.Error(err)
		}
	})
}

// A session that was made read-only by its own side is guarded: what it refuses
// is not sent elsewhere. One whose server is so is left.
func TestSessionThatAskedToBeReadOnlyIsNotLeft(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		variable := "transaction_read_only"
		if s.Kind() == server.MariaDB {
			variable = "tx_read_only"
		}
		p := open(t, s.DSN(), variable+"=1")
		warmReal(t, p.DB, 2)
		runs := 0
		unit := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error { runs++; return labtest.Insert(1)(ctx, u) })
		_, plain := p.Exec("INSERT INTO t (v) VALUES (2)")
		retried := p.Retry(t.Context(), func(ctx context.Context) error {
			runs++
			_, err := p.ExecContext(ctx, "INSERT INTO t (v) VALUES (3)")
			return err
		})
		for what, err := range map[string]error{"unit": unit, "plain": plain, "Retry": retried} {
			if !labtest.IsServerError(err, 1792) || !strings.Contains(err.Error(), "this one was made read-only itself") {
				t.Errorf("%s: %v, want 1792 that says whose doing it is", what, err)
			}
		}
		if st := p.Stats(); runs != 2 || st.Resent != 0 || count(t, s, "t") != 0 {
			t.Errorf("%d runs, %d sent again, %d rows", runs, st.Resent, count(t, s, "t"))
		}

		if err := s.SetGlobal(variable, 1); err != nil {
			t.Fatal(err)
		}
		runs = 0
		elsewhere := open(t, s.DSN(), "")
		if err := elsewhere.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
			if runs++; runs == 2 {
				s.SetGlobal(variable, 0) // the address leads to another server
				elsewhere.Recycle()
			}
			return labtest.Insert(4)(ctx, u)
		}); err != nil || runs < 2 {
			t.Errorf("%v after %d runs, want it to find the server that takes writes", err, runs)
		}
	})
}
