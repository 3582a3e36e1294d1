package connector_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// cluster is a fake of some nodes behind a balancer that has each in turn and
// knows nothing of them.
type cluster struct {
	fakedb.DB
	nodes   int64
	out     atomic.Int64 // the node that answers and takes no work, -1 for none
	refused atomic.Int64 // statements that it refused, but for those that only ask
	asked   atomic.Int64 // that only ask
}

var errNotReady = &mysql.MySQLError{Number: 1047, SQLState: [5]byte{'0', '8', 'S', '0', '1'}, Message: "WSREP has not yet prepared node for application use"}

const insertOne = "INSERT INTO t VALUES (1)"

func newCluster(nodes int64) *cluster {
	f := &cluster{nodes: nodes}
	f.out.Store(-1)
	f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
		if query == "DO 0" {
			f.asked.Add(1)
		}
		if c.ID%f.nodes != f.out.Load() {
			return nil
		}
		if query != "DO 0" {
			f.refused.Add(1)
		}
		return errNotReady
	}
	f.OnBegin = func(c *fakedb.Conn) error { return f.OnExec(nil, c, "BEGIN") }
	return f
}

func TestNodeThatTakesNoWorkIsNotTrusted(t *testing.T) {
	ways := []struct {
		name string
		use  func(ctx context.Context, p *livepool.Pool) error
	}{
		{"statements", func(ctx context.Context, p *livepool.Pool) error {
			_, err := p.ExecContext(ctx, insertOne)
			return err
		}},
		{"units of work", func(ctx context.Context, p *livepool.Pool) error {
			return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, insertOne)
				return err
			})
		}},
		{"transactions", func(ctx context.Context, p *livepool.Pool) error {
			tx, err := p.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			return tx.Commit()
		}},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			f := newCluster(3)
			p := labtest.OpenFake(t, &f.DB, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 9, 0 })
			fakedb.Warm(t, p.DB, 9)
			f.out.Store(0)
			for range 30 {
				if err := way.use(t.Context(), p); err != nil {
					t.Errorf("two nodes of three work: %v", err)
				}
				p.Recycle() // and the balancer goes on leading there
				if err := way.use(t.Context(), p); err != nil {
					t.Errorf("by new connections alone: %v", err)
				}
			}
			if n := f.refused.Load(); n > 3 { // as many as database/sql tries for one statement
				t.Errorf("%d statements were sent to the node that refuses them, want one or two until it is known", n)
			}
			if n := p.Stats().Outages; n != 0 {
				t.Errorf("%d outages: the cluster was there all the time", n)
			}
		})
	}
}

func TestIdleConnectionsToANodeThatTakesNoWorkAreLeft(t *testing.T) {
	f := newCluster(3)
	p := labtest.OpenFake(t, &f.DB, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 9, 0 })
	fakedb.Warm(t, p.DB, 9)
	f.out.Store(0)
	if _, err := p.ExecContext(t.Context(), insertOne); err != nil { // by the last one that came back
		t.Fatal(err)
	}
	held := make([]*sql.Conn, 9)
	for i := range held {
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held[i] = c
		if id := fakedb.ServedBy(t, c); id%3 == 0 {
			t.Errorf("connection %d leads to the node that takes no work", id)
		}
	}
	for _, c := range held {
		c.Close()
	}
	if n := f.refused.Load(); n > 2 {
		t.Errorf("%d statements were refused", n)
	}
}

// Where no node takes work the cluster is one that cannot be reached: the units
// wait for it, with one prober for all of them, and cost no attempts.
func TestUnitsWaitForAClusterWithoutQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCluster(1)
		p := labtest.OpenFake(t, &f.DB, nil)
		fakedb.ServedBy(t, p.DB)
		f.out.Store(0)
		done := make(chan error)
		attempts := atomic.Int64{}
		for range 8 {
			go func() {
				done <- p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					attempts.Add(1)
					_, err := s.ExecContext(ctx, insertOne)
					return err
				})
			}()
		}
		time.Sleep(500 * time.Millisecond)
		connects := f.Connects.Load()
		if connects > 100 {
			t.Errorf("%d connects in half a second", connects)
		}
		f.out.Store(-1)
		for range 8 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := attempts.Load(); n > 2*8 {
			t.Errorf("%d attempts of 8 units: the wait should cost none", n)
		}
		if n := p.Stats().Outages; n != 1 {
			t.Errorf("%d outages, want 1", n)
		}
	})
}

func TestClusterWithoutQuorumIsToldAsSuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCluster(1)
		p := labtest.OpenFake(t, &f.DB, func(c *livepool.Config) { c.Logger = slog.New(slog.DiscardHandler) })
		fakedb.ServedBy(t, p.DB)
		f.out.Store(0)
		_, err := p.Exec(insertOne)
		var my *mysql.MySQLError
		if !errors.As(err, &my) || my.Number != 1047 {
			t.Errorf("got %v, want the server's own 1047", err)
		}
		f.out.Store(-1)
		if _, err := p.Exec(insertOne); err != nil {
			t.Errorf("after it is back: %v", err)
		}
	})
}

// Nobody else pays: as long as no node has refused, a ping is a ping.
func TestPingsAskForWorkOnlyOnceANodeHasRefusedIt(t *testing.T) {
	f := newCluster(3)
	p := labtest.OpenFake(t, &f.DB, func(c *livepool.Config) { c.PrePing = livepool.PrePingAlways })
	for range 10 {
		fakedb.ServedBy(t, p.DB)
	}
	if n := f.asked.Load(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

// One node's insert of the key proves nothing to the others: a lost COMMIT is
// settled by one that succeeds.
func TestLostCommitInAClusterIsSettledByACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCluster(1)
		p := labtest.OpenFake(t, &f.DB, nil)
		f.out.Store(0)
		p.ExecContext(t.Context(), insertOne)
		f.out.Store(-1)
		var did []string
		f.OnBegin = nil
		f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if verb, _, _ := strings.Cut(query, " "); verb != "DO" {
				did = append(did, verb)
			}
			return nil
		}
		f.OnCommit = func(c *fakedb.Conn) error {
			did = append(did, "COMMIT")
			if len(did) == 3 {
				c.Valid.Store(false)
				return fakedb.ErrGone
			}
			return nil
		}
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "UPDATE t SET v = 1")
			return err
		}, livepool.VerifyCommit(), livepool.MaxAttempts(2))
		want := []string{"INSERT", "UPDATE", "COMMIT", "INSERT", "DELETE", "COMMIT", "INSERT", "UPDATE", "COMMIT"}
		if err != nil || !slices.Equal(did, want) {
			t.Errorf("%v: %v, want %v", err, did, want)
		}
	})
}

func TestUnreadyNodesAreTriedWithinConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCluster(1)
		p := labtest.OpenFake(t, &f.DB, nil)
		defer p.Close()
		fakedb.ServedBy(t, p.DB)
		f.out.Store(0)
		f.OnConnect = func(ctx context.Context, _ int64) error { waitFor(ctx, 4*time.Second); return ctx.Err() }
		start := time.Now()
		_, err := p.ExecContext(t.Context(), insertOne)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("waited for %s with a ConnectTimeout of 5s: %v", took, err)
		}
	})
}

// waitFor waits for d, or until the context ends.
func waitFor(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func TestEachStatementDialsOnceWhileNoNodeWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCluster(1)
		p := labtest.OpenFake(t, &f.DB, func(c *livepool.Config) { c.OutageWait = 0 })
		fakedb.ServedBy(t, p.DB)
		f.out.Store(0)
		_, err := p.ExecContext(t.Context(), insertOne)
		if err == nil || !strings.Contains(err.Error(), "each to a node that takes no work") {
			t.Errorf("the first: %v", err)
		}
		const n = 100
		before := f.Connects.Load()
		for range n {
			p.ExecContext(t.Context(), insertOne)
		}
		if dials := f.Connects.Load() - before; dials > 2*n { // the prober's among them
			t.Errorf("%d dials for %d statements", dials, n)
		}
	})
}
