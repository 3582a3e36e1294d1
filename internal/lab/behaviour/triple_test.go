package behaviour_test

// Pools on a primary and two replicas: which of them takes over, and which one reads come from.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Whatever happens to the primary, its units wait for the replica that takes over. Afterwards the
// two others follow it.
func TestUnitsSurviveAFailoverAmongThreeHosts(t *testing.T) {
	for _, kind := range server.Kinds() {
		for _, f := range failovers {
			t.Run(fmt.Sprintf("%s/%s", kind, f.name), func(t *testing.T) {
				t.Parallel()
				h := hostsWith(t, kind, 2, "pool_timeout=1m&pool_max_elapsed=1m")
				old := h.Primary()
				h.survives(f)
				if f.abrupt {
					h.via[old].FIN() // or what is open there locks rows
					_ = old.Resume() // if it is frozen
					err := h.Rejoin(t.Context())
					if errors.Is(err, server.ErrDiverged) { // it has what it acknowledged to nobody
						err = h.Rebuild(t.Context())
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				if err := h.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				want := count(t, h.Primary(), "ledger")
				for _, s := range h.Servers()[1:] {
					if rows := count(t, s, "ledger"); rows != want {
						t.Errorf("a replica has %d rows, and the primary %d", rows, want)
					}
				}
			})
		}
	}
}

// addrsOf are the addresses of servers as a DSN has them.
func addrsOf(servers []*server.Server) string {
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.Addr())
	}
	return strings.Join(addrs, ",")
}

// replicasOf is a pool on the replicas of three servers.
func replicasOf(t *testing.T, p *server.Pair, params string) (*livepool.Pool, *labtest.CapturedLog) {
	t.Helper()
	return openLogged(t, p.Primary().AppDSN(addrsOf(p.Servers())), "pool_target=replica&pool_size=32"+params)
}

// isSpread says whether connections that are held at the same time lead to each of the servers.
// They are so many that chance does not leave one out.
func isSpread(t *testing.T, p *livepool.Pool, servers ...*server.Server) bool {
	t.Helper()
	var held []*sql.Conn
	at := map[string]int{}
	for range 32 {
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		at["127.0.0.1:"+portOf(t, c)]++
	}
	fakedb.GiveBack(held)
	t.Logf("the connections are at %v", at)
	for _, s := range servers {
		if at[s.Addr()] == 0 {
			return false
		}
	}
	return len(at) == len(servers)
}

// readers read in units, one after the other, and note who has served them.
type readers struct {
	wg   sync.WaitGroup
	stop func()

	mu     sync.Mutex // guards what follows
	served map[string]int
}

// startReaders starts n of them. They end with the test, or before that with stop.
func startReaders(t *testing.T, p *livepool.Pool, n int) *readers {
	quit := make(chan struct{})
	r := &readers{served: map[string]int{}}
	r.stop = sync.OnceFunc(func() {
		close(quit)
		r.wg.Wait()
	})
	t.Cleanup(r.stop)
	for range n {
		r.wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				var port string
				err := p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
					return s.QueryRowContext(ctx, "SELECT @@port FROM (SELECT SLEEP(0.01)) pause").Scan(&port)
				}, livepool.ReadOnly())
				if err != nil {
					t.Errorf("a read: %v", err)
				}
				r.mu.Lock()
				r.served["127.0.0.1:"+port]++
				r.mu.Unlock()
			}
		})
	}
	return r
}

// by is how many reads a server has served.
func (r *readers) by(s *server.Server) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.served[s.Addr()]
}

// startSpreadReaders starts readers on a pool whose connections are spread over both replicas, and
// returns first the one that serves more reads: few connections are in use at a time.
func startSpreadReaders(t *testing.T, p *livepool.Pool, triple *server.Pair) (r *readers, one, other *server.Server) {
	t.Helper()
	one, other = triple.Servers()[1], triple.Servers()[2]
	if !isSpread(t, p, one, other) {
		t.Error("the connections are not spread over the replicas")
	}
	r = startReaders(t, p, 8)
	labtest.Eventually(t, "reads are served", func() bool { return r.by(one)+r.by(other) > 100 })
	if r.by(one) < r.by(other) {
		return r, other, one
	}
	return r, one, other
}

// Connections to replicas are spread. When one dies the other one serves what it was to serve.
func TestReadsAreSpreadOverTwoReplicas(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			triple := servertest.RunTriple(t, kind)
			p, _ := replicasOf(t, triple, "")
			r, one, other := startSpreadReaders(t, p, triple)
			if err := one.Kill(); err != nil {
				t.Fatal(err)
			}
			before := r.by(other)
			labtest.Eventually(t, "the other one goes on", func() bool { return r.by(other) > before+200 })
			if err := one.Start(); err != nil {
				t.Fatal(err)
			}
			r.stop()
			p.Recycle()
			if !isSpread(t, p, one, other) {
				t.Error("the connections are not spread over the replicas again")
			}
			t.Logf("%d reads were run again", p.Stats().Retried)
		})
	}
}

// A replica whose replication has stopped is left for the other one, which is told once. It is
// taken back when it goes on.
func TestAReplicaThatLagsIsLeftForTheOtherOne(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			triple := servertest.RunTriple(t, kind)
			letAskForLag(t, triple)
			p, log := replicasOf(t, triple, "&pool_max_lag=2s")
			r, one, other := startSpreadReaders(t, p, triple)
			begun := time.Now()
			if err := one.Exec("STOP REPLICA SQL_THREAD"); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, "the other one serves all", func() bool {
				byOne, byOther := r.by(one), r.by(other)
				time.Sleep(time.Second)
				return r.by(one) == byOne && r.by(other) > byOther+50
			})
			t.Logf("the replica was left after less than %v", time.Since(begun).Round(time.Millisecond))
			r.stop()
			if isSpread(t, p, one) {
				t.Error("the replica that has stopped is used")
			}
			if err := one.Exec("START REPLICA SQL_THREAD"); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, "new connections lead to both", func() bool {
				p.Recycle()
				return isSpread(t, p, one, other)
			})
			if lines := log.LinesWith("a replica is left"); len(lines) != 1 || !strings.Contains(lines[0], one.Addr()) || !strings.Contains(lines[0], "has stopped") {
				t.Errorf("the log has %q", lines)
			}
		})
	}
}

// That a replica has stopped is told once, also if a connection to it is in use for some time.
func TestAReplicaThatLagsIsToldOnce(t *testing.T) {
	t.Parallel()
	triple := servertest.RunTriple(t, server.MariaDB)
	letAskForLag(t, triple)
	p, log := replicasOf(t, triple, "&pool_max_lag=2s")
	held, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := serverAt(t, triple.Servers(), portOf(t, held)).Exec("STOP REPLICA SQL_THREAD"); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, "it is told", func() bool { return len(log.LinesWith("a replica is left")) > 0 })
	time.Sleep(3 * time.Second) // it is looked at each second
	if lines := log.LinesWith("a replica is left"); len(lines) != 1 {
		t.Errorf("it is told in %d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
}

func serverAt(t *testing.T, servers []*server.Server, port string) *server.Server {
	t.Helper()
	for _, s := range servers {
		if isAt(s, port) {
			return s
		}
	}
	t.Fatalf("no server is at port %s", port)
	return nil
}

// A replica that freezes does not hold up reads, the one that is under way as little as those that
// find an idle connection to it: the other replica serves them, or for a pool on the primary,
// where there is no other one, the primary.
func TestReadsDoNotWaitForAFrozenReplica(t *testing.T) {
	for _, kind := range server.Kinds() {
		for _, tt := range []struct {
			name     string
			replicas int
			params   string
			opts     []livepool.SessionOption
		}{
			{"a pool on two replicas", 2, "pool_target=replica", []livepool.SessionOption{livepool.ReadOnly()}},
			{"FromReplica of one", 1, "", []livepool.SessionOption{livepool.ReadOnly(), livepool.FromReplica()}},
		} {
			t.Run(fmt.Sprintf("%s/%s", kind, tt.name), func(t *testing.T) {
				t.Parallel()
				servers := servertest.RunPairOptions(t, kind, server.Options{Replicas: tt.replicas}).Servers()
				p := open(t, servers[0].AppDSN(addrsOf(servers)), tt.params)
				// read calls between with its server before it looks a second time, at the first attempt.
				read := func(between func(port string)) (port string, err error) {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					defer cancel()
					err = p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
						if err := s.QueryRowContext(ctx, "SELECT @@port").Scan(&port); err != nil {
							return err
						}
						if between != nil {
							between(port)
							between = nil
						}
						return s.QueryRowContext(ctx, "SELECT @@port").Scan(&port)
					}, tt.opts...)
					return port, err
				}
				several := func() []error {
					return inParallel(8, func() error { _, err := read(nil); return err })
				}
				labtest.CheckNoErrors(t, several()) // which leave connections that are idle
				var frozen *server.Server
				begun := time.Now()
				port, err := read(func(port string) {
					if frozen = serverAt(t, servers, port); frozen == servers[0] {
						t.Fatal("the primary serves a read, though there is a replica")
					}
					if err := frozen.Pause(); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = frozen.Resume() })
					time.Sleep(100 * time.Millisecond) // until all of its threads stand still
				})
				if took := time.Since(begun); err != nil || isAt(frozen, port) || took > 10*time.Second {
					t.Errorf("the read that was under way took %v, and was served at port %s: %v", took, port, err)
				} else {
					t.Logf("the read that was under way took %v", took)
				}
				begun = time.Now()
				labtest.CheckNoErrors(t, several())
				if took := time.Since(begun); took > 10*time.Second {
					t.Errorf("the reads after that took %v", took)
				} else {
					t.Logf("the reads after that took %v", took)
				}
			})
		}
	}
}

// inParallel runs f n times at the same time.
func inParallel(n int, f func() error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errs
}
