package behaviour_test

// A server with a thread pool lets statements wait while their connections look
// idle.

import (
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// One of two groups of threads is busy; the statement of a connection in it waits
// there, unread, and looks into the other group show an idle connection. Logins
// that come to the busy group wait too: that is no outage.
func TestStatementThatWaitsForTheThreadPoolIsLeftInPeace(t *testing.T) {
	t.Parallel()
	var all parallel
	defer all.wg.Wait()
	for _, kind := range server.Kinds() {
		if kind == server.MySQL {
			continue // its thread pool is not in the free edition
		}
		all.run(t, string(kind), func(t *testing.T) {
			s := servertest.Run(t, kind, "--thread-handling=pool-of-threads", "--thread-pool-size=2",
				"--thread-pool-stall-limit=60000", "--thread-pool-oversubscribe=1", "--proxy-protocol-networks=127.0.0.1")
			for _, way := range append(proxyPaths(s), proxyPath{name: "direct"}) {
				t.Run(way.name, func(t *testing.T) {
					dsn := s.DSN()
					if way.name != "direct" {
						dsn = s.DSNVia(way.proxyTo(t, s).Addr())
					}
					p := open(t, dsn, "pool_stall_after=300ms&pool_connect_timeout=1s&pool_keepalive=0")
					c, id := takeConn(t, p)
					var busy sync.WaitGroup
					defer busy.Wait()
					var now int64
					var took time.Duration
					for hogs := 0; hogs < 10 && took < time.Second; hogs++ {
						hog := openBystander(t, s.DSN(), nil)
						for hog.id%2 != id%2 {
							hog = openBystander(t, s.DSN(), nil)
						}
						busy.Go(func() {
							hog.ExecContext(t.Context(), "SET STATEMENT max_statement_time = 6 FOR SELECT BENCHMARK(1000000000000, 1 + 1)")
						})
						time.Sleep(200 * time.Millisecond)
						start := time.Now()
						now = connectionID(t, c)
						took = time.Since(start)
					}
					st := p.Stats()
					t.Logf("answered after %s; %d looks, Stalled %d, Outages %d", roundMS(took), st.StallChecks, st.Stalled, st.Outages)
					if now != id || st.Stalled != 0 || st.Outages != 0 || st.StallChecks == 0 {
						t.Errorf("connection %d became %d", id, now)
					}
				})
			}
		})
	}
}
