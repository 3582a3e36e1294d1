package behaviour_test

// What the maintainer promises, on real servers.

import (
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Twenty idle connections die together: at most one caller notices.
func TestSweepOnRealServers(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, tt := range []struct {
			name  string
			do    func(*proxy.Proxy)
			pings int64 // for which the first caller may have to wait
		}{{"FIN", (*proxy.Proxy).FIN, 2}, {"black hole", (*proxy.Proxy).Stall, 1}} {
			t.Run(tt.name, func(t *testing.T) {
				via := proxyTo(t, s)
				p := open(t, s.DSNVia(via.Addr()), "pool_size=20")
				warmReal(t, p.DB, 20)
				time.Sleep(600 * time.Millisecond)
				tt.do(via)
				time.Sleep(50 * time.Millisecond)
				connectionID(t, p.DB)
				paid := p.Stats().Pinged - p.Stats().KeptAlive
				if paid > tt.pings {
					t.Errorf("the first caller waited for %d pings, want at most %d", paid, tt.pings)
				}
				labtest.Eventually(t, "the others are swept", func() bool { st := p.Stats(); return st.OpenConnections == 1 && st.Swept >= 17 })
				warmReal(t, p.DB, 20)
				if n := p.Stats().Pinged - p.Stats().KeptAlive - paid; n > 1 { // the first one's connection may be old enough
					t.Errorf("twenty callers after that waited for %d pings", n)
				}
				via.Heal()
			})
		}
	})
}
