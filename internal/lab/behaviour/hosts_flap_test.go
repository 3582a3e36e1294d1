package behaviour_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Where all hosts take writes, as the nodes of a Galera cluster do, the pool goes from one to another
// only if it has lost the one.
func TestThePoolStaysWithOneOfSeveralThatTakeWrites(t *testing.T) {
	for name, strike := range map[string]func(t *testing.T, nodes []*server.Server, via []*proxy.Proxy){
		"the network is away": func(t *testing.T, _ []*server.Server, via []*proxy.Proxy) {
			for _, p := range via {
				p.HangNew(true)
				p.Stall()
			}
			time.Sleep(2500 * time.Millisecond)
			for _, p := range via {
				p.Heal()
			}
		},
		"the nodes are full": func(t *testing.T, nodes []*server.Server, via []*proxy.Proxy) {
			for _, n := range nodes {
				if err := n.SetGlobal("max_connections", 10); err != nil {
					t.Fatal(err)
				}
			}
			via[0].FIN()
			time.Sleep(2500 * time.Millisecond)
			for _, n := range nodes {
				if err := n.SetGlobal("max_connections", 100); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := servertest.RunGalera(t, 3, "--innodb-lock-wait-timeout=1")
			nodes := c.Nodes()
			if err := nodes[0].Exec(ledgerTable); err != nil {
				t.Fatal(err)
			}
			via, addrs := proxiesTo(t, nodes...)
			pool, log := openLogged(t, nodes[0].AppDSN(addrs), "pool_timeout=1m&pool_max_elapsed=1m&pool_connect_timeout=1s&pool_stall_after=500ms")
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for n := range 24 {
				wg.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						_ = pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
							_, err := s.ExecContext(ctx, fmt.Sprintf("INSERT INTO ledger (unit) VALUES (%d)", n*1000000+i))
							return err
						})
					}
				})
			}
			time.Sleep(2 * time.Second)
			strike(t, nodes, via)
			time.Sleep(3 * time.Second)
			cancel()
			wg.Wait()
			left := len(log.LinesWith("another host takes writes"))
			t.Logf("%d times left for another host, %d connections opened", left, pool.Stats().Opened)
			if left > 3 {
				t.Errorf("the pool went to another host %d times", left)
			}
			for _, line := range log.LinesWith("two hosts take writes") {
				t.Errorf("of a Galera cluster: %s", line)
			}
		})
	}
}
