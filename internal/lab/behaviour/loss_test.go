package behaviour_test

// Losses and refusals that look like something else: what the server has said
// unsolicited, what the driver says in its place, and what a refusal leaves behind.

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// withTable is a server with a table, which it empties.
func withTable(t *testing.T, s *server.Server, more ...string) {
	t.Helper()
	for _, q := range append([]string{"CREATE TABLE IF NOT EXISTS test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)", "DELETE FROM test.t"}, more...) {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
}

// The driver's rejectReadOnly has it say of any refusal that nothing was sent. A part
// of what was refused may have run all the same.
func TestRejectReadOnlyAppliesNothingTwice(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s, "CREATE PROCEDURE test.half() BEGIN INSERT INTO test.t (v) VALUES (1); SET SESSION TRANSACTION READ ONLY; INSERT INTO test.t (v) VALUES (2); END")
		byHook := func(c *livepool.Config) {
			if err := c.MySQL.Apply(mysql.BeforeConnect(func(_ context.Context, my *mysql.Config) error {
				my.RejectReadOnly = true
				return nil
			})); err != nil {
				t.Fatal(err)
			}
		}
		for _, pool := range []struct {
			name string
			open func() *livepool.Pool
		}{
			{"DSN", func() *livepool.Pool { return open(t, s.DSN(), "rejectReadOnly=true&multiStatements=true") }},
			{"hook", func() *livepool.Pool { return openWith(t, withParams(s.DSN(), "multiStatements=true"), byHook) }},
		} {
			for name, run := range map[string]func(p *livepool.Pool) error{
				"procedure": func(p *livepool.Pool) error { _, err := p.Exec("CALL half()"); return err },
				"several statements": func(p *livepool.Pool) error {
					_, err := p.Exec("INSERT INTO t (v) VALUES (1); SET SESSION TRANSACTION READ ONLY; INSERT INTO t (v) VALUES (2)")
					return err
				},
				"prepared CALL": func(p *livepool.Pool) error {
					st, err := p.Prepare("CALL half()")
					if err != nil {
						return err
					}
					defer st.Close()
					_, err = st.Exec()
					return err
				},
			} {
				t.Run(pool.name+"/"+name, func(t *testing.T) {
					withTable(t, s)
					p := pool.open()
					warmReal(t, p.DB, 2)
					err := run(p)
					if pool.name == "DSN" && !labtest.IsServerError(err, 1792) || err == nil || errors.Is(err, driver.ErrBadConn) {
						t.Errorf("got %v, want the server's 1792", err)
					}
					if n := count(t, s, "t"); n != 1 {
						t.Errorf("applied %d times", n)
					}
				})
			}
		}
		t.Run("a unit that is ReadOnly", func(t *testing.T) {
			p, runs := open(t, s.DSN(), "rejectReadOnly=true"), 0
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				runs++
				return labtest.Insert(1)(ctx, s)
			}, livepool.ReadOnly())
			if !labtest.IsServerError(err, 1792) || runs != 1 {
				t.Errorf("%v after %d runs, want 1792 after one", err, runs)
			}
		})
	})
}

// The server has closed the connection while the function was elsewhere, and
// said so: COMMIT is not sent, and nothing was committed.
func TestGoodbyeBeforeCommit(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		for _, tt := range []struct {
			name, params string
			end          func()
		}{
			{"idle", "wait_timeout=1", func() { labtest.AwaitDisconnect(t, s) }},
			{"restart", "", func() {
				if err := errors.Join(s.Stop(), s.Restart()); err != nil {
					t.Fatal(err)
				}
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				withTable(t, s)
				p, runs := open(t, s.DSN(), "pool_keepalive=0&"+tt.params), 0
				if err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
					if err := labtest.Insert(1)(ctx, u); err != nil {
						return err
					}
					if runs++; runs == 1 {
						tt.end()
					}
					return nil
				}); err != nil || runs != 2 {
					t.Errorf("unit: %v after %d runs, want nil after 2", err, runs)
				}
				runs = 0
				var first error
				if err := p.Retry(t.Context(), func(ctx context.Context) error {
					tx, err := p.BeginTx(ctx, nil)
					if err != nil {
						return err
					}
					defer tx.Rollback()
					if _, err := tx.ExecContext(ctx, "INSERT INTO t (v) VALUES (2)"); err != nil {
						return err
					}
					if runs++; runs == 1 {
						tt.end()
						first = tx.Commit()
						return first
					}
					return tx.Commit()
				}); err != nil || runs != 2 {
					t.Errorf("Retry: %v after %d runs, want nil after 2", err, runs)
				}
				if class := livepool.Classify(first); errors.Is(first, livepool.ErrCommitUnknown) || class&livepool.Retry == 0 || class&livepool.ConnDead == 0 {
					t.Errorf("Commit: %v, %v, want a lost connection", first, class)
				}
				if n := count(t, s, "t"); n != 2 {
					t.Errorf("%d rows, want 2", n)
				}
			})
		}
	})
}

// stoppableConn is a connection of a process that can be stopped: what comes
// meanwhile is there all at once when it goes on.
type stoppableConn struct {
	*net.TCPConn
	gate *atomic.Pointer[chan struct{}]
}

func (c *stoppableConn) Read(b []byte) (int, error) {
	if gate := c.gate.Load(); gate != nil {
		<-*gate
	}
	return c.TCPConn.Read(b)
}

// The answer and the server's last message are read at once. The driver has no room
// for the next request then ("busy buffer"), and sends nothing.
func TestGoodbyeReadTogetherWithAnAnswer(t *testing.T) {
	s := servertest.Run(t, server.MySQL)
	withTable(t, s)
	var gate atomic.Pointer[chan struct{}]
	p := openWith(t, withParams(s.DSN(), "wait_timeout=1&pool_keepalive=0&pool_stall_after=0"), func(c *livepool.Config) {
		c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &stoppableConn{nc.(*net.TCPConn), &gate}, nil
		}
	})
	// inTheMeantime runs f, of which the answer comes together with the last message.
	inTheMeantime := func(f func() error) error {
		closed := make(chan struct{})
		gate.Store(&closed)
		go func() {
			defer close(closed)
			defer gate.Store(nil)
			labtest.Eventually(t, "the row is there", func() bool {
				list, err := s.Processes()
				return err == nil && slices.ContainsFunc(list, func(p server.Process) bool { return p.User == server.User })
			})
			labtest.AwaitDisconnect(t, s)
		}()
		return f()
	}
	for name, next := range map[string]labtest.UnitFunc{"commit": nil, "prepared": labtest.Insert(2), "text": func(ctx context.Context, u *livepool.Session) error {
		_, err := u.ExecContext(ctx, "INSERT INTO t (v) VALUES (2)")
		return err
	}} {
		t.Run(name, func(t *testing.T) {
			withTable(t, s)
			runs := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				first := func() error { _, err := u.ExecContext(ctx, "INSERT INTO t (v) VALUES (1)"); return err }
				if runs++; runs > 1 {
					return first()
				}
				if err := u.QueryRowContext(ctx, "SELECT 1").Scan(new(int)); err != nil {
					return err
				}
				if err := inTheMeantime(first); err != nil {
					return err
				}
				if next == nil {
					return nil
				}
				err := next(ctx, u)
				if livepool.Classify(err)&livepool.ConnDead == 0 {
					t.Errorf("%v: %v, want a lost connection", err, livepool.Classify(err))
				}
				return err
			})
			if n := count(t, s, "t WHERE v = 1"); err != nil || runs != 2 || n != 1 {
				t.Errorf("%v after %d runs, %d rows; want nil after 2, one row", err, runs, n)
			}
		})
	}
	t.Run("sql.Conn", func(t *testing.T) {
		c, _ := takeConn(t, p)
		if err := inTheMeantime(func() error { _, err := c.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (3)"); return err }); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ExecContext(t.Context(), "DO 1"); livepool.Classify(err)&livepool.Retry == 0 {
			t.Errorf("%v: %v, want a lost connection", err, livepool.Classify(err))
		}
	})
}

// A result that the program has left open keeps others from using the connection. That is
// the program's fault, and no loss.
func TestResultLeftOpenOnAConnIsNoLoss(t *testing.T) {
	s := servertest.Run(t, server.MySQL)
	p := open(t, s.DSN(), "")
	c, _ := takeConn(t, p)
	rows, err := c.QueryContext(context.Background(), "SELECT 1 UNION SELECT 2")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if _, err := c.ExecContext(context.Background(), "DO 1"); err == nil || !strings.Contains(err.Error(), "still open") {
		t.Errorf("got %v, want a refusal", err)
	}
	if n := p.Stats().Deaths; n != 0 {
		t.Errorf("%d deaths", n)
	}
}

// 4031 in place of an answer says nothing of the statement, which had run: in a
// unit that is a lost connection. Under compression the driver does not look at a
// packet's number, and so does not close the connection.
func TestIdleCloseInPlaceOfAStatementsAnswer(t *testing.T) {
	s, _ := openLedger(t, server.MySQL)
	for _, params := range []string{"compress=false", "compress=true"} {
		t.Run(params, func(t *testing.T) {
			if err := s.Exec("DELETE FROM t"); err != nil {
				t.Fatal(err)
			}
			via := proxyTo(t, s)
			p, log := openLogged(t, s.DSNVia(via.Addr()), "wait_timeout=3&pool_keepalive=0&pool_stall_after=0&"+params)
			runs := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				if err := labtest.Insert(1)(ctx, u); err != nil {
					return err
				}
				if runs++; runs == 1 {
					via.DropToClient(true)
					// The answer is lost, which comes at once; what the server says after its
					// wait_timeout comes through. The proxy does not see compressed statements.
					time.AfterFunc(1500*time.Millisecond, func() { via.DropToClient(false) })
				}
				_, err := u.ExecContext(ctx, "INSERT INTO t (v) VALUES (2)")
				return err
			})
			if n := count(t, s, "t"); err != nil || runs != 2 || n != 2 {
				t.Errorf("%v after %d runs, %d rows; want nil after 2, 2 rows", err, runs, n)
			}
			if lines := log.LinesWith("is run again"); len(lines) != 1 || !strings.Contains(lines[0], "in place of an answer the server said: Error 4031") {
				t.Errorf("the cause that is told is not what the server said: %q", lines)
			}
		})
	}
}

// That client and server do not agree on how to talk is no outage, and is not
// tried again.
func TestMisconfiguredConnectIsTriedOnce(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, params := range []string{"tls=true", "tls=skip-verify"} {
			t.Run(params, func(t *testing.T) {
				addr := s.Addr()
				p, log := openLogged(t, s.DSNVia(addr), params)
				start, runs := time.Now(), 0
				err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error { runs++; return labtest.Work(ctx, u) })
				if err == nil {
					return // the server speaks TLS, and its certificate was not looked at
				}
				if class := livepool.Classify(err); runs != 1 || class&livepool.Retry != 0 || time.Since(start) > 4*time.Second {
					t.Errorf("%v (%v) after %d runs and %s, want one", err, class, runs, time.Since(start))
				}
				if lines := log.LinesWith("cannot be reached"); len(lines) != 0 {
					t.Errorf("told as an outage: %q", lines)
				}
			})
		}
	})
}

// Below OpenConnector only the driver can look at the socket before COMMIT.
func TestLossBeforeCommitBelowOpenConnector(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		via := proxyTo(t, s)
		p, runs := labtest.Open(t, driversConnector(t, s.DSNVia(via.Addr())), nil), 0
		err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
			if _, err := u.ExecContext(ctx, "INSERT INTO t (v) VALUES (1)"); err != nil {
				return err
			}
			if runs++; runs == 1 {
				via.FIN()
				labtest.Eventually(t, "the connection is closed", func() bool { return via.Conns() == 0 })
			}
			return nil
		})
		if n := count(t, s, "t"); err != nil || runs != 2 || n != 1 {
			t.Errorf("%v after %d runs, %d rows; want nil after 2, one row", err, runs, n)
		}
	})
}
