package behaviour_test

// Servers that do not show a user all threads: what is not shown is not gone.

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
)

// hidingUsers are users to whom a server does not show all threads of their pool,
// some not even their own.
var hidingUsers = []struct {
	name  string
	kinds []server.Kind // nil for all
	setup []string      // as root
	login func(cfg *mysql.Config, n int64)
}{
	{"a proxy user", []server.Kind{server.MySQL}, []string{
		"SET GLOBAL check_proxy_users = ON", "SET GLOBAL sha256_password_proxy_users = ON",
		"CREATE USER face@'127.0.0.1' IDENTIFIED BY 'x'", "GRANT ALL ON test.* TO face@'127.0.0.1'",
		"CREATE USER who@'127.0.0.1' IDENTIFIED WITH sha256_password BY 'x'", "GRANT PROXY ON face@'127.0.0.1' TO who@'127.0.0.1'",
	}, func(cfg *mysql.Config, _ int64) { cfg.User, cfg.Passwd = "who", "x" }},
	{"an anonymous account", nil, []string{
		"CREATE USER ''@'127.0.0.1' IDENTIFIED BY 'x'", "GRANT ALL ON test.* TO ''@'127.0.0.1'",
	}, func(cfg *mysql.Config, _ int64) { cfg.User, cfg.Passwd = "anyone", "x" }},
	{"a user that is another each time", nil, []string{
		"CREATE USER u0@'127.0.0.1' IDENTIFIED BY 'x'", "CREATE USER u1@'127.0.0.1' IDENTIFIED BY 'x'", "CREATE USER u2@'127.0.0.1' IDENTIFIED BY 'x'",
		"GRANT ALL ON test.* TO u0@'127.0.0.1'", "GRANT ALL ON test.* TO u1@'127.0.0.1'", "GRANT ALL ON test.* TO u2@'127.0.0.1'",
	}, func(cfg *mysql.Config, n int64) { cfg.User, cfg.Passwd = fmt.Sprintf("u%d", n%3), "x" }},
}

// A statement that the server works on is left in peace although no other
// connection is shown its thread; an abandoned one is not taken for gone; and idle
// connections live on under a short wait_timeout.
func TestThreadThatIsNotShownIsNotGone(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server.Server) {
		var all parallel
		defer all.wg.Wait()
		for _, hiding := range hidingUsers {
			if hiding.kinds != nil && !slices.Contains(hiding.kinds, s.Kind()) {
				continue
			}
			for _, q := range hiding.setup {
				if err := s.Exec(q); err != nil {
					t.Fatalf("%s: %v", q, err)
				}
			}
			for _, way := range append(proxyPaths(s), proxyPath{name: "direct"}) {
				all.run(t, hiding.name+", "+way.name, func(t *testing.T) {
					dsn := s.DSN()
					if way.name != "direct" {
						dsn = s.DSNVia(way.proxyTo(t, s).Addr())
					}
					var logins atomic.Int64
					p := openWith(t, withParams(dsn, "wait_timeout=2"), func(cfg *livepool.Config) {
						cfg.StallAfter = time.Second
						if err := cfg.MySQL.Apply(mysql.BeforeConnect(func(_ context.Context, my *mysql.Config) error {
							hiding.login(my, logins.Add(1))
							return nil
						})); err != nil {
							t.Fatal(err)
						}
					})
					idle := idsOf(t, p, 3)
					var busy sync.WaitGroup
					for range 2 {
						busy.Go(func() {
							if err := runSleep(t.Context(), p.QueryRowContext(t.Context(), "SELECT SLEEP(8)")); err != nil {
								t.Errorf("an honest statement: %v", err)
							}
						})
					}
					stood := longestStop(7500 * time.Millisecond)
					busy.Wait()
					st := p.Stats()
					if st.Stalled != 0 || st.StallChecks == 0 {
						t.Errorf("Stalled %d, StallChecks %d", st.Stalled, st.StallChecks)
					}
					if now := idsOf(t, p, 3); !slices.Equal(idle, now) && stood < 500*time.Millisecond {
						t.Errorf("connections %v became %v under a wait_timeout of 2 s", idle, now)
					}
					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					orphan := cancelledStatement(t, s, c, t.Name())
					st = awaitOrphans(t, p, 1)
					t.Logf("Killed %d, KillUnneeded %d, KillUnproved %d, KillFailed %d", st.Killed, st.KillUnneeded, st.KillUnproved, st.KillFailed)
					if st.KillUnneeded != 0 && isThreadAlive(t, s, orphan) {
						t.Error("told to be gone, but it is there")
					}
					killByHand(t, s, orphan)
				})
			}
		}
	})
}
