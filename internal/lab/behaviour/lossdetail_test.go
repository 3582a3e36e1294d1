package behaviour_test

// Statements that are the cause of their connection's end.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A statement that is larger than the server takes is sent once, and told for
// what it is, however its connection ended.
func TestStatementAboveMaxAllowedPacket(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		for _, size := range []int{3 << 20, 20 << 20} {
			query := "INSERT INTO t (v) VALUES (LENGTH('" + strings.Repeat("x", size) + "'))"
			for name, tt := range map[string]struct {
				params string
				send   func(ctx context.Context, u fakedb.Execer) error
			}{
				"text": {"", func(ctx context.Context, u fakedb.Execer) error { _, err := u.ExecContext(ctx, query); return err }},
				"interpolated": {"interpolateParams=true", func(ctx context.Context, u fakedb.Execer) error {
					_, err := u.ExecContext(ctx, "INSERT INTO t (v) VALUES (LENGTH(?))", query)
					return err
				}},
			} {
				t.Run(fmt.Sprintf("%s, %d MB", name, size>>20), func(t *testing.T) {
					p := open(t, s.DSN(), tt.params)
					warmReal(t, p.DB, 3)
					runs := 0
					unit := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error { runs++; return tt.send(ctx, u) })
					swallowed := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error { tt.send(ctx, u); return nil })
					plain := tt.send(t.Context(), p)
					vouched := tt.send(livepool.Idempotent(t.Context()), p)
					retried := p.Retry(t.Context(), func(ctx context.Context) error { runs++; return tt.send(ctx, p) })
					for what, err := range map[string]error{"unit": unit, "unit that swallows it": swallowed, "plain": plain, "idempotent": vouched, "Retry": retried} {
						if !labtest.IsServerError(err, 1153) || !strings.Contains(err.Error(), "max_allowed_packet of 1048576 bytes") || livepool.Classify(err)&livepool.Retry != 0 {
							t.Errorf("%s: %v, want 1153 with its sizes", what, err)
						}
					}
					if st := p.Stats(); runs != 2 || st.Opened > 8 || st.Deaths != 0 || st.Retried != 0 {
						t.Errorf("%d runs, %d connections opened, %d deaths told, %d units retried; want 2, at most 8, none, none", runs, st.Opened, st.Deaths, st.Retried)
					}
				})
			}
		}
		if n := count(t, s, "t"); n != 0 {
			t.Errorf("%d rows", n)
		}
	}, "--max-allowed-packet=1M")
}

// What the driver's readTimeout cuts twice in a row is not cut a third time, and
// the error names it.
func TestReadTimeoutIsNamedAndNotMetAgainAndAgain(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p, log := openLogged(t, s.DSN(), "readTimeout=500ms&pool_kill_abandoned=false")
		runs := 0
		unit := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
			runs++
			return u.QueryRowContext(ctx, "SELECT SLEEP(2)").Scan(new(int))
		})
		if runs != 2 {
			t.Errorf("the unit ran %d times, want 2", runs)
		}
		runs = 0
		retried := p.Retry(t.Context(), func(ctx context.Context) error {
			runs++
			return p.QueryRowContext(ctx, "SELECT SLEEP(2)").Scan(new(int))
		})
		if runs != 1 {
			t.Errorf("Retry ran %d times, want once, with its statement sent twice", runs)
		}
		plain := p.QueryRowContext(t.Context(), "SELECT SLEEP(2)").Scan(new(int))
		for what, err := range map[string]error{"unit": unit, "Retry": retried, "plain": plain} {
			if err == nil || !strings.Contains(err.Error(), "readTimeout of the DSN, 500ms") || !errors.Is(err, mysql.ErrInvalidConn) {
				t.Errorf("%s: %v, want readTimeout named", what, err)
			}
			if what != "plain" && !strings.Contains(err.Error(), "twice in a row") {
				t.Errorf("%s: %v", what, err)
			}
		}
		t.Log(unit)
		if lines := log.LinesWith("readTimeout and writeTimeout of the DSN"); len(lines) != 1 {
			t.Errorf("warned %d times: %q", len(lines), lines)
		}
	})
}

// A COMMIT that was given up, since the server answers nothing, is told as one that did not
// happen: then what follows on the connection must not commit it either.
func TestCommitThatWasGivenUpIsNotMadeUpFor(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		p := open(t, s.DSN(), "pool_keepalive=1s&pool_commit_timeout=1s&pool_stall_after=0&pool_kill_abandoned=false")
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		tx, err := c.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("INSERT INTO t (v) VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Resume() })
		labtest.Eventually(t, "a ping is under way", func() bool { return p.Stats().KeptAlive > 0 })
		if err := tx.Commit(); err == nil || errors.Is(err, livepool.ErrCommitUnknown) {
			t.Fatalf("commit: %v", err)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		_, insert := c.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (2)")
		if tx, err := c.BeginTx(t.Context(), nil); err == nil {
			_ = tx.Commit()
		}
		c.Close()
		if n := count(t, s, "t WHERE v = 1"); n != 0 || insert == nil {
			t.Errorf("%d rows of the transaction that was not committed; then a statement: %v", n, insert)
		}
	})
}
