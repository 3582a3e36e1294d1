package livepool_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/proxy"
	"github.com/livepool/livepool/internal/server"
	"github.com/livepool/livepool/internal/server/servertest"
)

// galera is a cluster of three behind a plain TCP balancer that checks nothing.
type galera struct {
	*server.Galera
	via *proxy.Proxy
}

func TestGalera(t *testing.T) {
	t.Parallel()
	c := galera{Galera: servertest.RunGalera(t, 3, "--innodb-lock-wait-timeout=1")}
	c.via = front(t, c.Nodes()[0])
	var addrs []string
	for _, n := range c.Nodes() {
		addrs = append(addrs, n.Addr())
	}
	c.via.SetUpstreams(addrs...)
	for _, q := range []string{ledgerTable, "CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)"} {
		if err := c.Nodes()[0].Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	// One after the other, on one cluster, which takes seconds to start.
	t.Run("a conflict that shows on any statement is not swallowed", c.conflictInTheMiddle)
	t.Run("conflicting units on several nodes are all applied once", c.conflicts)
	t.Run("the loss of a node", func(t *testing.T) {
		for i, b := range []struct {
			name       string
			blow, mend func(int) error
		}{
			{"isolated", func(i int) error { return c.Isolate(t.Context(), i) }, func(i int) error { return c.Heal(t.Context(), i) }},
			{"killed", c.KillNode, c.StartNode},
		} {
			t.Run(b.name, func(t *testing.T) {
				c.loss(t, func() error { return b.blow(i) }, func() error { return b.mend(i) })
			})
		}
	})
	t.Run("units wait until the cluster has a quorum again", c.noQuorum)
}

func (c galera) open(t *testing.T, params string) *livepool.Pool {
	t.Helper()
	p := open(t, c.Nodes()[0].AppDSN(c.via.Addr()), params)
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func (c galera) reset(t *testing.T) {
	t.Helper()
	if err := c.Nodes()[0].Exec("DELETE FROM ledger; REPLACE INTO account VALUES (1, 0), (2, 0)"); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		eventually(t, "the node has what the first has", func() bool {
			return count(t, n, "ledger") == 0 && count(t, n, "account WHERE balance = 0") == 2
		})
	}
}

// Another node's commit ends the transaction at any time; whoever swallows the
// error would go on outside of it.
func (c galera) conflictInTheMiddle(t *testing.T) {
	c.reset(t)
	one, other := open(t, c.Nodes()[0].DSN(), ""), openPlain(t, c.Nodes()[1].DSN())
	attempts := 0
	var met, late error
	err := one.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		attempts++
		if _, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = 1"); err != nil {
			return err
		}
		if attempts > 1 {
			return nil
		}
		if _, err := other.ExecContext(ctx, "UPDATE account SET balance = balance + 10 WHERE id = 1"); err != nil {
			return err
		}
		eventually(t, "the conflict shows", func() bool {
			var n int
			met = s.QueryRowContext(ctx, "SELECT 1").Scan(&n)
			return met != nil
		})
		_, late = s.ExecContext(ctx, "INSERT INTO ledger (unit) VALUES (1)")
		return nil
	})
	var my *mysql.MySQLError
	if !errors.As(met, &my) || my.Number != 1213 {
		t.Errorf("SELECT 1 met %v, want 1213", met)
	}
	if !errors.Is(late, livepool.ErrPoisoned) {
		t.Errorf("the statement after it: %v, want ErrPoisoned", late)
	}
	if err != nil || attempts != 2 {
		t.Errorf("%v after %d attempts, want nil after 2", err, attempts)
	}
	var balance int
	if err := c.Nodes()[0].QueryRow("SELECT balance FROM test.account WHERE id = 1", &balance); err != nil || balance != 11 {
		t.Errorf("balance %d, %v, want 11", balance, err)
	}
	if n := count(t, c.Nodes()[0], "ledger"); n != 0 {
		t.Errorf("%d rows of the attempt that was rolled back", n)
	}
}

func (c galera) conflicts(t *testing.T) {
	c.reset(t)
	const workers, units = 4, 20
	p := c.open(t, "pool_max_attempts=100")
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range units {
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = 1")
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, n := range c.Nodes() {
		var balance int
		eventually(t, fmt.Sprintf("the balance is %d", workers*units), func() bool {
			err := n.QueryRow("SELECT balance FROM test.account WHERE id = 1", &balance)
			return err == nil && balance == workers*units
		})
	}
	t.Logf("%d units on three nodes, %d of them run again", workers*units, p.Stats().Retried)
}

// loss has units go on while one node is lost and comes back, and holds the
// longest time in which none succeeded against the cluster's own: that of a
// client which only ever talks to another node.
func (c galera) loss(t *testing.T, blow, mend func() error) {
	c.reset(t)
	const workers = 6
	p := c.open(t, "pool_timeout=2m&pool_max_elapsed=2m")
	own := openPlain(t, c.Nodes()[2].DSN())
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var units, theirs []time.Time // when each succeeded
	done := 0
	loop := func(f func() error) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for range workers {
		loop(func() error {
			mu.Lock()
			unit := done
			done++
			mu.Unlock()
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, fmt.Sprintf("INSERT INTO ledger (unit) VALUES (%d)", unit))
				return err
			}, livepool.VerifyCommit())
			mu.Lock()
			units = append(units, time.Now())
			mu.Unlock()
			return err
		})
	}
	loop(func() error {
		_, err := own.ExecContext(t.Context(), "UPDATE account SET balance = balance + 1 WHERE id = 2")
		var my *mysql.MySQLError
		if errors.As(err, &my) { // of a cluster that changes
			return nil
		}
		mu.Lock()
		theirs = append(theirs, time.Now())
		mu.Unlock()
		return err
	})
	time.Sleep(500 * time.Millisecond)
	struck := time.Now()
	if err := blow(); err != nil {
		t.Error(err)
	}
	time.Sleep(3 * time.Second)
	if err := mend(); err != nil {
		t.Error(err)
	}
	time.Sleep(500 * time.Millisecond)
	close(stop)
	wg.Wait()
	p.Recycle()
	for _, n := range c.Nodes() {
		eventually(t, "each unit has its row", func() bool { return count(t, n, "ledger") == done })
	}
	var twice int
	if err := c.Nodes()[2].QueryRow("SELECT COUNT(*) - COUNT(DISTINCT unit) FROM test.ledger", &twice); err != nil || twice != 0 {
		t.Errorf("%d rows too many: %v", twice, err)
	}
	ours, its := longestGap(units, struck), longestGap(theirs, struck)
	t.Logf("%d units; longest time without one %s, the cluster's own %s; %d run again, %d commits unknown at first",
		done, ours.Round(time.Millisecond), its.Round(time.Millisecond), p.Stats().Retried, p.Stats().CommitsUnknown)
	if ours > its+5*time.Second {
		t.Errorf("no unit for %s, when the cluster itself was away for %s", ours, its)
	}
}

// longestGap is between any two of the times from the first before since on.
func longestGap(times []time.Time, since time.Time) (longest time.Duration) {
	slices.SortFunc(times, time.Time.Compare)
	for i := 1; i < len(times); i++ {
		if times[i].After(since) {
			longest = max(longest, times[i].Sub(times[i-1]))
		}
	}
	return longest
}

func (c galera) noQuorum(t *testing.T) {
	c.reset(t)
	p := c.open(t, "pool_timeout=2m&pool_max_elapsed=2m")
	for i := range 2 {
		if err := c.Isolate(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.ExecContext(t.Context(), "INSERT INTO ledger (unit) VALUES (-1)")
	var my *mysql.MySQLError
	if !errors.As(err, &my) || my.Number != 1047 {
		t.Errorf("a statement while no node works: %v, want the server's 1047", err)
	}
	const n = 10
	said := make(chan error, n)
	for unit := range n {
		go func() {
			said <- p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, fmt.Sprintf("INSERT INTO ledger (unit) VALUES (%d)", unit))
				return err
			})
		}()
	}
	time.Sleep(time.Second)
	if len(said) > 0 {
		t.Errorf("%d units did not wait: %v", len(said), <-said)
	}
	for i := range 2 {
		if err := c.Heal(t.Context(), 1-i); err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		if err := <-said; err != nil {
			t.Error(err)
		}
	}
	if err := c.AwaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.Nodes() {
		eventually(t, "each unit has its row", func() bool { return count(t, node, "ledger") == n })
	}
}
