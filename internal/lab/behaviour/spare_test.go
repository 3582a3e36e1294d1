package behaviour_test

// What MinIdle keeps ready, and what IdleTimeout leaves of it.

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Five are kept ready. All die, nobody calls, and five fresh ones are there
// soon: in under a second, but a machine under load may take its time.
func TestMinIdleIsRestoredOnRealServers(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, death := range idleDeaths {
			if death.name == "wait_timeout" {
				continue // they are kept alive
			}
			t.Run(death.name, func(t *testing.T) {
				via := proxyTo(t, s)
				p := open(t, s.DSNVia(via.Addr()), "pool_size=5&pool_min_idle=5&pool_keepalive=500ms&pool_ping_timeout=500ms&pool_connect_timeout=2s&"+
					"pool_kill_abandoned=false") // whose side connections are counted among those opened
				full := func() bool { s := p.Stats(); return s.Idle >= 5 && s.OpenConnections >= 5 }
				labtest.Eventually(t, "five are ready", full)
				opened := p.Stats().Opened
				before := idsOf(t, p, 5)
				if n := p.Stats().Opened - opened; n != 0 {
					t.Errorf("callers dialled %d with five ready", n)
				}
				start := time.Now()
				death.do(t, s, via)
				labtest.Eventually(t, "they are gone and five others are ready", func() bool {
					s := p.Stats()
					return s.Deaths > 0 && s.Opened >= opened+5 && full() && s.OpenConnections == 5
				})
				t.Logf("restored after %s", time.Since(start).Round(time.Millisecond))
				opened = p.Stats().Opened
				after := idsOf(t, p, 5)
				if slices.ContainsFunc(after, func(id int64) bool { return slices.Contains(before, id) }) && !strings.Contains(death.name, "restart") {
					t.Errorf("connections %v, %v before", after, before)
				}
				if n := p.Stats().Opened - opened; n != 0 {
					t.Errorf("callers dialled %d with five ready again", n)
				}
			})
		}
	})
}
