package behaviour_test

// What an abandoned connection still does on the server is ended.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

// A unit of work whose connection falls silent after its UPDATE holds a row lock
// on the server, where innodb_lock_wait_timeout is 50s. Its retry does not wait
// for that.
func TestBlackHoledUnitIsRetriedPastItsOwnOrphan(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		var row atomic.Int32
		for _, way := range proxyPaths(s) {
			for _, kill := range []bool{true, false} {
				all.run(t, fmt.Sprintf("%s, kill_abandoned=%v", way.name, kill), func(t *testing.T) {
					row := int(row.Add(1))
					px := way.proxyTo(t, s)
					p := open(t, s.DSNVia(px.Addr()), fmt.Sprintf("pool_stall_after=500ms&pool_kill_abandoned=%v", kill))
					var orphan atomic.Int64
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
								orphan.Store(id)
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
						t.Logf("committed %s after it began, with the orphan killed", roundMS(took))
						if took > 15*time.Second {
							t.Errorf("it took %s", took)
						}
						waitWithin(t, 5*time.Second, "the orphan is gone", func() bool { return !isThreadAlive(t, s, orphan.Load()) })
						if st := awaitOrphans(t, p, 1); st.Stalled != 1 || st.Killed+st.KillUnneeded != 1 || st.Retried != 1 {
							t.Errorf("Stalled %d, Killed %d, Retried %d, want one of each", st.Stalled, st.Killed, st.Retried)
						}
					} else {
						labtest.Eventually(t, "it is tried again", func() bool { return p.Stats().Retried == 1 })
						select {
						case err := <-done:
							t.Fatalf("it did not wait for the lock: %v", err)
						case <-time.After(3 * time.Second):
						}
						waited := time.Since(*began.Load())
						if !isThreadAlive(t, s, orphan.Load()) {
							t.Error("the orphan is gone, by whom?")
						}
						killByHand(t, s, orphan.Load())
						released := time.Now()
						if err := <-done; err != nil {
							t.Fatal(err)
						}
						t.Logf("waited for the orphan's lock for %s; committed %s after the orphan was killed by hand", roundMS(waited), roundMS(time.Since(released)))
						if st := p.Stats(); st.Killed+st.KillUnneeded+st.KillUnproved+st.KillFailed != 0 {
							t.Errorf("something was done about an orphan: %+v", st)
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
	if _, err := openBystander(t, s.DSN(), nil).ExecContext(t.Context(), "DO GET_LOCK('held', 0)"); err != nil {
		t.Fatal(err)
	}
}

// A caller whose context ends gets it at once, and what he had run does not go
// on without him.
func TestCancelledStatementEndsOnTheServer(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		holdLock(t, s)
		renumbered := proxyPath{"ids rewritten", []proxy.Option{proxy.WithThreadIDs(func(real uint32) uint32 { return real + 1000000 })}}
		dsns := map[string]string{"direct": s.DSN(), "direct, an ordinary user": s.AppDSN(s.Addr()), "unix socket": s.SocketDSN()}
		for _, way := range append(proxyPaths(s), renumbered) {
			dsns[way.name] = s.DSNVia(way.proxyTo(t, s).Addr())
		}
		for way, dsn := range dsns {
			p := open(t, dsn, "")
			var mu sync.Mutex
			var slowest, longest time.Duration
			all.run(t, way, func(t *testing.T) {
				var each parallel
				for i, tt := range running {
					each.run(t, tt.name, func(t *testing.T) {
						mark := fmt.Sprintf("/* %s, %d */", way, i)
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						done := make(chan error, 1)
						go func() { done <- tt.run(ctx, p, mark) }()
						labtest.Eventually(t, "it runs", func() bool { return len(threadsRunning(t, s, mark)) == 1 })
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
						waitWithin(t, 5*time.Second, "the thread is gone", func() bool { return len(threadsRunning(t, s, mark)) == 0 })
						mu.Lock()
						slowest, longest = max(slowest, returned), max(longest, time.Since(cancelled))
						mu.Unlock()
					})
				}
				each.wg.Wait()
				t.Logf("the slowest of %d callers returned after %s, the last thread was gone after %s", len(running), roundMS(slowest), roundMS(longest))
				labtest.Eventually(t, "all are counted", func() bool {
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
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
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
				labtest.Eventually(t, "it waits", func() bool { return len(threadsRunning(t, s, query)) == 1 })
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				if tt.applied == 0 {
					waitWithin(t, 5*time.Second, "its thread is gone", func() bool { return len(threadsRunning(t, s, query)) == 0 })
				}
				release()
				labtest.Eventually(t, "nobody runs it any more", func() bool { return len(threadsRunning(t, s, query)) == 0 })
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

// With KillAbandoned off nobody goes to the server.
func TestWithoutKillAbandonedNothingIsDialled(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		for _, kill := range []bool{false, true} {
			all.run(t, fmt.Sprint(kill), func(t *testing.T) {
				px := proxyTo(t, s)
				p := open(t, s.DSNVia(px.Addr()), fmt.Sprintf("pool_ping_timeout=20s&pool_kill_abandoned=%v", kill))
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				orphan := cancelledStatement(t, s, c, t.Name())
				if kill {
					awaitOrphans(t, p, 1)
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
				if !kill && !isThreadAlive(t, s, orphan) {
					t.Error("the orphan is gone, by whom?")
				}
				killByHand(t, s, orphan)
			})
		}
	})
}

// Close does not leave an orphan behind, nor does it wait long for a server that
// cannot be asked.
func TestCloseEndsWhatWasAbandoned(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		holdLock(t, s)
		for _, way := range append(proxyPaths(s), proxyPath{name: "direct"}, proxyPath{name: "unreachable"}) {
			all.run(t, way.name, func(t *testing.T) {
				dsn, hang := s.DSN(), func() {}
				if way.name != "direct" {
					px := way.proxyTo(t, s)
					dsn = s.DSNVia(px.Addr())
					if way.name == "unreachable" {
						hang = func() { px.HangNew(true) }
					}
				}
				params := ""
				if way.name != "unreachable" {
					params = "pool_ping_timeout=5s" // for as long as that Close waits
				}
				p := open(t, dsn, params)
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
				labtest.Eventually(t, "they run", func() bool { return len(threadsRunning(t, s, mark)) == len(conns) })
				hang()
				cancel()
				running.Wait()
				start := time.Now()
				p.Close()
				took := time.Since(start)
				left := len(threadsRunning(t, s, mark))
				t.Logf("Close took %s; %d of %d left then", roundMS(took), left, len(conns))
				if took > 8*time.Second {
					t.Errorf("Close took %s, with a PingTimeout of 1s", took)
				}
				st := p.Stats()
				if way.name == "unreachable" {
					if st.KillFailed != int64(len(conns)) {
						t.Errorf("KillFailed %d, want %d", st.KillFailed, len(conns))
					}
					for _, id := range threadsRunning(t, s, mark) {
						killByHand(t, s, id)
					}
					return
				}
				waitWithin(t, 2*time.Second, "the threads are gone", func() bool { return len(threadsRunning(t, s, mark)) == 0 })
				if st.Killed+st.KillUnneeded != int64(len(conns)) {
					t.Errorf("Killed %d, want %d", st.Killed, len(conns))
				}
			})
		}
	})
}
