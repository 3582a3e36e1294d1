package behaviour_test

// One name that leads to several servers, as that of a headless Service of Kubernetes does.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/dns"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/loopback"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// named gives a name to these addresses, which are then to be had by their number at one port of
// 127.0.0.2 and so on. It returns the name with its port.
func named(t *testing.T, addrs ...string) string {
	t.Helper()
	for {
		listeners, err := listenAlike(len(addrs))
		if err != nil {
			continue // the port is in use at one of the addresses
		}
		var ips []string
		for i, l := range listeners {
			via, err := proxy.New(addrs[i], proxy.WithListener(l))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { via.Close() })
			ips = append(ips, l.Addr().(*net.TCPAddr).IP.String())
		}
		port := loopback.Port(listeners[0])
		name := fmt.Sprintf("db%d.test", port)
		dns.Default.Set(name, ips...)
		return fmt.Sprintf("%s:%d", name, port)
	}
}

func listenAlike(n int) (all []*net.TCPListener, err error) {
	port := 0
	for i := range n {
		l, err := loopback.ListenAt(fmt.Sprintf("127.0.0.%d:%d", i+2, port))
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			return nil, err
		}
		all, port = append(all, l), loopback.Port(l)
	}
	return all, nil
}

// The servers behind a name are told apart: a failover among them is as one among several hosts.
func TestUnitsSurviveAFailoverBehindOneName(t *testing.T) {
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		for _, f := range failovers {
			t.Run(fmt.Sprintf("%s/%s", kind, f.name), func(t *testing.T) {
				t.Parallel()
				h := hostPairOf(t, kind, "")
				h.pool.Close()
				var addrs []string
				for _, s := range h.Servers() {
					addrs = append(addrs, h.via[s].Addr())
				}
				h.pool, h.log = openLogged(t, h.Primary().AppDSN(named(t, addrs[1], addrs[0])), "pool_target=primary&pool_timeout=1m&pool_max_elapsed=1m")
				if port := portOf(t, h.pool); !isAt(h.Primary(), port) {
					t.Fatalf("the pool is at port %s", port)
				}
				h.survives(f)
				if lines := h.log.LinesWith("two hosts take writes"); len(lines) > 0 {
					t.Error(strings.Join(lines, "\n"))
				}
			})
		}
	}
}

// One address that leads to a server that takes no writes, as a balancer's or an endpoint's may
// after a failover: with pool_target in the DSN no unit meets that server.
func TestSingleHostIsAskedForItsRole(t *testing.T) {
	t.Parallel()
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			pair := servertest.RunPair(t, kind)
			if err := errors.Join(pair.Primary().Exec("CREATE TABLE test.t (v INT)"), pair.CatchUp(t.Context())); err != nil {
				t.Fatal(err)
			}
			via := proxyTo(t, pair.Replica())
			p, log := openLogged(t, pair.Primary().AppDSN(via.Addr()), "pool_target=primary&pool_timeout=1m&pool_max_elapsed=1m")
			runs, done := 0, make(chan error, 1)
			go func() {
				done <- p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
					runs++
					return labtest.Insert(1)(ctx, s)
				})
			}()
			labtest.Eventually(t, "it is told that the host takes no writes", func() bool { return len(log.LinesWith("none of the hosts takes writes")) > 0 })
			via.SetUpstream(pair.Primary().Addr())
			if err := <-done; err != nil || runs != 1 {
				t.Errorf("%d runs: %v", runs, err)
			}
			if n := count(t, pair.Primary(), "t"); n != 1 {
				t.Errorf("%d rows", n)
			}
		})
	}
}
