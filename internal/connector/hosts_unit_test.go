package connector_test

// Units FromReplica, on hosts that are fakes: the pool on replicas is a part of the pool.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/trace"
)

var fromReplica = []livepool.SessionOption{livepool.ReadOnly(), livepool.FromReplica()}

// openPair opens a pool on a primary and a replica, which has served a unit.
func openPair(t *testing.T, change func(*livepool.Config)) (p *livepool.Pool, a, b *fakedb.Host) {
	t.Helper()
	a, b = newHost("a", false), newHost("b", true)
	p, _ = openHosts(t, func(c *livepool.Config) {
		wrapAll(a, b)(c)
		if change != nil {
			change(c)
		}
	}, a, b)
	if err := p.WithSession(t.Context(), labtest.Work, fromReplica...); err != nil || p.Stats().ServedByReplica != 1 {
		t.Fatalf("%v, served by the replica: %d", err, p.Stats().ServedByReplica)
	}
	return p, a, b
}

// Close, also of the sql.DB alone, returns when the connections to replicas are closed too.
func TestCloseClosesTheConnectionsToReplicas(t *testing.T) {
	for name, closePool := range map[string]func(p *livepool.Pool) error{
		"the pool":   (*livepool.Pool).Close,
		"the sql.DB": func(p *livepool.Pool) error { return p.DB.Close() },
		"shutdown":   func(p *livepool.Pool) error { return p.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, a, b := openPair(t, nil)
				if err := closePool(p); err != nil || a.OpenConns() != 0 || b.OpenConns() != 0 {
					t.Errorf("%v, with %d connections to the primary and %d to the replica", err, a.OpenConns(), b.OpenConns())
				}
				if err := p.WithSession(t.Context(), labtest.Work, fromReplica...); !errors.Is(err, livepool.ErrPoolClosed) {
					t.Errorf("a unit after that: %v", err)
				}
			})
		})
	}
}

// Recycle replaces every connection, those to replicas too.
func TestRecycleReachesTheConnectionsToReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, b := openPair(t, nil)
		was := b.Conns()[len(b.Conns())-1]
		p.Recycle()
		time.Sleep(time.Second)
		if !was.Closed.Load() {
			t.Error("a connection to the replica is kept")
		}
	})
}

// While the pool is being shut down, what waits for the commit of a unit FromReplica comes to its
// end like that of any other.
func TestShutdownLetsTheHooksOfAUnitFromReplicaWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, _ := openPair(t, nil)
		down := make(chan error, 1)
		var inHook, inUnit error
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(ctx context.Context) { inHook = p.WithSession(ctx, labtest.Insert(1)) })
			if err := labtest.Work(ctx, s); err != nil {
				return err
			}
			go func() { down <- p.Shutdown(context.Background()) }()
			time.Sleep(time.Second)
			inUnit = p.WithSession(ctx, labtest.Insert(1), livepool.RequiresNew())
			return nil
		}, fromReplica...)
		if down := <-down; err != nil || inHook != nil || inUnit != nil || down != nil {
			t.Errorf("the unit: %v; in it: %v; in its hook: %v; Shutdown: %v", err, inUnit, inHook, down)
		}
	})
}

// A pool on the user's own connector has that connector's server alone: livepool does not dial
// past it.
func TestFromReplicaDoesNotDialPastTheUsersConnector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := livepool.NewConfig()
		cfg.Addrs = []string{"a:3306", "b:3306"}
		cfg.MySQL = &mysql.Config{DialFunc: func(_ context.Context, _, addr string) (net.Conn, error) {
			t.Errorf("dialed %s", addr)
			return nil, syscall.ECONNREFUSED
		}}
		p, err := livepool.OpenConnector(&fakedb.Host{}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := p.WithSession(t.Context(), labtest.Work, fromReplica...); err != nil || p.Stats().ServedByReplica != 0 {
			t.Errorf("%v, served by a replica: %d", err, p.Stats().ServedByReplica)
		}
	})
}

// unitTracer notes what it is told of units.
type unitTracer struct {
	mu   sync.Mutex // guards told
	told []string
}

func (u *unitTracer) tellf(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.told = append(u.told, fmt.Sprintf(format, args...))
}
func (u *unitTracer) TraceUnitStart(ctx context.Context, start trace.UnitStart) context.Context {
	u.tellf("start %s", start.Unit)
	return ctx
}
func (u *unitTracer) TraceUnitEnd(_ context.Context, end trace.UnitEnd) {
	u.tellf("end %s: %v after %d attempts, %v", end.Unit, end.Outcome, end.Attempts, end.Err)
}

// A unit FromReplica is one unit, whoever serves it: its tracer is told once, and its function
// which attempt it is.
func TestUnitFromReplicaIsTracedOnce(t *testing.T) {
	for _, tt := range []struct {
		name     string
		fails    bool
		attempts int
	}{{"the replica serves it", false, 1}, {"it dies, and the primary serves it", true, 2}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tracer := &unitTracer{}
				p, _, b := openPair(t, func(c *livepool.Config) { c.Tracer, c.MaxAttempts = tracer, 1 })
				tracer.told = nil
				last := 0
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					if last = s.Attempt(); tt.fails && last == 1 {
						if err := labtest.Work(ctx, s); err != nil {
							return err
						}
						b.Kill()
					}
					return labtest.Work(ctx, s)
				}, append(fromReplica, livepool.Name("report"))...)
				want := []string{"start report", fmt.Sprintf("end report: %v after %d attempts, <nil>", trace.Applied, tt.attempts)}
				if err != nil || last != tt.attempts || strings.Join(tracer.told, "\n") != strings.Join(want, "\n") {
					t.Errorf("%v by attempt %d, told:\n%s", err, last, strings.Join(tracer.told, "\n"))
				}
			})
		})
	}
}

// A unit whose COMMIT may stay unknown for long, because the server that has taken over lacks
// what the lost one had, keeps no place in the pool meanwhile.
func TestUnitThatStaysUnknownKeepsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newHost("a", false), newHost("b", true)
		b.OnQuery = func(query string) ([]string, error) {
			if strings.HasPrefix(query, "SELECT COUNT(*) FROM") {
				return []string{"0"}, nil
			}
			return nil, fakedb.ServerError(1227, "refused")
		}
		p, _ := openHosts(t, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 5*time.Second }, a, b)
		a.OnCommit = func(c *fakedb.Conn) error {
			a.OnConnect = func(context.Context, int64) error { return syscall.ECONNREFUSED }
			a.Kill()
			b.ReadOnly.Store(false)
			c.Valid.Store(false)
			return mysql.ErrInvalidConn
		}
		unknown := make(chan error, 1)
		go func() { unknown <- p.WithSession(context.Background(), labtest.Insert(1), livepool.Once("unit")) }()
		time.Sleep(2 * time.Second)
		for range 10 {
			if err := p.WithSession(t.Context(), labtest.Insert(2)); err != nil {
				t.Errorf("another unit: %v", err)
			}
			time.Sleep(time.Second)
		}
		if len(unknown) > 0 {
			t.Error("it is not resolved any more")
		}
		if err := <-unknown; !errors.Is(err, livepool.ErrCommitUnknown) {
			t.Errorf("%v, want ErrCommitUnknown", err)
		}
	})
}

// A pool that asks its only host for its role has no replicas to be served by.
func TestFromReplicaWithASingleHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost("a", false)
		p, log := openHosts(t, func(c *livepool.Config) { c.MySQL.Addr, c.Addrs = "", []string{"a:3306"} }, h)
		for range 3 {
			start := time.Now()
			if err := p.WithSession(t.Context(), labtest.Work, livepool.ReadOnly(), livepool.FromReplica()); err != nil || time.Since(start) != 0 {
				t.Errorf("after %s: %v", time.Since(start), err)
			}
		}
		if n, lines := h.Connects.Load(), log.LinesWith(""); n != 1 || len(lines) > 0 {
			t.Errorf("%d connections, told: %q", n, lines)
		}
	})
}
