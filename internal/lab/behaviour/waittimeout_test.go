package behaviour_test

// The keep-alive under a server's wait_timeout.

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Under a wait_timeout of two seconds idle connections live on: with a
// keep-alive that fits, and with the default, which livepool fits by itself and
// without a word. A setting that was chosen and cannot work is warned of, once.
func TestKeepAliveUnderAShortWaitTimeout(t *testing.T) {
	type trial struct {
		name   string
		params string
		warns  []string // nil: not at all
		dies   bool
		via    *proxy.Proxy
		pool   *livepool.Pool
		log    *labtest.CapturedLog
		before []int64
		stats  livepool.Stats
	}
	var trials []*trial
	for _, kind := range server.Kinds() {
		s := servertest.Run(t, kind)
		for _, tt := range []*trial{
			{params: "pool_keepalive=500ms"},
			{params: ""},
			{params: "pool_keepalive=500ms&pool_min_idle=4"},
			{params: "pool_keepalive=60s", warns: []string{"KeepAlive (pool_keepalive) is 1m0s", "set it below 2s", "wait_timeout"}},
			{params: "pool_keepalive=0&pool_pre_ping=off", warns: []string{"pool_keepalive", "pool_pre_ping", "wait_timeout=2s"}, dies: true},
		} {
			tt.name, tt.via = fmt.Sprintf("%s, %q", kind, tt.params), countingProxy(t, s)
			tt.pool, tt.log = openLogged(t, s.DSNVia(tt.via.Addr()), "wait_timeout=2&"+tt.params)
			if strings.Contains(tt.params, "min_idle") {
				labtest.Eventually(t, "four are ready", func() bool { return tt.pool.Stats().Idle == 4 })
			}
			trials = append(trials, tt)
		}
	}
	for range 10 {
		for _, tt := range trials {
			tt.before, tt.stats = idsOf(t, tt.pool, 4), tt.pool.Stats()
		}
		if longestStop(10*time.Second) < 500*time.Millisecond { // nobody calls
			break
		}
	}
	for _, tt := range trials {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.dies {
				for range 3 {
					if after := idsOf(t, tt.pool, 4); !slices.Equal(tt.before, after) {
						t.Errorf("connections %v became %v", tt.before, after)
					}
				}
				s := tt.pool.Stats()
				if strings.Contains(tt.params, "min_idle") { // while four are held others may be made ready
					s.Opened = tt.stats.Opened
				}
				if s.Deaths != tt.stats.Deaths || s.Opened != tt.stats.Opened || s.KeptAlive < tt.stats.KeptAlive+4*10 {
					t.Errorf("%d deaths, %d opened, %d pings; before: %d, %d, %d",
						s.Deaths, s.Opened, s.KeptAlive, tt.stats.Deaths, tt.stats.Opened, tt.stats.KeptAlive)
				}
			}
			warnings := tt.log.LinesWith("wait_timeout")
			if len(warnings) != min(len(tt.warns), 1) {
				t.Fatalf("%d warnings: %s", len(warnings), warnings)
			}
			for _, want := range tt.warns {
				if !strings.Contains(warnings[0], want) {
					t.Errorf("the warning lacks %q: %s", want, warnings[0])
				}
			}
			asked, looked := 0, 0
			for _, q := range tt.via.Queries() {
				if strings.Contains(q, "@@wait_timeout") {
					asked++
				}
				if strings.Contains(q, "PROCESSLIST") {
					looked++
				}
			}
			// Each connection asks, since its server may be another one; what a server
			// answers only by looking at all of its threads is asked once.
			if opened := int(tt.pool.Stats().Opened); asked != opened || looked != 1 {
				t.Errorf("%d connections asked for the wait_timeout %d times and for the processlist %d times", opened, asked, looked)
			}
		})
	}
}

// longestStop lets time pass and returns the longest of it in which the machine
// did not get to run this: then it did not get to ping in time either.
func longestStop(d time.Duration) (longest time.Duration) {
	for start, last := time.Now(), time.Now(); time.Since(start) < d; last = time.Now() {
		time.Sleep(10 * time.Millisecond)
		longest = max(longest, time.Since(last))
	}
	return longest
}

func countingProxy(t testing.TB, s *server.Server) *proxy.Proxy {
	t.Helper()
	via, err := proxy.New(s.Addr(), proxy.WithQueries())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { via.Close() })
	return via
}
