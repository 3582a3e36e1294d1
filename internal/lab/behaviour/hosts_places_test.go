package behaviour_test

// Where a pool on several hosts connects to: hosts that say nothing, names that move, roles
// that are wanted, and two truths.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// portOf asks a server for its port, by which the tests tell servers apart.
func portOf(t *testing.T, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}) (port string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT @@port").Scan(&port); err != nil {
		t.Fatal(err)
	}
	return port
}

func isAt(s *server.Server, port string) bool { return strings.HasSuffix(s.Addr(), ":"+port) }

// A host that says nothing, and one whose name nobody knows, cost the first connection a
// head start, and later ones nothing.
func TestADeadHostAmongOthersCostsLittle(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MariaDB)
	hole := proxyTo(t, s)
	hole.HangNew(true)
	for name, addr := range map[string]string{"silent": hole.Addr(), "without an address": "no-such-host.invalid:3306", "refusing": "127.0.0.1:1"} {
		t.Run(name, func(t *testing.T) {
			p := open(t, s.AppDSN(addr+","+s.Addr()), "pool_pre_ping=off")
			var took []time.Duration
			for range 6 {
				start := time.Now()
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				took = append(took, time.Since(start))
				defer c.Close() // held, so that the next one is opened
			}
			t.Logf("the connections took %v", took)
			slices.Sort(took[1:])
			if took[0] > 3*time.Second || took[3] > time.Second { // of 5s, the ConnectTimeout
				t.Errorf("the connections took %v", took)
			}
		})
	}
}

// Nothing answers for a while: units and statements wait, and go on with whichever host
// comes back.
func TestAllHostsAwayAndBack(t *testing.T) {
	t.Parallel()
	h := hostPairOf(t, server.MariaDB, "pool_timeout=1m&pool_max_elapsed=1m&pool_outage_wait=1m")
	w := (&workers{t: t, pool: h.pool}).start(4)
	plain := make(chan error, 1)
	time.Sleep(200 * time.Millisecond)
	for _, via := range h.via {
		via.Refuse()
		via.RST()
	}
	time.Sleep(time.Second)
	go func() {
		_, err := h.pool.ExecContext(t.Context(), "INSERT INTO ledger (unit) VALUES (-1)")
		plain <- err
	}()
	time.Sleep(4 * time.Second)
	back := time.Now()
	for _, via := range h.via {
		if err := via.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	labtest.Eventually(t, "units are applied", func() bool { return w.since(back) > 20 })
	if err := <-plain; err != nil {
		t.Errorf("the plain statement: %v", err)
	}
	units := w.stop()
	if rows := count(t, h.Primary(), "ledger"); rows != units+1 {
		t.Errorf("%d rows of %d units and a statement", rows, units)
	}
	t.Logf("the first unit %v after they were back", w.firstAfter(back))
}

// The names of the hosts lead to other servers after a failover, as in DNS: that is noticed
// without a restart.
func TestHostsWhoseNamesMove(t *testing.T) {
	t.Parallel()
	pair := servertest.RunPair(t, server.MariaDB)
	if err := errors.Join(pair.Primary().Exec("CREATE TABLE test.t (v INT)"), pair.CatchUp(t.Context())); err != nil {
		t.Fatal(err)
	}
	var first, second atomic.Value
	first.Store(pair.Primary().Addr())
	second.Store("127.0.0.1:1")
	p := openWith(t, pair.Primary().AppDSN("db1,db2"), func(c *livepool.Config) {
		c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := first.Load()
			if addr == "db2:3306" {
				to = second.Load()
			}
			return (&net.Dialer{}).DialContext(ctx, network, to.(string))
		}
	})
	if port := portOf(t, p); !isAt(pair.Primary(), port) {
		t.Fatalf("the pool is at port %s", port)
	}
	old := pair.Primary()
	if err := pair.Switch(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.Store(old.Addr())
	first.Store(pair.Primary().Addr()) // both names change places
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if err := labtest.Insert(1)(ctx, s); err != nil {
			return err
		}
		if port := portOf(t, s); !isAt(pair.Primary(), port) {
			t.Errorf("the unit ran at port %s", port)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// Two hosts take writes: the pool stays with the one that it had, and says so.
func TestThePoolStaysWithItsPrimaryIfAnotherHostTakesWritesToo(t *testing.T) {
	t.Parallel()
	h := hostPairOf(t, server.MySQL, "")
	if err := h.Replica().SetReadOnly(false); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, "it is told", func() bool { return len(h.log.LinesWith("two hosts take writes")) > 0 })
	for range 3 {
		h.pool.Recycle()
		if port := portOf(t, h.pool); port != portOf(t, openPlain(t, h.Primary().DSN())) {
			t.Errorf("the pool is at port %s", port)
		}
	}
}

// What pool_target asks for is what the connections lead to.
func TestTargets(t *testing.T) {
	t.Parallel()
	pair := servertest.RunPair(t, server.MariaDB)
	if err := pair.Primary().Exec("CREATE TABLE test.t (v INT)"); err != nil {
		t.Fatal(err)
	}
	if err := pair.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	both := pair.Replica().AppDSN(addrsOf(pair.Servers()))
	ports := func(p *livepool.Pool) (primary, replica int) {
		for range 16 {
			p.Recycle()
			if isAt(pair.Primary(), portOf(t, p)) {
				primary++
			} else {
				replica++
			}
		}
		return primary, replica
	}
	for _, tt := range []struct {
		target           string
		primary, replica bool // where it may connect to
	}{
		{"primary", true, false}, {"replica", false, true}, {"prefer-replica", false, true}, {"any", true, true},
	} {
		t.Run(tt.target, func(t *testing.T) {
			p := open(t, both, "pool_target="+tt.target)
			if primary, replica := ports(p); primary > 0 != tt.primary || replica > 0 != tt.replica {
				t.Errorf("%d connections to the primary, %d to the replica", primary, replica)
			}
		})
	}
	t.Run("a write on a pool of replicas", func(t *testing.T) {
		p := open(t, both, "pool_target=replica")
		err := p.WithSession(t.Context(), labtest.Insert(1))
		if err == nil || !strings.Contains(err.Error(), "pool_target") || p.Stats().Retried > 0 {
			t.Errorf("%v, after %d more attempts", err, p.Stats().Retried)
		}
	})
	t.Run("no replica", func(t *testing.T) {
		replicas, prefer := open(t, both, "pool_target=replica&pool_outage_wait=0"), open(t, both, "pool_target=prefer-replica")
		if err := pair.Replica().Stop(); err != nil {
			t.Fatal(err)
		}
		err := replicas.QueryRowContext(t.Context(), "SELECT 1").Scan(new(int))
		if !errors.Is(err, livepool.ErrUnreachable) || !strings.Contains(err.Error(), "it takes writes") {
			t.Errorf("a pool of replicas: %v", err)
		}
		if port := portOf(t, prefer); !isAt(pair.Primary(), port) {
			t.Errorf("one that prefers replicas is at port %s", port)
		}
	})
}

// An asynchronous replica takes over without the primary's last units. What became of a lost
// COMMIT is not told by it, for it would have lost that, too: with one address that is led
// elsewhere as with several.
func TestALostCommitIsNotGuessedByAServerThatLacksEarlierOnes(t *testing.T) {
	for _, several := range []bool{true, false} {
		for _, lacks := range []bool{true, false} {
			t.Run(fmt.Sprintf("several hosts %v, lacks the last unit %v", several, lacks), func(t *testing.T) {
				t.Parallel()
				pair := servertest.RunPair(t, server.MariaDB)
				old := pair.Primary()
				via := proxyTo(t, old)
				addr := via.Addr()
				if several {
					addr += "," + pair.Replica().Addr()
				}
				p := open(t, old.AppDSN(addr), "pool_max_elapsed=1s&pool_commit_timeout=1s")
				if err := errors.Join(old.Exec("CREATE TABLE test.t (v INT)"), p.CreateCommitTable(t.Context()), pair.CatchUp(t.Context())); err != nil {
					t.Fatal(err)
				}
				if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.VerifyCommit()); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(pair.CatchUp(t.Context()), pair.Replica().Exec("STOP REPLICA")); err != nil {
					t.Fatal(err)
				}
				if lacks {
					if err := p.WithSession(t.Context(), labtest.Insert(2), livepool.VerifyCommit()); err != nil {
						t.Fatal(err)
					}
				}
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					if s.Attempt() == 1 {
						defer failOverAtCommit(t, pair, via, several)
					}
					return labtest.Insert(3)(ctx, s)
				}, livepool.VerifyCommit())
				if unknown := errors.Is(err, livepool.ErrCommitUnknown); unknown != lacks || err != nil && !unknown {
					t.Errorf("the unit whose COMMIT was lost: %v", err)
				}
				want := 1 // of the second unit's row, and of the third's
				if lacks {
					want = 0
				}
				if rows := count(t, pair.Primary(), "t WHERE v = 3"); rows != want {
					t.Errorf("%d rows of it, want %d", rows, want)
				}
			})
		}
	}
}

// failOverAtCommit has the next COMMIT executed, its answer lost, its server killed and the
// replica promoted with what it has.
func failOverAtCommit(t *testing.T, pair *server.Pair, via *proxy.Proxy, several bool) {
	cut := via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.Stall)
	go func() {
		<-cut.Done()
		if err := errors.Join(pair.Primary().Kill(), pair.Promote(t.Context())); err != nil {
			t.Error(err)
		}
		if !several {
			via.SetUpstreams(pair.Primary().Addr())
		}
		via.FIN()
		via.Heal()
	}()
}

// Callers in a hurry give up before a silent primary has had its head start: what they began
// goes on for the pool.
func TestCallersInAHurryFindTheNewPrimary(t *testing.T) {
	t.Parallel()
	h := hostPairOf(t, server.MariaDB, "pool_size=4")
	if err := errors.Join(h.pool.PingContext(t.Context()), h.Primary().Pause()); err != nil {
		t.Fatal(err)
	}
	defer h.Replica().Resume()
	if err := h.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, "a caller with 300ms succeeds", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := h.pool.ExecContext(ctx, "INSERT INTO ledger (unit) VALUES (1)")
		return err == nil
	})
}

// Each host is known by its own name in its certificate.
func TestCertificatesOfSeveralHosts(t *testing.T) {
	t.Parallel()
	s := servertest.RunOptions(t, server.MariaDB, server.Options{TLS: true})
	_, port, _ := net.SplitHostPort(s.Addr())
	certs := s.TLSConfig()
	certs.ServerName = "" // the driver sets it to the name of the first host
	if err := mysql.RegisterTLSConfig("of several hosts", certs); err != nil {
		t.Fatal(err)
	}
	defer mysql.DeregisterTLSConfig("of several hosts")
	p := openWith(t, s.AppDSN("other.example:"+port+","+s.Addr()+",localhost:"+port)+"?tls=of+several+hosts", func(c *livepool.Config) {
		c.Target = livepool.TargetAny
		c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.Addr())
		}
	})
	for range 8 { // the host that is not in the certificate is passed over
		p.Recycle()
		if err := p.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.Stats().ConnectFailed; n > 0 {
		t.Errorf("%d connections failed", n)
	}
}

// A statement that is too large for the kernel's buffer waits to be written, and not for a reply.
// That does not wait for a primary that has fallen silent either.
func TestALargeStatementDoesNotWaitForASilentPrimary(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			p := servertest.RunPair(t, kind, "--max-allowed-packet=64M")
			if err := p.Primary().Exec("CREATE TABLE large (id INT PRIMARY KEY AUTO_INCREMENT, data LONGBLOB)"); err != nil {
				t.Fatal(err)
			}
			if err := p.CatchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			old, begun := p.Primary(), time.Now()
			pool := open(t, old.AppDSN(addrsOf(p.Servers())), "pool_timeout=1m&pool_max_elapsed=1m")
			t.Cleanup(func() { _ = old.Resume() })
			statement := "INSERT INTO large (data) VALUES ('" + strings.Repeat("x", 14<<20) + "')"
			err := pool.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if _, err := s.ExecContext(ctx, "INSERT INTO large (data) VALUES ('small')"); err != nil {
					return err
				}
				if s.Attempt() == 1 {
					if err := errors.Join(old.Pause(), p.Promote(t.Context())); err != nil {
						t.Fatal(err)
					}
					begun = time.Now()
				}
				_, err := s.ExecContext(ctx, statement)
				return err
			})
			if took := time.Since(begun); err != nil || took > 8*time.Second { // the kernel needs 11 s
				t.Errorf("%v after %v", err, took)
			} else {
				t.Logf("applied by the new primary %v after it took writes", took)
			}
			if n := count(t, p.Primary(), "large"); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		})
	}
}
