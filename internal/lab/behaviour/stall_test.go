package behaviour_test

// Slow, or dead: what becomes of statements that have no reply for a while.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

// A statement may take as long as it likes. The stall check looks, and sees that
// it is at work.
func TestHonestSlowStatementsAreLeftInPeace(t *testing.T) {
	t.Parallel()
	slow := []struct {
		name string
		on   string
		run  func(ctx context.Context, s *server.Server, db queryer, row int) error
	}{
		{"text", "a conn", func(ctx context.Context, _ *server.Server, db queryer, _ int) error {
			return runSleep(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(8)"))
		}},
		{"prepared", "a conn", func(ctx context.Context, _ *server.Server, db queryer, _ int) error {
			return runSleep(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(?)", 8))
		}},
		{"session", "a session", func(ctx context.Context, _ *server.Server, db queryer, _ int) error {
			return runSleep(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(8)"))
		}},
		{"tx", "a tx", func(ctx context.Context, _ *server.Server, db queryer, _ int) error {
			return runSleep(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(8)"))
		}},
		{"many short ones", "a tx", func(ctx context.Context, _ *server.Server, db queryer, _ int) error {
			for range 10 {
				if err := runSleep(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(0.6)")); err != nil {
					return err
				}
			}
			return nil
		}},
		{"waiting for a row lock", "a conn", func(ctx context.Context, _ *server.Server, db queryer, row int) error {
			res, err := db.ExecContext(ctx, fmt.Sprintf("UPDATE account SET balance = balance + 1 WHERE id = %d", row))
			if err != nil {
				return err
			}
			if n, _ := res.RowsAffected(); n != 1 {
				return fmt.Errorf("%d rows affected", n)
			}
			return nil
		}},
		{"streamed slowly", "a conn", func(ctx context.Context, _ *server.Server, db queryer, _ int) error {
			return stream(ctx, db, "SELECT id, SLEEP(0.3), REPEAT('x', 20000) FROM account ORDER BY id LIMIT 20", 20)
		}},
		{"streamed slowly in a tx, prepared", "a tx", func(ctx context.Context, _ *server.Server, db queryer, _ int) error {
			return stream(ctx, db, "SELECT id, SLEEP(0.3), REPEAT('x', 20000) FROM account ORDER BY id LIMIT ?", 20, 20)
		}},
	}
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		var row atomic.Int32
		dsns := map[string]string{"direct": s.DSN(), "unix socket": s.SocketDSN()}
		for _, way := range proxyPaths(s) {
			dsns[way.name] = s.DSNVia(way.proxyTo(t, s).Addr())
		}
		for name, dsn := range dsns {
			all.run(t, name, func(t *testing.T) {
				p := open(t, dsn, "pool_stall_after=500ms")
				var wg sync.WaitGroup
				for _, tt := range slow {
					row := int(row.Add(1))
					var release func()
					if strings.Contains(tt.name, "lock") {
						release = holdRow(t, s, row)
						timer := time.AfterFunc(5*time.Second, release)
						defer timer.Stop()
					}
					wg.Go(func() {
						err := queryers[tt.on](t.Context(), p, func(db queryer) error {
							before := connectionID(t, db)
							if err := tt.run(t.Context(), s, db, row); err != nil {
								return err
							}
							if after := connectionID(t, db); after != before {
								return fmt.Errorf("begun on connection %d, ended on %d", before, after)
							}
							return nil
						})
						if err != nil {
							t.Errorf("%s: %v", tt.name, err)
						}
						if release != nil && balance(t, s, row) != 1 {
							t.Errorf("%s: applied %d times", tt.name, balance(t, s, row))
						}
					})
				}
				wg.Wait()
				st := p.Stats()
				t.Logf("%d looks at %d statements", st.StallChecks, len(slow))
				if st.StallChecks == 0 || st.Stalled+st.Killed+st.Deaths+st.Resent != 0 {
					t.Errorf("StallChecks %d, Stalled %d, Killed %d, Deaths %d, Resent %d, want checks and nothing else",
						st.StallChecks, st.Stalled, st.Killed, st.Deaths, st.Resent)
				}
			})
		}
	})
}

// stream reads a result of three columns and counts its rows.
func stream(ctx context.Context, db queryer, query string, want int, args ...any) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var id, slept int
		var filler string
		if err := rows.Scan(&id, &slept, &filler); err != nil {
			return err
		}
		if slept != 0 || len(filler) != 20000 {
			return fmt.Errorf("row %d: slept %d, %d bytes", id, slept, len(filler))
		}
		n++
	}
	if n != want && rows.Err() == nil {
		return fmt.Errorf("%d rows, want %d", n, want)
	}
	return rows.Err()
}

// A caller may do what he likes with named locks, his connection's beacon too.
// His statements are left in peace all the same.
func TestHonestStatementWithoutItsBeacon(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		for on, run := range queryers {
			all.run(t, on, func(t *testing.T) {
				px := proxyTo(t, s)
				p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=500ms")
				err := run(t.Context(), p, func(db queryer) error {
					if _, err := db.ExecContext(t.Context(), "DO RELEASE_ALL_LOCKS()"); err != nil {
						return err
					}
					return runSleep(t.Context(), db.QueryRowContext(t.Context(), "SELECT SLEEP(3)"))
				})
				if err != nil {
					t.Error(err)
				}
				if st := p.Stats(); st.StallChecks == 0 || st.Stalled != 0 {
					t.Errorf("StallChecks %d, Stalled %d", st.StallChecks, st.Stalled)
				}
			})
		}
	})
}

// A statement that is still on its way to the server is not one that the server
// has nothing to do for.
func TestSlowlyUploadedStatementIsLeftInPeace(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, s *server.Server) {
		p := openWith(t, s.DSN(), func(cfg *livepool.Config) {
			cfg.StallAfter = 500 * time.Millisecond
			cfg.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &slowUploadConn{Conn: nc, queue: make(chan []byte, 1<<16)}, nil
			}
		})
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start := time.Now()
		_, err = c.ExecContext(t.Context(), "DO LENGTH('"+strings.Repeat("x", 1<<20)+"')")
		t.Logf("1 MB took %s: %v", roundMS(time.Since(start)), err)
		if st := p.Stats(); err != nil || st.Stalled != 0 {
			t.Errorf("error %v, Stalled %d", err, st.Stalled)
		}
	})
}

// slowUploadConn is a connection over a slow line: it takes all that is written at once,
// as the kernel's buffers do, and delivers it at 256 KB/s.
type slowUploadConn struct {
	net.Conn
	once  sync.Once
	queue chan []byte
	done  sync.Once
}

func (n *slowUploadConn) Write(b []byte) (int, error) {
	n.once.Do(func() {
		go func() {
			for b := range n.queue {
				for len(b) > 0 {
					piece := b[:min(len(b), 16<<10)]
					if _, err := n.Conn.Write(piece); err != nil {
						return
					}
					if b = b[len(piece):]; len(piece) == 16<<10 {
						time.Sleep(62500 * time.Microsecond)
					}
				}
			}
		}()
	})
	n.queue <- slices.Clone(b)
	return len(b), nil
}

func (n *slowUploadConn) Close() error {
	n.done.Do(func() { close(n.queue) })
	return n.Conn.Close()
}

// One look that finds the server done is not enough: the reply may be on its
// way.
func TestLateReplyIsTaken(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		for _, way := range proxyPaths(s) {
			all.run(t, way.name, func(t *testing.T) {
				px := way.proxyTo(t, s)
				p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=8s")
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				id := connectionID(t, c)
				px.CutAfter(proxy.QueryPrefix("UPDATE"), proxy.Stall)
				done := make(chan error, 1)
				go func() {
					_, err := c.ExecContext(t.Context(), "UPDATE account SET balance = balance + 1 WHERE id = 90")
					done <- err
				}()
				labtest.Eventually(t, "there was a look", func() bool { return p.Stats().StallChecks == 1 })
				time.Sleep(100 * time.Millisecond) // it is over by now, and the next is far
				px.Heal()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if st := p.Stats(); st.StallChecks != 1 || st.Stalled != 0 {
					t.Errorf("StallChecks %d, Stalled %d, want one look and no verdict", st.StallChecks, st.Stalled)
				} else if now := connectionID(t, c); now != id {
					t.Errorf("begun on connection %d, ended on %d", id, now)
				}
			})
		}
	})
}

// Whatever waits for a reply that will not come is told so. What has no effect is
// sent again, and its caller sees nothing.
func TestStallIsNoticed(t *testing.T) {
	const quick = 5 * time.Second
	command := proxy.Command
	waits := []struct {
		name   string
		match  proxy.Match
		run    func(ctx context.Context, c *sql.Conn, p *livepool.Pool, arm func()) error
		resent bool
	}{
		{"Exec", proxy.QueryPrefix("UPDATE"), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			arm()
			_, err := c.ExecContext(ctx, "UPDATE account SET balance = 0 WHERE id = 1")
			return err
		}, false},
		{"Query", proxy.QueryPrefix("SELECT"), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			arm()
			rows, err := c.QueryContext(ctx, "SELECT id FROM account")
			if err == nil {
				defer rows.Close()
				for rows.Next() {
				}
				err = rows.Err()
			}
			return err
		}, false},
		{"Prepare", command(proxy.ComStmtPrepare), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			arm()
			_, err := c.PrepareContext(ctx, "SELECT id FROM account WHERE id > ?")
			return err
		}, false},
		{"prepared Exec", command(proxy.ComStmtExecute), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			st, err := c.PrepareContext(ctx, "UPDATE account SET balance = 0 WHERE id = ?")
			if err != nil {
				return nil
			}
			defer st.Close()
			arm()
			_, err = st.ExecContext(ctx, 1)
			return err
		}, false},
		{"prepared Query", command(proxy.ComStmtExecute), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			st, err := c.PrepareContext(ctx, "SELECT id FROM account WHERE id > ?")
			if err != nil {
				return nil
			}
			defer st.Close()
			arm()
			var id int
			return st.QueryRowContext(ctx, 1).Scan(&id)
		}, false},
		{"Begin", proxy.QueryPrefix("START"), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			arm()
			_, err := c.BeginTx(ctx, nil)
			return err
		}, false},
		{"Ping", command(proxy.ComPing), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			arm()
			return c.PingContext(ctx)
		}, false},
		{"Commit", proxy.QueryPrefix("COMMIT"), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			tx, err := c.BeginTx(ctx, nil)
			if err != nil {
				return nil
			}
			if _, err := tx.ExecContext(ctx, "UPDATE account SET balance = 0 WHERE id = 2"); err != nil {
				return nil
			}
			arm()
			return tx.Commit()
		}, false},
		{"Rollback", proxy.QueryPrefix("ROLLBACK"), func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, arm func()) error {
			tx, err := c.BeginTx(ctx, nil)
			if err != nil {
				return nil
			}
			if _, err := tx.ExecContext(ctx, "UPDATE account SET balance = 0 WHERE id = 3"); err != nil {
				return nil
			}
			arm()
			return tx.Rollback()
		}, false},
		{"rows.Next in the middle", nil, func(ctx context.Context, c *sql.Conn, _ *livepool.Pool, stall func()) error {
			rows, err := c.QueryContext(ctx, "SELECT id, SLEEP(0.1), REPEAT('x', 20000) FROM account ORDER BY id LIMIT 12")
			if err != nil {
				return nil
			}
			defer rows.Close()
			for n := 0; rows.Next(); n++ {
				if n == 3 {
					stall()
				}
			}
			return rows.Err()
		}, false},
		{"Begin on the pool", proxy.QueryPrefix("START"), func(ctx context.Context, c *sql.Conn, p *livepool.Pool, arm func()) error {
			c.Close()
			arm()
			tx, err := p.BeginTx(ctx, nil)
			if err == nil {
				tx.Rollback()
			}
			return err
		}, true},
		{"Prepare on the pool", command(proxy.ComStmtPrepare), func(ctx context.Context, c *sql.Conn, p *livepool.Pool, arm func()) error {
			c.Close()
			arm()
			st, err := p.PrepareContext(ctx, "SELECT id FROM account WHERE id > ?")
			if err == nil {
				st.Close()
			}
			return err
		}, true},
		{"Idempotent Exec on the pool", proxy.QueryPrefix("UPDATE"), func(ctx context.Context, c *sql.Conn, p *livepool.Pool, arm func()) error {
			c.Close()
			arm()
			_, err := p.ExecContext(livepool.Idempotent(ctx), "UPDATE account SET balance = 0 WHERE id = 4")
			return err
		}, true},
	}
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		for _, way := range proxyPaths(s) {
			for _, tt := range waits {
				all.run(t, way.name+", "+tt.name, func(t *testing.T) {
					px := way.proxyTo(t, s)
					p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=500ms&pool_ping_timeout=20s")
					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					orphan := connectionID(t, c)
					var start time.Time
					err = tt.run(t.Context(), c, p, func() {
						start = time.Now()
						if tt.match == nil {
							px.Stall()
						} else {
							px.CutBefore(tt.match, proxy.Stall)
						}
					})
					took := time.Since(start)
					if start.IsZero() {
						t.Fatal("failed before the stall")
					}
					t.Logf("after %s: %v", roundMS(took), err)
					if took > quick {
						t.Errorf("it took %s", took)
					}
					if tt.resent != (err == nil) {
						t.Errorf("error %v", err)
					}
					// Of Exec and of rows the caller learns no more than that; the log has the rest.
					if err != nil && !errors.Is(err, mysql.ErrInvalidConn) && !strings.Contains(err.Error(), "no reply for") {
						t.Errorf("%q does not tell that the connection is lost", err)
					}
					c.Close()
					t.Logf("the orphan was gone %s later", roundMS(waitWithin(t, quick, "the orphan is gone", func() bool { return !isThreadAlive(t, s, orphan) })))
					if st := awaitOrphans(t, p, 1); st.Stalled != 1 || st.Killed != 1 {
						t.Errorf("Stalled %d, Killed %d, want one of each", st.Stalled, st.Killed)
					}
				})
			}
		}
	})
}

// A black hole around COMMIT is resolved in seconds by VerifyCommit; without it
// the caller is told that nobody knows, and nothing is applied twice.
func TestBlackHoleDuringCommit(t *testing.T) {
	holes := []struct {
		name    string
		dig     func(px *proxy.Proxy) // before the unit
		last    func(px *proxy.Proxy) // as the last thing in it
		applied int                   // the first COMMIT
	}{
		{"the reply is held up", func(px *proxy.Proxy) { px.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.Stall) }, nil, 1},
		{"the reply is lost", nil, func(px *proxy.Proxy) {
			px.DropToClient(true)
			afterNextQuery(px, func() { px.DropToClient(false) })
		}, 1},
		{"COMMIT is held up", func(px *proxy.Proxy) { px.CutBefore(proxy.QueryPrefix("COMMIT"), proxy.Stall) }, nil, 0},
	}
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		var unit atomic.Int32
		for _, way := range proxyPaths(s) {
			for _, hole := range holes {
				for _, verify := range []bool{true, false} {
					all.run(t, fmt.Sprintf("%s, %s, verify=%v", way.name, hole.name, verify), func(t *testing.T) {
						v := int(unit.Add(1))
						px := way.proxyTo(t, s)
						p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=500ms")
						if hole.dig != nil {
							hole.dig(px)
						}
						var orphan int64
						attempts := 0
						var opts []livepool.SessionOption
						if verify {
							opts = append(opts, livepool.VerifyCommit())
						}
						start := time.Now()
						err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
							attempts++
							if _, err := u.ExecContext(ctx, fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v)); err != nil {
								return err
							}
							if attempts == 1 {
								orphan = connectionID(t, u)
								if hole.last != nil {
									hole.last(px)
								}
							}
							return nil
						}, opts...)
						took := time.Since(start)
						t.Logf("%d run(s) of the function, after %s: %v", attempts, roundMS(took), err)
						if took > 15*time.Second {
							t.Errorf("it took %s", took)
						}
						want := 1
						if verify {
							if err != nil {
								t.Errorf("error %v, want nil", err)
							}
						} else {
							want = hole.applied
							if !errors.Is(err, livepool.ErrCommitUnknown) {
								t.Errorf("error %v, want ErrCommitUnknown", err)
							} else if !strings.Contains(err.Error(), "no reply for") {
								t.Errorf("%q does not tell of the stall", err)
							}
						}
						waitWithin(t, 5*time.Second, "the orphan is gone", func() bool { return !isThreadAlive(t, s, orphan) })
						px.Heal() // what was held up arrives, if there is anyone to take it
						time.Sleep(100 * time.Millisecond)
						if n := count(t, s, fmt.Sprintf("t WHERE v = %d", v)); n != want {
							t.Errorf("%d rows, want %d", n, want)
						}
						if st := p.Stats(); st.Stalled != 1 {
							t.Errorf("Stalled %d, want 1", st.Stalled)
						}
					})
				}
			}
		}
	})
}
