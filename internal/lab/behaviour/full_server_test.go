package behaviour_test

// A server that takes no more connections can be asked all the same, by one of
// the pool's own; and who cannot ask says so.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

// limitedUserDSN is a DSN of a user who may have only so many connections.
func limitedUserDSN(t testing.TB, s *server.Server, addr string, most int) string {
	t.Helper()
	name := fmt.Sprintf("few%d", fewUsers.Add(1))
	for _, q := range []string{
		fmt.Sprintf("CREATE USER %s@'127.0.0.1' IDENTIFIED BY 'x' WITH MAX_USER_CONNECTIONS %d", name, most),
		fmt.Sprintf("GRANT ALL ON test.* TO %s@'127.0.0.1'", name),
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	return name + ":x@tcp(" + addr + ")/test"
}

var fewUsers atomic.Int64

func TestFullServerIsAskedByAnIdleConnection(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		row := 10
		for _, way := range append(proxyPaths(s), proxyPath{name: "direct"}) {
			row += 2
			first, second := row, row+1
			all.run(t, way.name, func(t *testing.T) {
				px, addr := (*proxy.Proxy)(nil), s.Addr()
				if way.name != "direct" {
					px = way.proxyTo(t, s)
					addr = px.Addr()
				}
				p := open(t, limitedUserDSN(t, s, addr, 3), "pool_size=3&pool_max_overflow=0&pool_stall_after=500ms")
				warmReal(t, p.DB, 3)

				release := holdRow(t, s, first)
				defer release()
				query := fmt.Sprintf("UPDATE account SET balance = balance + 1 WHERE id = %d", first)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() {
					_, err := p.ExecContext(ctx, query)
					done <- err
				}()
				labtest.Eventually(t, "it waits", func() bool { return len(threadsRunning(t, s, query)) == 1 })
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				gone := waitWithin(t, 5*time.Second, "its thread is gone", func() bool { return len(threadsRunning(t, s, query)) == 0 })
				release()
				st := awaitOrphans(t, p, 1)
				t.Logf("ended after %s: Killed %d, applied %d times", roundMS(gone), st.Killed, balance(t, s, first))
				if st.Killed != 1 || balance(t, s, first) != 0 {
					t.Errorf("Killed %d, applied %d times, want it killed and not applied", st.Killed, balance(t, s, first))
				}
				if px == nil {
					return
				}

				warmReal(t, p.DB, 3)
				px.CutBefore(proxy.QueryPrefix("UPDATE"), proxy.Stall)
				start := time.Now()
				_, err := p.ExecContext(t.Context(), fmt.Sprintf("UPDATE account SET balance = balance + 1 WHERE id = %d", second))
				t.Logf("after %s: %v", roundMS(time.Since(start)), err)
				if st := p.Stats(); err == nil || st.Stalled != 1 || time.Since(start) > 8*time.Second {
					t.Errorf("Stalled %d, want the stall noticed", st.Stalled)
				}
			})
		}
	})
}

// Statements that cannot be looked up are told of, and not each time.
func TestBlindStallCheckIsTold(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		for name, dsn := range map[string]string{
			"the server is full, and no connection idle": limitedUserDSN(t, s, s.Addr(), 2),
			"a proxy without a beacon":                   withParams(s.DSNVia(proxyTo(t, s).Addr()), "pool_beacon=off"),
		} {
			all.run(t, name, func(t *testing.T) {
				p, log := openLogged(t, dsn, "pool_size=2&pool_max_overflow=0&pool_stall_after=300ms")
				var busy sync.WaitGroup
				for range 2 {
					busy.Go(func() {
						if err := runSleep(t.Context(), p.QueryRowContext(t.Context(), "SELECT SLEEP(3)")); err != nil {
							t.Error(err)
						}
					})
				}
				busy.Wait()
				if told := log.LinesWith("cannot be looked up"); len(told) != 1 || p.Stats().StallChecks < 3 {
					t.Errorf("%d looks, told %d times: %q", p.Stats().StallChecks, len(told), told)
				}
			})
		}
	})
}

// After two restarts the ids are low again, and another connection of the pool has
// that of one that went with the server: nothing is said to be left behind.
func TestNothingIsLeftBehindByRestarts(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, s *server.Server) {
		for _, way := range proxyPaths(s) {
			t.Run(way.name, func(t *testing.T) {
				px := way.proxyTo(t, s)
				p, log := openLogged(t, s.DSNVia(px.Addr()), "")
				for range 2 {
					var busy sync.WaitGroup
					for range 3 {
						c, _ := takeConn(t, p)
						busy.Go(func() {
							c.ExecContext(context.Background(), "SELECT SLEEP(60)")
							c.Close()
						})
					}
					time.Sleep(4 * time.Second) // a server tells its age in whole seconds
					if err := s.Kill(); err != nil {
						t.Fatal(err)
					}
					busy.Wait()
					if err := s.Start(); err != nil {
						t.Fatal(err)
					}
					labtest.Eventually(t, "it is back", func() bool { return p.PingContext(t.Context()) == nil })
				}
				st := awaitOrphans(t, p, 6)
				t.Logf("Killed %d, KillUnneeded %d, KillUnproved %d", st.Killed, st.KillUnneeded, st.KillUnproved)
				if st.KillUnneeded != 6 || len(log.LinesWith("not killed")) > 0 {
					t.Errorf("KillUnneeded %d, told %q", st.KillUnneeded, log.LinesWith("not killed"))
				}
			})
		}
	})
}
