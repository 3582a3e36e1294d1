package livepool_test

// What is left on the server by connections that were given up, and statements
// that get no reply: KillAbandoned, Beacon and StallAfter, on real servers.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"net"
	"slices"
	"strconv"

	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/proxy"
	"github.com/livepool/livepool/internal/server"
)

// haunted runs f on a server of each kind, on both at the same time. The server
// has the table t, the accounts 1 to 99 and the commit table, and MariaDB's
// understands the PROXY header.
func haunted(t *testing.T, f func(t *testing.T, s *server.Server)) {
	var all crowd
	for _, kind := range server.Kinds() {
		all.run(t, string(kind), func(t *testing.T) { f(t, hauntedServer(t, kind)) })
	}
	all.wg.Wait()
}

// crowd runs subtests at the same time, all of them: most of their time is spent
// waiting.
type crowd struct{ wg sync.WaitGroup }

func (c *crowd) run(t *testing.T, name string, f func(t *testing.T)) {
	c.wg.Go(func() { t.Run(name, f) })
}

func hauntedServer(t *testing.T, kind server.Kind, args ...string) *server.Server {
	t.Helper()
	if kind != server.MySQL {
		args = append(args, "--proxy-protocol-networks=127.0.0.1")
	}
	s, _ := ledger(t, kind, args...)
	var values []string
	for id := 10; id < 100; id++ {
		values = append(values, fmt.Sprintf("(%d,0)", id))
	}
	if err := s.Exec("INSERT INTO test.account VALUES " + strings.Join(values, ",")); err != nil {
		t.Fatal(err)
	}
	holdRow(t, s, 99) // for cancelled
	return s
}

// A path is a way from the pool to a server.
type path struct {
	name string
	opts []proxy.Option // of its proxy
}

// paths are those through a proxy: one behind which the server sees the proxy's
// ports, and one behind which it sees the client's.
func paths(s *server.Server) []path {
	all := []path{{"port rewritten", nil}}
	if s.Kind() != server.MySQL {
		all = append(all, path{"PROXY header", []proxy.Option{proxy.WithProxyHeader()}})
	}
	return all
}

func (w path) front(t testing.TB, s *server.Server) *proxy.Proxy {
	t.Helper()
	p, err := proxy.New(s.Addr(), w.opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// listing is a server's processlist, a little old: many ask at the same time.
type listing struct {
	mu   sync.Mutex
	at   time.Time
	list []server.Process
}

var listings sync.Map // by *server.Server

func processes(t testing.TB, s *server.Server) []server.Process {
	t.Helper()
	v, _ := listings.LoadOrStore(s, new(listing))
	l := v.(*listing)
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) > 30*time.Millisecond {
		list, err := s.Processes()
		if err != nil {
			t.Error(err)
		}
		l.at, l.list = time.Now(), list
	}
	return l.list
}

// threads are the ids of those that run a statement with this text in it.
func threads(t testing.TB, s *server.Server, text string) (ids []int64) {
	t.Helper()
	for _, p := range processes(t, s) {
		if strings.Contains(p.Info, text) {
			ids = append(ids, int64(p.ID))
		}
	}
	return ids
}

func isThere(t testing.TB, s *server.Server, id int64) bool {
	t.Helper()
	return slices.ContainsFunc(processes(t, s), func(p server.Process) bool { return p.ID == uint64(id) })
}

// within waits for a condition, less long than eventually, and tells how long.
func within(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Errorf("waited %s in vain until %s", limit, what)
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

func killByHand(t testing.TB, s *server.Server, id int64) {
	t.Helper()
	if err := s.Exec(fmt.Sprintf("KILL %d", id)); err != nil && !isServerError(err, 1094) {
		t.Error(err)
	}
}

func balance(t testing.TB, s *server.Server, id int) (n int) {
	t.Helper()
	if err := s.QueryRow(fmt.Sprintf("SELECT balance FROM test.account WHERE id = %d", id), &n); err != nil {
		t.Error(err)
	}
	return n
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// A unit of work whose connection falls silent after its UPDATE holds a row lock
// on the server, where innodb_lock_wait_timeout is 50s. Its retry does not wait
// for that.
func TestBlackHoledUnitIsRetriedPastItsOwnGhost(t *testing.T) {
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		var row atomic.Int32
		for _, way := range paths(s) {
			for _, kill := range []bool{true, false} {
				all.run(t, fmt.Sprintf("%s, kill_abandoned=%v", way.name, kill), func(t *testing.T) {
					row := int(row.Add(1))
					px := way.front(t, s)
					p := open(t, s.DSNVia(px.Addr()), fmt.Sprintf("pool_stall_after=500ms&pool_kill_abandoned=%v", kill))
					var ghost atomic.Int64
					var began atomic.Pointer[time.Time]
					px.CutAfter(proxy.QueryPrefix("UPDATE account"), proxy.Stall)
					done := make(chan error, 1)
					start := time.Now()
					go func() {
						done <- p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
							now := time.Now()
							began.Store(&now)
							if u.Attempt() == 1 {
								var id int64
								if err := u.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
									return err
								}
								ghost.Store(id)
							}
							_, err := u.ExecContext(ctx, fmt.Sprintf("UPDATE account SET balance = balance + 1 WHERE id = %d", row))
							return err
						})
					}()
					if kill {
						if err := <-done; err != nil {
							t.Fatal(err)
						}
						took := time.Since(start)
						t.Logf("committed %s after it began, with the ghost killed", ms(took))
						if took > 15*time.Second {
							t.Errorf("it took %s", took)
						}
						within(t, 5*time.Second, "the ghost is gone", func() bool { return !isThere(t, s, ghost.Load()) })
						if st := p.Stats(); st.Stalled != 1 || st.Killed != 1 || st.Retried != 1 {
							t.Errorf("Stalled %d, Killed %d, Retried %d, want one of each", st.Stalled, st.Killed, st.Retried)
						}
					} else {
						eventually(t, "it is tried again", func() bool { return p.Stats().Retried == 1 })
						select {
						case err := <-done:
							t.Fatalf("it did not wait for the lock: %v", err)
						case <-time.After(3 * time.Second):
						}
						waited := time.Since(*began.Load())
						if !isThere(t, s, ghost.Load()) {
							t.Error("the ghost is gone, by whom?")
						}
						killByHand(t, s, ghost.Load())
						released := time.Now()
						if err := <-done; err != nil {
							t.Fatal(err)
						}
						t.Logf("waited for the ghost's lock for %s; committed %s after the ghost was killed by hand", ms(waited), ms(time.Since(released)))
						if st := p.Stats(); st.Killed+st.KillUnneeded+st.KillUnproved+st.KillFailed != 0 {
							t.Errorf("something was done about a ghost: %+v", st)
						}
					}
					if n := balance(t, s, row); n != 1 {
						t.Errorf("applied %d times, want once", n)
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
			time.AfterFunc(300*time.Millisecond, func() { px.DropToClient(false) })
		}, 1},
		{"COMMIT is held up", func(px *proxy.Proxy) { px.CutBefore(proxy.QueryPrefix("COMMIT"), proxy.Stall) }, nil, 0},
	}
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		var unit atomic.Int32
		for _, way := range paths(s) {
			for _, hole := range holes {
				for _, verify := range []bool{true, false} {
					all.run(t, fmt.Sprintf("%s, %s, verify=%v", way.name, hole.name, verify), func(t *testing.T) {
						v := int(unit.Add(1))
						px := way.front(t, s)
						p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=500ms")
						if hole.dig != nil {
							hole.dig(px)
						}
						var ghost int64
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
								ghost = connectionID(t, u)
								if hole.last != nil {
									hole.last(px)
								}
							}
							return nil
						}, opts...)
						took := time.Since(start)
						t.Logf("%d run(s) of the function, after %s: %v", attempts, ms(took), err)
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
						within(t, 5*time.Second, "the ghost is gone", func() bool { return !isThere(t, s, ghost) })
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

// holdRow locks a row until the function that it returns is called.
func holdRow(t testing.TB, s *server.Server, id int) (release func()) {
	t.Helper()
	tx, err := openPlain(t, s.DSN()).Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE account SET balance = balance WHERE id = ?", id); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	return func() { tx.Rollback() }
}

// asker is what runs a statement on one connection.
type asker interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
	PrepareContext(context.Context, string) (*sql.Stmt, error)
}

// onOneConn runs f on one connection of the pool, which f must leave as it is,
// as a sql.Conn, in a transaction or in a session.
var onOneConn = map[string]func(context.Context, *livepool.Pool, func(asker) error) error{
	"a conn": func(ctx context.Context, p *livepool.Pool, f func(asker) error) error {
		c, err := p.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		return f(c)
	},
	"a tx": func(ctx context.Context, p *livepool.Pool, f func(asker) error) error {
		tx, err := p.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if err := f(tx); err != nil {
			return err
		}
		return tx.Commit()
	},
	"a session": func(ctx context.Context, p *livepool.Pool, f func(asker) error) error {
		return p.WithSession(ctx, func(_ context.Context, u *livepool.Session) error { return f(u) }, livepool.MaxAttempts(1))
	},
}

// sleeps runs SELECT SLEEP and fails if that was cut short.
func sleeps(ctx context.Context, row *sql.Row) error {
	var n int
	if err := row.Scan(&n); err != nil || n == 0 {
		return err
	}
	return errors.New("SLEEP was interrupted")
}

// A statement may take as long as it likes. The stall check looks, and sees that
// it is at work.
func TestHonestSlowStatementsAreLeftInPeace(t *testing.T) {
	t.Parallel()
	slow := []struct {
		name string
		on   string
		run  func(ctx context.Context, s *server.Server, db asker, row int) error
	}{
		{"text", "a conn", func(ctx context.Context, _ *server.Server, db asker, _ int) error {
			return sleeps(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(8)"))
		}},
		{"prepared", "a conn", func(ctx context.Context, _ *server.Server, db asker, _ int) error {
			return sleeps(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(?)", 8))
		}},
		{"session", "a session", func(ctx context.Context, _ *server.Server, db asker, _ int) error {
			return sleeps(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(8)"))
		}},
		{"tx", "a tx", func(ctx context.Context, _ *server.Server, db asker, _ int) error {
			return sleeps(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(8)"))
		}},
		{"many short ones", "a tx", func(ctx context.Context, _ *server.Server, db asker, _ int) error {
			for range 10 {
				if err := sleeps(ctx, db.QueryRowContext(ctx, "SELECT SLEEP(0.6)")); err != nil {
					return err
				}
			}
			return nil
		}},
		{"waiting for a row lock", "a conn", func(ctx context.Context, _ *server.Server, db asker, row int) error {
			res, err := db.ExecContext(ctx, fmt.Sprintf("UPDATE account SET balance = balance + 1 WHERE id = %d", row))
			if err != nil {
				return err
			}
			if n, _ := res.RowsAffected(); n != 1 {
				return fmt.Errorf("%d rows affected", n)
			}
			return nil
		}},
		{"streamed slowly", "a conn", func(ctx context.Context, _ *server.Server, db asker, _ int) error {
			return stream(ctx, db, "SELECT id, SLEEP(0.3), REPEAT('x', 20000) FROM account ORDER BY id LIMIT 20", 20)
		}},
		{"streamed slowly in a tx, prepared", "a tx", func(ctx context.Context, _ *server.Server, db asker, _ int) error {
			return stream(ctx, db, "SELECT id, SLEEP(0.3), REPEAT('x', 20000) FROM account ORDER BY id LIMIT ?", 20, 20)
		}},
	}
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		var row atomic.Int32
		dsns := map[string]string{"direct": s.DSN(), "unix socket": s.SocketDSN()}
		for _, way := range paths(s) {
			dsns[way.name] = s.DSNVia(way.front(t, s).Addr())
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
						err := onOneConn[tt.on](t.Context(), p, func(db asker) error {
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
func stream(ctx context.Context, db asker, query string, want int, args ...any) error {
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
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		for _, way := range paths(s) {
			for _, tt := range waits {
				all.run(t, way.name+", "+tt.name, func(t *testing.T) {
					px := way.front(t, s)
					p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=500ms&pool_ping_timeout=20s")
					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					ghost := connectionID(t, c)
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
					t.Logf("after %s: %v", ms(took), err)
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
					t.Logf("the ghost was gone %s later", ms(within(t, quick, "the ghost is gone", func() bool { return !isThere(t, s, ghost) })))
					if st := awaitFates(t, p, 1); st.Stalled != 1 || st.Killed != 1 {
						t.Errorf("Stalled %d, Killed %d, want one of each", st.Stalled, st.Killed)
					}
				})
			}
		}
	})
}

// running is a statement that takes 30 seconds, in the ways in which one can be
// run: it waits for a lock (see holdLock). The query has a mark by which its
// thread is found. (MariaDB 10.11's KILL now and then hangs for five seconds where
// many threads are in SLEEP.)
var running = []struct {
	name string
	run  func(ctx context.Context, p *livepool.Pool, mark string) error
}{
	{"Exec", func(ctx context.Context, p *livepool.Pool, mark string) error {
		_, err := p.ExecContext(ctx, "DO GET_LOCK('held', 30) "+mark)
		return err
	}},
	{"rows", func(ctx context.Context, p *livepool.Pool, mark string) error {
		rows, err := p.QueryContext(ctx, "SELECT id, SLEEP(0.4), REPEAT('x', 20000) FROM account "+mark)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
		}
		return rows.Err()
	}},
	{"prepared", func(ctx context.Context, p *livepool.Pool, mark string) error {
		st, err := p.Prepare("DO GET_LOCK('held', ?) " + mark)
		if err != nil {
			return err
		}
		defer st.Close()
		_, err = st.ExecContext(ctx, 30)
		return err
	}},
	{"prepared rows", func(ctx context.Context, p *livepool.Pool, mark string) error {
		var n int
		return p.QueryRowContext(ctx, "SELECT GET_LOCK('held', ?) "+mark, 30).Scan(&n)
	}},
	{"session", func(ctx context.Context, p *livepool.Pool, mark string) error {
		return p.WithSession(ctx, func(ctx context.Context, u *livepool.Session) error {
			_, err := u.ExecContext(ctx, "DO GET_LOCK('held', 30) "+mark)
			return err
		})
	}},
	{"sql.Conn", func(ctx context.Context, p *livepool.Pool, mark string) error {
		c, err := p.Conn(context.Background())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.ExecContext(ctx, "DO GET_LOCK('held', 30) "+mark)
		return err
	}},
	{"sql.Tx", func(ctx context.Context, p *livepool.Pool, mark string) error {
		tx, err := p.Begin()
		if err != nil {
			return err
		}
		defer tx.Rollback()
		_, err = tx.ExecContext(ctx, "DO GET_LOCK('held', 30) "+mark)
		return err
	}},
}

// holdLock takes the lock that the statements of running wait for.
func holdLock(t testing.TB, s *server.Server) {
	t.Helper()
	if _, err := openInnocent(t, s.DSN(), nil).ExecContext(t.Context(), "DO GET_LOCK('held', 0)"); err != nil {
		t.Fatal(err)
	}
}

// A caller whose context ends gets it at once, and what he had run does not go
// on without him.
func TestCancelledStatementEndsOnTheServer(t *testing.T) {
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		holdLock(t, s)
		renumbered := path{"ids rewritten", []proxy.Option{proxy.WithThreadIDs(func(real uint32) uint32 { return real + 1000000 })}}
		dsns := map[string]string{"direct": s.DSN(), "direct, an ordinary user": s.AppDSN(s.Addr()), "unix socket": s.SocketDSN()}
		for _, way := range append(paths(s), renumbered) {
			dsns[way.name] = s.DSNVia(way.front(t, s).Addr())
		}
		for way, dsn := range dsns {
			p := open(t, dsn, "")
			var mu sync.Mutex
			var slowest, longest time.Duration
			all.run(t, way, func(t *testing.T) {
				var each crowd
				for i, tt := range running {
					each.run(t, tt.name, func(t *testing.T) {
						mark := fmt.Sprintf("/* %s, %d */", way, i)
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						done := make(chan error, 1)
						go func() { done <- tt.run(ctx, p, mark) }()
						eventually(t, "it runs", func() bool { return len(threads(t, s, mark)) == 1 })
						if tt.name == "rows" {
							time.Sleep(time.Second) // some are read
						}
						cancelled := time.Now()
						cancel()
						err := <-done
						returned := time.Since(cancelled)
						if returned > 5*time.Second || !errors.Is(err, context.Canceled) {
							t.Errorf("returned %s after the end of its context: %v", returned, err)
						}
						within(t, 5*time.Second, "the thread is gone", func() bool { return len(threads(t, s, mark)) == 0 })
						mu.Lock()
						slowest, longest = max(slowest, returned), max(longest, time.Since(cancelled))
						mu.Unlock()
					})
				}
				each.wg.Wait()
				t.Logf("the slowest of %d callers returned after %s, the last thread was gone after %s", len(running), ms(slowest), ms(longest))
				eventually(t, "all are counted", func() bool {
					st := p.Stats()
					return st.Killed+st.KillUnneeded+st.KillUnproved+st.KillFailed >= int64(len(running))
				})
				// A server may notice by itself that its client has gone.
				if st := p.Stats(); st.Killed == 0 || st.Killed+st.KillUnneeded != int64(len(running)) {
					t.Errorf("Killed %d, KillUnneeded %d, KillUnproved %d, KillFailed %d", st.Killed, st.KillUnneeded, st.KillUnproved, st.KillFailed)
				}
			})
		}
	})
}

// An autocommit statement that waits for a lock when its caller gives up is, on
// plain database/sql, applied after the caller was told that it failed.
func TestCancelledUpdateIsNotAppliedLater(t *testing.T) {
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		for i, tt := range []struct {
			name    string
			db      *sql.DB
			applied int
		}{
			{"livepool", open(t, s.DSN(), "").DB, 0},
			{"plain", openPlain(t, s.DSN()), 1},
		} {
			row := 50 + i
			all.run(t, tt.name, func(t *testing.T) {
				release := holdRow(t, s, row)
				query := fmt.Sprintf("UPDATE account SET balance = balance + 1 WHERE id = %d", row)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() {
					_, err := tt.db.ExecContext(ctx, query)
					done <- err
				}()
				eventually(t, "it waits", func() bool { return len(threads(t, s, query)) == 1 })
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				if tt.applied == 0 {
					within(t, 5*time.Second, "its thread is gone", func() bool { return len(threads(t, s, query)) == 0 })
				}
				release()
				eventually(t, "nobody runs it any more", func() bool { return len(threads(t, s, query)) == 0 })
				time.Sleep(200 * time.Millisecond)
				n := balance(t, s, row)
				t.Logf("its caller was told %v, and it was applied %d time(s)", context.Canceled, n)
				if n != tt.applied {
					t.Errorf("applied %d times, want %d", n, tt.applied)
				}
			})
		}
	})
}

// innocent is a connection of the same user that nobody may touch.
type innocent struct {
	*sql.Conn
	id int64
}

// openInnocent opens one on a driver's DSN, with a dialer if one is given.
func openInnocent(t testing.TB, dsn string, dial func(context.Context, string, string) (net.Conn, error)) innocent {
	t.Helper()
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.DialFunc = dial
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxIdleConns(-1) // closed is closed
	t.Cleanup(func() { db.Close() })
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return innocent{c, connectionID(t, c)}
}

// unharmed fails the test if the connection is not the one that it was.
func (i innocent) unharmed(t testing.TB) {
	t.Helper()
	var id int64
	if err := i.QueryRowContext(context.Background(), "SELECT CONNECTION_ID()").Scan(&id); err != nil || id != i.id {
		t.Errorf("an innocent, thread %d, was harmed: now %d, %v", i.id, id, err)
	}
}

// innocents opens connections until there are some with every id of a range. The
// server must be behind it.
func innocents(t testing.TB, dsn string, from, to int64, dial func(context.Context, string, string) (net.Conn, error)) (all []innocent) {
	t.Helper()
	for id := int64(0); id < to; {
		i := openInnocent(t, dsn, dial)
		if id = i.id; id >= from {
			all = append(all, i)
		} else {
			i.Close()
		}
	}
	if len(all) == 0 || all[0].id > from {
		t.Fatalf("the server was past %d already", from)
	}
	return all
}

// awaitFates waits until the pool has dealt with n ghosts.
func awaitFates(t testing.TB, p *livepool.Pool, n int64) livepool.Stats {
	t.Helper()
	within(t, 10*time.Second, fmt.Sprintf("%d ghosts are dealt with", n), func() bool {
		st := p.Stats()
		return st.Killed+st.KillUnneeded+st.KillUnproved+st.KillFailed >= n
	})
	return p.Stats()
}

// cancelled runs a statement that waits for a row lock on c, cancels it when it runs, and
// returns the ghost.
func cancelled(t testing.TB, s *server.Server, c *sql.Conn, mark string) (ghost int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.ExecContext(ctx, "UPDATE account SET balance = 0 WHERE id = 99 /* "+mark+" */")
		done <- err
	}()
	eventually(t, "it runs", func() bool { return len(threads(t, s, mark)) == 1 })
	ghost = threads(t, s, mark)[0]
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.Close()
	return ghost
}

// A proxy that greets with ids of its own may name anybody's. Those whom it
// names live; the right one dies, if it can be told.
func TestProxyThatNamesOthersHarmsNobody(t *testing.T) {
	t.Parallel()
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		for _, beacon := range []string{"auto", "on", "off"} {
			for _, way := range paths(s) {
				all.run(t, "beacon="+beacon+", "+way.name, func(t *testing.T) {
					var named []innocent
					for range 4 {
						named = append(named, openInnocent(t, s.DSN(), nil))
					}
					next := 0
					way.opts = append(slices.Clone(way.opts), proxy.WithThreadIDs(func(uint32) uint32 {
						next++
						return uint32(named[next%len(named)].id)
					}))
					px := way.front(t, s)
					p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=500ms&pool_beacon="+beacon)
					busy := make(chan error, 1)
					go func() {
						busy <- sleeps(context.Background(), named[0].QueryRowContext(context.Background(), "SELECT SLEEP(3)"))
					}()

					ghosts := int64(0)
					for i := range 2 * len(named) {
						c, err := p.Conn(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						ghost := cancelled(t, s, c, fmt.Sprintf("beacon=%s, %s, %d", beacon, way.name, i))
						ghosts++
						st := awaitFates(t, p, ghosts)
						switch {
						case beacon == "off":
							if st.KillUnproved != ghosts || !isThere(t, s, ghost) {
								t.Errorf("ghost %d: Killed %d, KillUnproved %d; want it alive and unproved", ghost, st.Killed, st.KillUnproved)
							}
							killByHand(t, s, ghost)
						default:
							within(t, 5*time.Second, "the ghost is gone", func() bool { return !isThere(t, s, ghost) })
							if st.Killed+st.KillUnneeded != ghosts {
								t.Errorf("Killed %d, want %d", st.Killed, ghosts)
							}
						}
					}

					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					ghost := connectionID(t, c)
					px.Stall()
					ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
					defer cancel()
					_, err = c.ExecContext(ctx, "DO 1")
					c.Close()
					if stalled := p.Stats().Stalled; (stalled == 1) != (beacon != "off") || err == nil {
						t.Errorf("Stalled %d, error %v", stalled, err)
					}
					ghosts++
					if st := awaitFates(t, p, ghosts); beacon == "off" && st.Killed+st.KillUnneeded != 0 {
						t.Errorf("Killed %d, KillUnneeded %d without any proof", st.Killed, st.KillUnneeded)
					} else if beacon != "off" && isThere(t, s, ghost) {
						within(t, 5*time.Second, "the stalled one is gone", func() bool { return !isThere(t, s, ghost) })
					}
					killByHand(t, s, ghost)
					if err := <-busy; err != nil {
						t.Errorf("a busy innocent: %v", err)
					}
					for _, i := range named {
						i.unharmed(t)
					}
				})
			}
		}
	})
}

// raise opens and closes connections until the next one that the server takes
// has a higher id than any that the other has given.
func raise(t testing.TB, s, other *server.Server) {
	t.Helper()
	newest := func(s *server.Server) int64 {
		i := openInnocent(t, s.DSN(), nil)
		defer i.Close()
		return i.id
	}
	for floor := newest(other) + 30; newest(s) < floor; {
	}
}

// Where one address leads to two servers, a thread id is not worth much: that of
// an abandoned connection is an innocent's on the other one. And a statement
// that runs on one of them is not gone because the other does not know it.
func TestTwoServersBehindOneAddress(t *testing.T) {
	both := func(a, b *server.Server) []string { return []string{a.Addr(), b.Addr()} }
	cases := []struct {
		name string
		on   int // of the two servers, where the statement runs; the pool gets to know the first
		side func(first, second *server.Server) []string
	}{
		{"it runs on the first, who looks lands on the second", 0, func(_, b *server.Server) []string { return []string{b.Addr()} }},
		{"it runs on the first, who looks lands on both", 0, both},
		{"it runs on the second, who looks lands on the first", 1, func(a, _ *server.Server) []string { return []string{a.Addr()} }},
		{"it runs on the second, who looks lands on both", 1, both},
	}
	haunted(t, func(t *testing.T, first *server.Server) {
		second := hauntedServer(t, first.Kind())
		var all crowd
		defer all.wg.Wait()
		var counting sync.Mutex // held while the servers' ids must not change by others
		for _, way := range paths(first) {
			for _, tt := range cases {
				all.run(t, way.name+", "+tt.name, func(t *testing.T) {
					counting.Lock()
					free := sync.OnceFunc(counting.Unlock)
					defer free()
					px := way.front(t, first)
					p := open(t, first.DSNVia(px.Addr()), "pool_stall_after=500ms")
					known, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer known.Close()

					here, there := first, second
					if tt.on == 1 {
						here, there = second, first
						px.SetUpstream(second.Addr())
					}
					raise(t, here, there)
					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					honest, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer honest.Close()
					id, honestID := connectionID(t, c), connectionID(t, honest)
					named := innocents(t, there.DSN(), id, honestID, nil)
					px.SetUpstreams(tt.side(first, second)...)
					free()

					var busy sync.WaitGroup
					busy.Go(func() {
						if err := sleeps(t.Context(), honest.QueryRowContext(t.Context(), "SELECT SLEEP(3)")); err != nil {
							t.Errorf("an honest statement: %v", err)
						} else if now := connectionID(t, honest); now != honestID {
							t.Errorf("an honest statement ended on connection %d, not %d", now, honestID)
						}
					})
					ghost := cancelled(t, here, c, t.Name())
					st := awaitFates(t, p, 1)
					for _, i := range named {
						i.unharmed(t)
					}
					// Where a server sees the client's own port and every look lands on
					// it, nothing shows that there is another one.
					unknowable := way.name == "PROXY header" && tt.on == 1 && len(tt.side(first, second)) == 1
					if st.KillUnneeded != 0 && isThere(t, here, ghost) && !unknowable {
						t.Errorf("KillUnneeded %d, but the ghost is there", st.KillUnneeded)
					}
					busy.Wait()
					for _, i := range named {
						i.unharmed(t)
					}
					st = p.Stats()
					t.Logf("Killed %d, KillUnneeded %d, KillUnproved %d, StallChecks %d, Stalled %d", st.Killed, st.KillUnneeded, st.KillUnproved, st.StallChecks, st.Stalled)
					if st.StallChecks == 0 || st.Stalled != 0 {
						t.Errorf("StallChecks %d, Stalled %d", st.StallChecks, st.Stalled)
					}
					killByHand(t, here, ghost)
				})
			}
		}
	})
}

// After a restart the ids begin again, and soon another connection has that of
// one that was abandoned, here even its port.
func TestSameIDAfterARestartIsAnother(t *testing.T) {
	t.Parallel()
	haunted(t, func(t *testing.T, s *server.Server) {
		for _, way := range paths(s) {
			t.Run(way.name, func(t *testing.T) {
				px := way.front(t, s)
				p := open(t, s.DSNVia(px.Addr()), "")
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				id := connectionID(t, c)
				host := hostOf(t, s, id)
				time.Sleep(4 * time.Second) // a server tells its age in whole seconds
				px.Stall()
				if err := s.Restart(); err != nil {
					t.Fatal(err)
				}
				var dial func(context.Context, string, string) (net.Conn, error)
				if len(way.opts) > 0 {
					dial = pretending(host)
				}
				named := innocents(t, s.DSN(), id, id+3, dial)
				if now := named[0]; now.id != id {
					t.Fatalf("no innocent has the id %d", id)
				}
				if now := hostOf(t, s, id); dial != nil && now != host {
					t.Fatalf("the innocent comes from %s, not %s", now, host)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				if _, err := c.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				c.Close()
				st := awaitFates(t, p, 1)
				for _, i := range named {
					i.unharmed(t)
				}
				t.Logf("Killed %d, KillUnneeded %d, KillUnproved %d", st.Killed, st.KillUnneeded, st.KillUnproved)
				if st.Killed != 0 {
					t.Errorf("Killed %d", st.Killed)
				}
			})
		}
	})
}

// pretending dials a server that understands the PROXY header and says that it
// comes from elsewhere.
func pretending(host string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		ip, port, _ := strings.Cut(host, ":")
		_, toPort, _ := strings.Cut(addr, ":")
		_, err = fmt.Fprintf(nc, "PROXY TCP4 %s 127.0.0.1 %s %s\r\n", ip, port, toPort)
		return nc, err
	}
}

// hostOf is where the server sees a connection come from.
func hostOf(t testing.TB, s *server.Server, id int64) string {
	t.Helper()
	list, err := s.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.ID == uint64(id) {
			return p.Host
		}
	}
	t.Fatalf("no thread %d", id)
	return ""
}

// A port says who one is only between the same two addresses.
func TestPortOfAnotherPathIsAnothersPort(t *testing.T) {
	t.Parallel()
	type route struct{ from, to string }
	haunted(t, func(t *testing.T, a *server.Server) {
		b := hauntedServer(t, a.Kind())
		for _, tt := range []struct {
			name string
			side route // that of the pool's connections is 127.0.0.2 to a
		}{
			{"another server, from another address", route{"127.0.0.1", b.Addr()}},
			{"another server", route{"127.0.0.2", b.Addr()}},
			{"another address of the client's", route{"127.0.0.1", a.Addr()}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				var at atomic.Pointer[route]
				at.Store(&route{"127.0.0.2", a.Addr()})
				p := openWith(t, a.DSN(), func(cfg *livepool.Config) {
					cfg.StallAfter = 500 * time.Millisecond
					cfg.MySQL.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
						r := at.Load()
						return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(r.from)}}).DialContext(ctx, network, r.to)
					}
				})
				raise(t, a, b)
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				id := connectionID(t, c)
				_, port, _ := strings.Cut(hostOf(t, a, id), ":")
				at.Store(&tt.side)
				var named []innocent
				if tt.side.from == "127.0.0.1" && tt.side.to == b.Addr() {
					portNumber, err := strconv.Atoi(port)
					if err != nil {
						t.Fatal(err)
					}
					innocents(t, b.DSN(), id-1, id-1, nil)
					named = innocents(t, b.DSN(), id, id, (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.1"), Port: portNumber}}).DialContext)
				}
				var n int
				ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
				defer cancel()
				err = c.QueryRowContext(ctx, "SELECT SLEEP(30) /* "+tt.name+" */").Scan(&n)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("an honest statement ended by itself: %v", err)
				}
				c.Close()
				st := awaitFates(t, p, 1)
				if st.Killed+st.KillUnneeded != 0 || st.KillUnproved != 1 || st.Stalled != 0 || st.StallChecks == 0 {
					t.Errorf("Killed %d, KillUnneeded %d, KillUnproved %d, Stalled %d, StallChecks %d", st.Killed, st.KillUnneeded, st.KillUnproved, st.Stalled, st.StallChecks)
				}
				for _, i := range named {
					i.unharmed(t)
				}
				if !isThere(t, a, id) {
					t.Error("the ghost is gone, by whom?")
				}
				killByHand(t, a, id)
			})
		}
	})
}

// With KillAbandoned off nobody goes to the server.
func TestWithoutKillAbandonedNothingIsDialled(t *testing.T) {
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		for _, kill := range []bool{false, true} {
			all.run(t, fmt.Sprint(kill), func(t *testing.T) {
				px := front(t, s)
				p := open(t, s.DSNVia(px.Addr()), fmt.Sprintf("pool_kill_abandoned=%v", kill))
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				ghost := cancelled(t, s, c, t.Name())
				if kill {
					awaitFates(t, p, 1)
				} else {
					time.Sleep(1500 * time.Millisecond)
				}
				st, dialled := p.Stats(), px.Counts().Conns
				want := 1
				if kill {
					want = 2
				}
				if dialled != want || st.Killed+st.KillUnneeded != int64(want-1) || st.KillUnproved+st.KillFailed != 0 {
					t.Errorf("%d connections, want %d; %+v", dialled, want, st)
				}
				if !kill && !isThere(t, s, ghost) {
					t.Error("the ghost is gone, by whom?")
				}
				killByHand(t, s, ghost)
			})
		}
	})
}

// Close does not leave a ghost behind, nor does it wait long for a server that
// cannot be asked.
func TestCloseEndsWhatWasAbandoned(t *testing.T) {
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		holdLock(t, s)
		for _, way := range append(paths(s), path{name: "direct"}, path{name: "unreachable"}) {
			all.run(t, way.name, func(t *testing.T) {
				dsn, hang := s.DSN(), func() {}
				if way.name != "direct" {
					px := way.front(t, s)
					dsn = s.DSNVia(px.Addr())
					if way.name == "unreachable" {
						hang = func() { px.HangNew(true) }
					}
				}
				p := open(t, dsn, "")
				var conns []*sql.Conn
				for range 3 {
					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					conns = append(conns, c)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				mark := "/* close, " + way.name + " */"
				var running sync.WaitGroup
				for _, c := range conns {
					running.Go(func() { c.ExecContext(ctx, "DO GET_LOCK('held', 30) "+mark); c.Close() })
				}
				eventually(t, "they run", func() bool { return len(threads(t, s, mark)) == len(conns) })
				hang()
				cancel()
				running.Wait()
				start := time.Now()
				p.Close()
				took := time.Since(start)
				left := len(threads(t, s, mark))
				t.Logf("Close took %s; %d of %d left then", ms(took), left, len(conns))
				if took > 8*time.Second {
					t.Errorf("Close took %s, with a PingTimeout of 1s", took)
				}
				st := p.Stats()
				if way.name == "unreachable" {
					if st.KillFailed != int64(len(conns)) {
						t.Errorf("KillFailed %d, want %d", st.KillFailed, len(conns))
					}
					for _, id := range threads(t, s, mark) {
						killByHand(t, s, id)
					}
					return
				}
				within(t, 2*time.Second, "the threads are gone", func() bool { return len(threads(t, s, mark)) == 0 })
				if st.Killed+st.KillUnneeded != int64(len(conns)) {
					t.Errorf("Killed %d, want %d", st.Killed, len(conns))
				}
			})
		}
	})
}

// A caller may do what he likes with named locks, his connection's beacon too.
// His statements are left in peace all the same.
func TestHonestStatementWithoutItsBeacon(t *testing.T) {
	t.Parallel()
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		for on, run := range onOneConn {
			all.run(t, on, func(t *testing.T) {
				px := front(t, s)
				p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=500ms")
				err := run(t.Context(), p, func(db asker) error {
					if _, err := db.ExecContext(t.Context(), "DO RELEASE_ALL_LOCKS()"); err != nil {
						return err
					}
					return sleeps(t.Context(), db.QueryRowContext(t.Context(), "SELECT SLEEP(3)"))
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
	haunted(t, func(t *testing.T, s *server.Server) {
		p := openWith(t, s.DSN(), func(cfg *livepool.Config) {
			cfg.StallAfter = 500 * time.Millisecond
			cfg.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &narrow{Conn: nc, queue: make(chan []byte, 1<<16)}, nil
			}
		})
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start := time.Now()
		_, err = c.ExecContext(t.Context(), "DO LENGTH('"+strings.Repeat("x", 1<<20)+"')")
		t.Logf("1 MB took %s: %v", ms(time.Since(start)), err)
		if st := p.Stats(); err != nil || st.Stalled != 0 {
			t.Errorf("error %v, Stalled %d", err, st.Stalled)
		}
	})
}

// narrow is a connection over a slow line: it takes all that is written at once,
// as the kernel's buffers do, and delivers it at 256 KB/s.
type narrow struct {
	net.Conn
	once  sync.Once
	queue chan []byte
	done  sync.Once
}

func (n *narrow) Write(b []byte) (int, error) {
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

func (n *narrow) Close() error {
	n.done.Do(func() { close(n.queue) })
	return n.Conn.Close()
}

// One look that finds the server done is not enough: the reply may be on its
// way.
func TestLateReplyIsTaken(t *testing.T) {
	t.Parallel()
	haunted(t, func(t *testing.T, s *server.Server) {
		var all crowd
		defer all.wg.Wait()
		for _, way := range paths(s) {
			all.run(t, way.name, func(t *testing.T) {
				px := way.front(t, s)
				p := open(t, s.DSNVia(px.Addr()), "pool_stall_after=3s")
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
				eventually(t, "there was a look", func() bool { return p.Stats().StallChecks == 1 })
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
