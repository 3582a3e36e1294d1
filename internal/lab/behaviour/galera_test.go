package behaviour_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
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

// galera is a cluster of three behind a plain TCP balancer that checks nothing.
type galera struct {
	*server.Galera
	via *proxy.Proxy
}

func TestGalera(t *testing.T) {
	t.Parallel()
	c := galera{Galera: servertest.RunGalera(t, 3, "--innodb-lock-wait-timeout=1")}
	c.via = proxyTo(t, c.Nodes()[0])
	for _, q := range []string{ledgerTable, "CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)"} {
		if err := c.Nodes()[0].Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	labtest.Eventually(t, "all nodes have the tables", func() bool {
		return !slices.ContainsFunc(c.Nodes(), func(n *server.Server) bool {
			return n.QueryRow("SELECT COUNT(*) FROM test.account", new(int)) != nil
		})
	})
	// One after the other, on one cluster, which takes seconds to start.
	t.Run("a conflict that shows on any statement is not swallowed", c.conflictMidway)
	t.Run("the isolation of a unit that lost a conflict reaches nobody", c.isolationAfterConflict)
	t.Run("conflicting units on several nodes are all applied once", c.conflicts)
	t.Run("the loss of a node", func(t *testing.T) {
		for i, b := range []struct {
			name           string
			inject, repair func(int) error
		}{
			{"isolated", func(i int) error { return c.Isolate(t.Context(), i) }, func(i int) error { return c.Heal(t.Context(), i) }},
			{"killed", c.KillNode, func(i int) error { return c.StartNode(t.Context(), i) }},
		} {
			t.Run(b.name, func(t *testing.T) {
				c.loss(t, func() error { return b.inject(i) }, func() error { return b.repair(i) })
			})
		}
	})
	t.Run("a COMMIT that comes late finds its unit settled", c.lateCommit)
	t.Run("a statement is swallowed and its transaction ended meanwhile", c.swallowed)
	t.Run("a node that lags does not settle a lost COMMIT", c.lag)
	t.Run("one key on all nodes at once", c.oneKey)
	t.Run("a node that is out of its cluster and says that it takes writes is left", c.dirtyReads)
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

// leadTo has the balancer lead to these nodes in turn, to all if none is named.
func (c galera) leadTo(t *testing.T, nodes ...int) {
	t.Helper()
	var addrs []string
	for i, n := range c.Nodes() {
		if len(nodes) == 0 || slices.Contains(nodes, i) {
			addrs = append(addrs, n.Addr())
		}
	}
	c.via.SetUpstreams(addrs...)
}

func (c galera) reset(t *testing.T) {
	t.Helper()
	c.leadTo(t)
	if err := c.Nodes()[0].Exec("DELETE FROM ledger; REPLACE INTO account VALUES (1, 0), (2, 0)"); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		labtest.Eventually(t, "the node has what the first has", func() bool {
			return count(t, n, "ledger") == 0 && count(t, n, "account WHERE balance = 0") == 2
		})
	}
}

// The isolation level of a transaction is no other borrower's, whatever becomes of it: a
// node may keep it, so that the connection is not used again.
func (c galera) isolationAfterConflict(t *testing.T) {
	for name, after := range map[string]func(context.Context, *livepool.Session) error{
		"a statement meets it": func(ctx context.Context, s *livepool.Session) error {
			labtest.Eventually(t, "the conflict shows", func() bool {
				return s.QueryRowContext(ctx, "SELECT 1").Scan(new(int)) != nil
			})
			return errors.New("undone")
		},
		"only ROLLBACK meets it": func(context.Context, *livepool.Session) error {
			time.Sleep(300 * time.Millisecond)
			return errors.New("undone")
		},
		"only COMMIT meets it": func(context.Context, *livepool.Session) error {
			time.Sleep(300 * time.Millisecond)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.reset(t)
			one, other := open(t, c.Nodes()[0].DSN(), "pool_size=1&pool_max_overflow=0"), openPlain(t, c.Nodes()[1].DSN())
			var before, now int
			_ = one.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := s.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&before); err != nil {
					return err
				}
				if _, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = 1"); err != nil {
					return err
				}
				if _, err := other.ExecContext(ctx, "UPDATE account SET balance = balance + 10 WHERE id = 1"); err != nil {
					return err
				}
				return after(ctx, s)
			}, livepool.Isolation(sql.LevelReadCommitted), livepool.MaxAttempts(1))
			tx, err := one.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			var level string
			if err := tx.QueryRow("SELECT balance FROM account WHERE id = 1").Scan(new(int)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(120 * time.Millisecond) // InnoDB repeats its last answer to who asks again within 0.1s
			if err := tx.QueryRow("SELECT trx_isolation_level FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()").Scan(&level); err != nil {
				t.Fatal(err)
			}
			if err := tx.QueryRow("SELECT CONNECTION_ID()").Scan(&now); err != nil {
				t.Fatal(err)
			}
			if level != "REPEATABLE READ" || before == 0 || before == now {
				t.Errorf("the next transaction is %s, on connection %d after %d", level, now, before)
			}
		})
	}
}

// Another node's commit ends the transaction at any time; whoever swallows the
// error would go on outside of it.
func (c galera) conflictMidway(t *testing.T) {
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
		labtest.Eventually(t, "the conflict shows", func() bool {
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
		labtest.Eventually(t, fmt.Sprintf("the balance is %d", workers*units), func() bool {
			err := n.QueryRow("SELECT balance FROM test.account WHERE id = 1", &balance)
			return err == nil && balance == workers*units
		})
	}
	t.Logf("%d units on three nodes, %d of them run again", workers*units, p.Stats().Retried)
}

// loss has units go on while one node is lost and comes back, and holds the
// longest time in which none succeeded against the cluster's own: that of a
// client which only ever talks to another node.
func (c galera) loss(t *testing.T, inject, repair func() error) {
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
	if err := inject(); err != nil {
		t.Error(err)
	}
	time.Sleep(3 * time.Second)
	if err := repair(); err != nil {
		t.Error(err)
	}
	time.Sleep(500 * time.Millisecond)
	close(stop)
	wg.Wait()
	p.Recycle()
	for _, n := range c.Nodes() {
		labtest.Eventually(t, "each unit has its row", func() bool { return count(t, n, "ledger") == done })
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

// A COMMIT is held up on its way to one node while another node, which neither
// has the key nor locks it, is asked what became of it.
func (c galera) lateCommit(t *testing.T) {
	c.reset(t)
	c.leadTo(t, 0)
	p := c.open(t, "pool_commit_timeout=1s&pool_stall_after=0")
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if _, err := s.ExecContext(ctx, "INSERT INTO ledger (unit) VALUES (1)"); err != nil {
			return err
		}
		c.via.CutBefore(proxy.QueryPrefix("COMMIT"), proxy.Stall)
		c.leadTo(t, 1)
		return nil
	}, livepool.VerifyCommit(), livepool.MaxAttempts(1))
	if err == nil || errors.Is(err, livepool.ErrCommitUnknown) {
		t.Errorf("got %v, want an error that says that it was not applied", err)
	}
	c.via.Heal()
	time.Sleep(500 * time.Millisecond) // the server may do with it what it likes
	for _, n := range c.Nodes() {
		if rows := count(t, n, "ledger"); rows != 0 {
			t.Errorf("%d rows of a unit that was said not to be applied: %v", rows, err)
		}
	}
}

// The network swallows a statement, and its node ends the transaction in favour of
// another node's: its thread is then shown as killed, and waits for the client.
func (c galera) swallowed(t *testing.T) {
	c.reset(t)
	p := c.open(t, "pool_stall_after=500ms")
	c.leadTo(t, 0)
	p.Recycle()
	runs := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if _, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = 1"); err != nil {
			return err
		}
		if runs++; runs == 1 {
			c.via.DropToServer(true)
			afterNextQuery(c.via, func() {
				c.via.DropToServer(false)
				c.leadTo(t)
				if err := c.Nodes()[1].Exec("UPDATE account SET balance = balance + 10 WHERE id = 1"); err != nil {
					t.Error(err)
				}
			})
		}
		_, err := s.ExecContext(ctx, "INSERT INTO ledger (unit) VALUES (1)")
		return err
	})
	if err != nil || runs != 2 {
		t.Errorf("%d runs: %v", runs, err)
	}
	for _, n := range c.Nodes() {
		labtest.Eventually(t, "both updates are there", func() bool {
			return count(t, n, "account WHERE balance = 11") == 1 && count(t, n, "ledger") == 1
		})
	}
}

// The transaction is committed and its answer lost; the node that is asked has
// received it, and is busy with an earlier one.
func (c galera) lag(t *testing.T) {
	const big = 100_000
	for _, q := range []string{
		"CREATE TABLE test.big (id INT PRIMARY KEY, v INT NOT NULL, pad CHAR(100))",
		fmt.Sprintf("INSERT INTO test.big SELECT seq, 0, REPEAT('x', 100) FROM seq_1_to_%d", big),
	} {
		if err := c.Nodes()[0].Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	for _, opts := range [][]livepool.SessionOption{
		{livepool.VerifyCommit(), livepool.MaxAttempts(1)},
		{livepool.Once("lag")},
	} {
		c.reset(t)
		labtest.Eventually(t, "the other node has it all", func() bool { return count(t, c.Nodes()[1], "big") == big })
		c.leadTo(t, 0)
		p := c.open(t, "pool_max_elapsed=2m")
		ran, hooks := 0, 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { hooks++ })
			if ran++; ran > 1 {
				return errors.New("no second time")
			}
			if _, err := s.ExecContext(ctx, "INSERT INTO ledger (unit) VALUES (1)"); err != nil {
				return err
			}
			if err := c.Nodes()[0].Exec("UPDATE test.big SET v = v + 1"); err != nil {
				t.Error(err)
			}
			c.leadTo(t, 1)
			c.via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
			return nil
		}, opts...)
		if err != nil || hooks != 1 {
			t.Errorf("after %d runs: %v, and %d hooks", ran, err, hooks)
		}
		labtest.Eventually(t, "its row is on the other node", func() bool { return count(t, c.Nodes()[1], "ledger") == 1 })
	}
}

func (c galera) oneKey(t *testing.T) {
	c.reset(t)
	var pools []*livepool.Pool
	for _, n := range c.Nodes() {
		pools = append(pools, open(t, n.AppDSN(n.Addr()), "pool_max_attempts=100"))
	}
	const keys = 50
	var hooks atomic.Int64
	for k := range keys {
		var wg sync.WaitGroup
		for _, p := range pools {
			wg.Go(func() {
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					s.AfterCommit(func(context.Context) { hooks.Add(1) })
					_, err := s.ExecContext(ctx, fmt.Sprintf("INSERT INTO ledger (unit) VALUES (%d)", k))
					return err
				}, livepool.Once(fmt.Sprint("key ", k)))
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for _, n := range c.Nodes() {
		labtest.Eventually(t, "each key was applied once", func() bool {
			var units int
			err := n.QueryRow("SELECT COUNT(DISTINCT unit) FROM test.ledger", &units)
			return err == nil && units == keys && count(t, n, "ledger") == keys
		})
	}
	if n := hooks.Load(); n != keys {
		t.Errorf("%d hooks for %d keys", n, keys)
	}
}

// With wsrep_dirty_reads a node answers all that does not write, DO among it.
func (c galera) dirtyReads(t *testing.T) {
	c.reset(t)
	dirty := func(value string) {
		if err := c.Nodes()[0].Exec("SET GLOBAL wsrep_dirty_reads = " + value); err != nil {
			t.Fatal(err)
		}
	}
	dirty("ON")
	defer dirty("OFF")
	const row = "INSERT INTO ledger (unit) VALUES (%d)"
	statement := func(p *livepool.Pool, n int) error { _, err := p.Exec(fmt.Sprintf(row, n)); return err }
	unit := func(p *livepool.Pool, n int) error {
		return p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, fmt.Sprintf(row, n))
			return err
		})
	}
	ways := []func(p *livepool.Pool, n int) error{statement, unit}
	var pools []*livepool.Pool
	for i, do := range ways {
		pools = append(pools, open(t, c.Nodes()[0].AppDSN(addrsOf(c.Nodes())), ""))
		if err := do(pools[i], i); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Isolate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for i, do := range ways {
		if err := do(pools[i], len(ways)+i); err != nil {
			t.Errorf("%d: %v, though the other nodes work", i, err)
		}
	}
	if err := errors.Join(c.Heal(t.Context(), 0), c.AwaitSynced(t.Context())); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, "each has its row", func() bool { return count(t, c.Nodes()[0], "ledger") == 2*len(ways) })
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
		labtest.Eventually(t, "each unit has its row", func() bool { return count(t, node, "ledger") == n })
	}
}
