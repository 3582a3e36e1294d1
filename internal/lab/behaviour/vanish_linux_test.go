package behaviour_test

// What only the kernel knows: that a silent peer has vanished, or is there and
// takes its time. A fault proxy cannot show it, for its kernel goes on
// acknowledging in the peer's place.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/netns"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// kernelOnly keeps livepool from looking at its connections in the background.
const kernelOnly = "pool_stall_after=0&pool_keepalive=0"

// eachKindAtOnce runs f for all kinds of server at the same time: these tests do
// little but wait, and t.Parallel lets only as many wait as there are CPUs.
func eachKindAtOnce(t *testing.T, f func(t *testing.T, kind server.Kind)) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes longer than the kernel's patience, up to 30s")
	}
	t.Parallel()
	var kinds sync.WaitGroup
	for _, kind := range server.Kinds() {
		kinds.Go(func() { t.Run(string(kind), func(t *testing.T) { f(t, kind) }) })
	}
	kinds.Wait()
}

// eachInItsNetwork gives f a server in a network of its own, with a table t of
// three rows, and a pool.
func eachInItsNetwork(t *testing.T, f func(t *testing.T, s *server.Server, p *livepool.Pool)) {
	t.Helper()
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		servertest.Have(t, kind)
		netns.Run(t, func(t *testing.T) {
			s := servertest.Run(t, kind)
			if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
				t.Fatal(err)
			}
			if err := s.Exec("INSERT INTO test.t VALUES (1, 0), (2, 0), (3, 0)"); err != nil {
				t.Fatal(err)
			}
			f(t, s, open(t, s.DSN(), kernelOnly))
		})
	})
}

// lockRow makes statements wait for a row until release. It goes over the unix
// socket, which is in no black hole.
func lockRow(t *testing.T, s *server.Server, id int) (release func()) {
	t.Helper()
	tx, err := openPlain(t, s.SocketDSN()).BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE t SET v = 0 WHERE id = ?", id); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

func awaitRunning(t *testing.T, s *server.Server, query string) {
	t.Helper()
	labtest.Eventually(t, "the server runs "+query, func() bool {
		list, err := s.Processes()
		return err == nil && slices.ContainsFunc(list, func(p server.Process) bool { return p.Info == query })
	})
}

// sameConn asks a connection whether it is still the one that it was.
func sameConn(t *testing.T, c *sql.Conn, id int64) error {
	var now int64
	if err := c.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&now); err != nil {
		return err
	}
	if now != id {
		return fmt.Errorf("connection %d became %d", id, now)
	}
	return nil
}

// outcome is how and when a statement ended that was run on the side.
type outcome struct {
	name string
	err  error
	at   time.Time
}

func runAside(outcomes chan<- outcome, name string, run func() error) {
	go func() {
		err := run()
		outcomes <- outcome{name, err, time.Now()}
	}()
}

// The peer's kernel answers the probes while the server is silent: the limit is
// for peers that are gone, not for statements that are long.
func TestLongStatementOnASilentNetworkIsNotCutOff(t *testing.T) {
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		s := servertest.Run(t, kind)
		var all sync.WaitGroup
		for _, params := range []string{"", kernelOnly} {
			c, id := takeConn(t, open(t, s.DSN(), params))
			all.Go(func() {
				var interrupted int
				if err := c.QueryRowContext(t.Context(), "SELECT SLEEP(25)").Scan(&interrupted); err != nil || interrupted != 0 {
					t.Errorf("%q: interrupted %d, %v", params, interrupted, err)
					return
				}
				if err := sameConn(t, c, id); err != nil {
					t.Errorf("%q: %v", params, err)
				}
			})
		}
		all.Wait()
	})
}

// MySQL says nothing while a statement runs, and here is no deadline, no
// readTimeout and no stall check: without the kernel's keep-alive, and its limit
// for what stays unacknowledged, these would wait for ever.
func TestStatementOfAVanishedPeerFailsWithinSeconds(t *testing.T) {
	eachInItsNetwork(t, func(t *testing.T, s *server.Server, p *livepool.Pool) {
		lockRow(t, s, 1)
		lockRow(t, s, 2)
		warmReal(t, p.DB, 8) // those that stay idle lose their peer too
		taken, _ := takeConn(t, p)

		running := []struct {
			name, query string
			run         func(query string) error
		}{
			{"a long query", "SELECT SLEEP(120)", func(query string) error {
				var interrupted int
				return p.QueryRowContext(t.Context(), query).Scan(&interrupted)
			}},
			{"an update that waits for a lock", "UPDATE t SET v = 1 WHERE id = 1", func(query string) error {
				_, err := p.ExecContext(t.Context(), query)
				return err
			}},
			{"an update that waits for a lock, in a session", "UPDATE t SET v = 1 WHERE id = 2", func(query string) error {
				return p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, query)
					return err
				}, livepool.MaxAttempts(1))
			}},
		}
		outcomes := make(chan outcome, len(running)+1)
		for _, r := range running {
			runAside(outcomes, r.name, func() error { return r.run(r.query) })
		}
		for _, r := range running {
			awaitRunning(t, s, r.query)
		}
		time.Sleep(500 * time.Millisecond) // for the last acknowledgements, which the kernel delays
		vanished := time.Now()
		netns.LoopbackDown(t)
		runAside(outcomes, "a statement sent too late to be acknowledged", func() error {
			_, err := taken.ExecContext(t.Context(), "DO SLEEP(120)")
			return err
		})

		patience := time.After(20 * time.Second)
		for waiting := cap(outcomes); waiting > 0; waiting-- {
			select {
			case o := <-outcomes:
				t.Logf("%s: after %s: %v", o.name, o.at.Sub(vanished).Round(time.Millisecond), o.err)
				if o.at.Before(vanished) || !errors.Is(o.err, mysql.ErrInvalidConn) {
					t.Errorf("%s: %v, want %v once its peer had vanished", o.name, o.err, mysql.ErrInvalidConn)
				}
			case <-patience:
				t.Fatalf("%d statements still wait for a peer that vanished 20s ago", waiting)
			}
		}

		netns.LoopbackUp(t)
		back := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for _, way := range waysToUse {
			if err := way.use(ctx, p.DB); err != nil {
				t.Errorf("%s, when the peer was back: %v", way.name, err)
			}
		}
		t.Logf("when the peer was back, %d uses took %s", len(waysToUse), time.Since(back).Round(time.Millisecond))
	})
}

// What the kernel retransmits in time nobody notices.
func TestStatementOutlivesAShortBlackHole(t *testing.T) {
	eachInItsNetwork(t, func(t *testing.T, s *server.Server, p *livepool.Pool) {
		const length = 1 << 20 // many segments, of which some may be lost
		query := func(row int) string {
			return fmt.Sprintf("SELECT REPEAT('x', %d) FROM t WHERE id = %d FOR UPDATE", length, row)
		}
		outcomes := make(chan outcome, 3)
		reader := func(name string, row int) (start func()) {
			c, id := takeConn(t, p)
			return func() {
				runAside(outcomes, name, func() error {
					var text string
					if err := c.QueryRowContext(t.Context(), query(row)).Scan(&text); err != nil {
						return err
					}
					if len(text) != length {
						return fmt.Errorf("%d bytes of %d", len(text), length)
					}
					return sameConn(t, c, id)
				})
			}
		}
		answered := reader("answered into the black hole", 1)
		outlasts := reader("answered when it is over", 2)
		sent := reader("sent into the black hole", 3)
		answer, answerLater := lockRow(t, s, 1), lockRow(t, s, 2)

		answered()
		outlasts()
		awaitRunning(t, s, query(1))
		awaitRunning(t, s, query(2))
		netns.LoopbackDown(t)
		answer()
		sent()
		select {
		case o := <-outcomes:
			t.Fatalf("%s: ended in the black hole: %v", o.name, o.err)
		case <-time.After(3 * time.Second):
		}
		netns.LoopbackUp(t)
		up := time.Now()
		answerLater()
		for range cap(outcomes) {
			select {
			case o := <-outcomes:
				t.Logf("%s: %s after it", o.name, o.at.Sub(up).Round(time.Millisecond))
				if o.err != nil {
					t.Errorf("%s: %v", o.name, o.err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("still waits 20s after the black hole")
			}
		}
	})
}
