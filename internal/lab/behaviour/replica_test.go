package behaviour_test

// Reads that a replica serves, which is behind now and then.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// readsAfterWrites is how many reads follow a write, LIVEPOOL_READS if that is set.
func readsAfterWrites() int {
	if n, err := strconv.Atoi(os.Getenv("LIVEPOOL_READS")); err == nil {
		return n
	}
	return 1000
}

// A read with the token of a write sees that write, however far behind the replica is.
func TestReadsFromAReplicaSeeWhatTheyAreAfter(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			pair := servertest.RunPair(t, kind)
			p := open(t, pair.Primary().AppDSN(addrsOf(pair.Servers())), "pool_size=32&pool_max_overflow=0")
			err := errors.Join(pair.Primary().Exec("CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)"), p.CreateCommitTable(t.Context()), pair.CatchUp(t.Context()))
			if err != nil {
				t.Fatal(err)
			}
			stop, lagging := make(chan struct{}), make(chan error, 1)
			go func() { lagging <- lagNowAndThen(pair.Replica(), stop) }()
			var left, stale, byReplica atomic.Int64
			left.Store(int64(readsAfterWrites()))
			var wg sync.WaitGroup
			for id := range 32 {
				wg.Go(func() {
					for balance := 1; left.Add(-1) >= 0; balance++ {
						var token string
						err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
							token = s.Token()
							_, err := s.ExecContext(ctx, fmt.Sprintf("REPLACE INTO account VALUES (%d, %d)", id, balance))
							return err
						}, livepool.VerifyCommit())
						if err != nil {
							t.Errorf("write: %v", err)
							return
						}
						var seen int
						var port string
						err = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
							return s.QueryRowContext(ctx, fmt.Sprintf("SELECT balance, @@port FROM account WHERE id = %d", id)).Scan(&seen, &port)
						}, livepool.ReadOnly(), livepool.FromReplica(), livepool.After(token))
						switch {
						case err != nil:
							t.Errorf("read: %v", err)
							return
						case seen != balance:
							stale.Add(1)
						}
						if isAt(pair.Replica(), port) {
							byReplica.Add(1)
						}
					}
				})
			}
			wg.Wait()
			close(stop)
			if err := <-lagging; err != nil {
				t.Error(err)
			}
			if stale.Load() > 0 || byReplica.Load() == 0 || byReplica.Load() != p.Stats().ServedByReplica {
				t.Errorf("%d stale reads; %d served by the replica, of which %d were counted", stale.Load(), byReplica.Load(), p.Stats().ServedByReplica)
			}
			t.Logf("%d of %d reads were served by the replica, %d were stale", byReplica.Load(), readsAfterWrites(), stale.Load())
		})
	}
}

// lagNowAndThen has a replica stop applying for up to half a second, again and again.
func lagNowAndThen(s *server.Server, stop <-chan struct{}) error {
	for {
		err := s.Exec("STOP REPLICA SQL_THREAD")
		time.Sleep(rand.N(500 * time.Millisecond))
		if err = errors.Join(err, s.Exec("START REPLICA SQL_THREAD")); err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		case <-time.After(rand.N(500 * time.Millisecond)):
		}
	}
}

// A unit FromReplica is served by the primary where no replica can serve it.
func TestThePrimaryServesWhatNoReplicaCan(t *testing.T) {
	t.Parallel()
	pair := servertest.RunPair(t, server.MariaDB)
	p := open(t, pair.Primary().AppDSN(addrsOf(pair.Servers())), "")
	if err := errors.Join(p.CreateCommitTable(t.Context()), pair.CatchUp(t.Context())); err != nil {
		t.Fatal(err)
	}
	read := func(opts ...livepool.SessionOption) (port string) {
		t.Helper()
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			return s.QueryRowContext(ctx, "SELECT @@port").Scan(&port)
		}, append(opts, livepool.ReadOnly(), livepool.FromReplica())...)
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	if port := read(); !isAt(pair.Replica(), port) {
		t.Errorf("a unit FromReplica is at port %s", port)
	}
	err := p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
		return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error { // joins the unit around it
			if outer, ok := p.FromContext(ctx); !ok || outer != s {
				t.Error("the unit inside is not found in its context")
			}
			if port := portOf(t, s); !isAt(pair.Replica(), port) {
				t.Errorf("a unit inside one FromReplica is at port %s", port)
			}
			return nil
		})
	}, livepool.ReadOnly(), livepool.FromReplica())
	if err != nil {
		t.Error(err)
	}
	if port := read(livepool.After("a token that nobody has")); !isAt(pair.Primary(), port) {
		t.Errorf("a unit after an unknown token is at port %s", port)
	}
	if err := pair.Replica().Stop(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if port := read(); !isAt(pair.Primary(), port) {
			t.Errorf("without a replica the unit is at port %s", port)
		}
	}
	if err := pair.Replica().Start(); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, "the replica serves again", func() bool { return isAt(pair.Replica(), read()) })
	for _, opts := range [][]livepool.SessionOption{
		{livepool.FromReplica()}, {livepool.ReadOnly(), livepool.After("x")},
	} {
		if err := p.WithSession(t.Context(), labtest.Work, opts...); err == nil {
			t.Error("options that contradict each other are accepted")
		}
	}
}

// openAccounts opens pools on a pair with an account, whose balance is 0, and the commit table.
func openAccounts(t *testing.T, pair *server.Pair, params ...string) (pools []*livepool.Pool) {
	t.Helper()
	for _, more := range params {
		pools = append(pools, open(t, pair.Primary().AppDSN(addrsOf(pair.Servers())), more))
	}
	if err := errors.Join(pair.Primary().Exec("CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)"),
		pair.Primary().Exec("INSERT INTO test.account VALUES (1, 0)"), pools[0].CreateCommitTable(t.Context()), pair.CatchUp(t.Context())); err != nil {
		t.Fatal(err)
	}
	return pools
}

// setBalance returns the token of the unit that has set it.
func setBalance(t *testing.T, p *livepool.Pool, balance int) (token string) {
	t.Helper()
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		token = s.Token()
		_, err := s.ExecContext(ctx, "UPDATE account SET balance = ? WHERE id = 1", balance)
		return err
	}, livepool.VerifyCommit()); err != nil {
		t.Fatal(err)
	}
	return token
}

// balanceFrom reads it in a unit FromReplica.
func balanceFrom(t *testing.T, p *livepool.Pool, opts ...livepool.SessionOption) (balance int, port string) {
	t.Helper()
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		return s.QueryRowContext(ctx, "SELECT balance, @@port FROM account WHERE id = 1").Scan(&balance, &port)
	}, append(opts, livepool.ReadOnly(), livepool.FromReplica())...); err != nil {
		t.Error(err)
	}
	return balance, port
}

// A program that only reads is told by nobody that the primary was demoted: the pool asks it
// before it serves, in a replica's place, what must be fresh.
func TestDemotedPrimaryServesNothingStale(t *testing.T) {
	t.Parallel()
	pair := servertest.RunPair(t, server.MariaDB)
	pools := openAccounts(t, pair, "", "")
	reader, writer := pools[0], pools[1]
	for range 5 { // the reader has connections to both
		_ = portOf(t, reader)
		balanceFrom(t, reader)
		time.Sleep(time.Second)
	}
	if err := pair.Switch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := pair.Primary().KillConnections(); err != nil { // the new primary's, as switching tools do
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if err := pair.Replica().Exec("STOP REPLICA SQL_THREAD"); err != nil {
		t.Fatal(err)
	}
	stale := 0
	for i := 1; i <= 20; i++ {
		if seen, _ := balanceFrom(t, reader, livepool.After(setBalance(t, writer, i))); seen != i {
			stale++
		}
		time.Sleep(100 * time.Millisecond)
	}
	if stale > 0 {
		t.Errorf("%d of 20 reads were stale", stale)
	}
	if err := pair.Replica().Exec("START REPLICA SQL_THREAD"); err != nil {
		t.Fatal(err)
	}
}

// A token proves something only at the levels at which a transaction sees what is committed, and
// waits for nobody: a session whose own level is another reads from the primary. Meanwhile a
// replica is applying the transaction with the token, and waits for a lock.
func TestTokenIsBelievedAtLevelsThatSeeWhatIsCommitted(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			pair := servertest.RunPair(t, kind)
			levels := []string{"READ-UNCOMMITTED", "READ-COMMITTED", "REPEATABLE-READ", "SERIALIZABLE"}
			variable := "tx_isolation"
			if kind == server.MySQL {
				variable = "transaction_isolation"
			}
			var params []string
			for _, level := range levels {
				params = append(params, variable+"=%27"+level+"%27&sql_mode=%27ANSI,ONLY_FULL_GROUP_BY,NO_BACKSLASH_ESCAPES%27")
			}
			pools := openAccounts(t, pair, params...)
			replica := openPlain(t, pair.Replica().DSN())
			balance := 0
			for i, level := range levels {
				p := pools[i]
				// What it has is read from there, at the levels that are believed.
				balance++
				token := setBalance(t, p, balance)
				if err := pair.CatchUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				isBelieved := i == 1 || i == 2
				if seen, port := balanceFrom(t, p, livepool.After(token)); seen != balance || isAt(pair.Replica(), port) != isBelieved {
					t.Errorf("%s: %d of %d, by the replica: %v, want %v", level, seen, balance, isAt(pair.Replica(), port), isBelieved)
				}
				if seen, port := balanceFrom(t, p, livepool.After(token), livepool.Isolation(sql.LevelReadCommitted)); seen != balance || !isAt(pair.Replica(), port) {
					t.Errorf("%s, where the unit asks for another: %d of %d, by the replica: %v", level, seen, balance, isAt(pair.Replica(), port))
				}
				// Somebody there holds the row that is being applied.
				tx, err := replica.Begin()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec("SELECT * FROM test.account WHERE id = 1 LOCK IN SHARE MODE"); err != nil {
					t.Fatal(err)
				}
				balance++
				token = setBalance(t, p, balance)
				time.Sleep(time.Second)
				start := time.Now()
				if seen, _ := balanceFrom(t, p, livepool.After(token)); seen != balance || time.Since(start) > 2*time.Second {
					t.Errorf("%s: %d of %d, after %s", level, seen, balance, time.Since(start))
				}
				if err := errors.Join(tx.Rollback(), pair.CatchUp(t.Context())); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The look for a token does not wait for long: somebody may have locked the table.
func TestLookForATokenIsBounded(t *testing.T) {
	t.Parallel()
	pair := servertest.RunPair(t, server.MariaDB)
	p := openAccounts(t, pair, "")[0]
	token := setBalance(t, p, 1)
	if err := pair.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	locker, err := openPlain(t, pair.Replica().DSN()).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer locker.Close()
	if seen, port := balanceFrom(t, p, livepool.After(token)); seen != 1 || !isAt(pair.Replica(), port) {
		t.Fatalf("%d, by the replica: %v", seen, isAt(pair.Replica(), port))
	}
	err = pair.Replica().Exec("SET GLOBAL read_only = 0") // else it refuses to lock
	if _, lockErr := locker.ExecContext(t.Context(), "LOCK TABLES test.livepool_commits WRITE"); err != nil || lockErr != nil {
		t.Fatal(err, lockErr)
	}
	start := time.Now()
	if seen, port := balanceFrom(t, p, livepool.After(token)); seen != 1 || !isAt(pair.Primary(), port) || time.Since(start) > 2*time.Second {
		t.Errorf("%d, by the primary: %v, after %s", seen, isAt(pair.Primary(), port), time.Since(start))
	}
}

// letAskForLag gives the pool's user what it needs to ask the replicas.
func letAskForLag(t *testing.T, p *server.Pair) {
	t.Helper()
	privileges := []string{"REPLICATION CLIENT"}
	if p.Primary().Kind() != server.MySQL {
		privileges = append(privileges, "REPLICA MONITOR")
	}
	for _, privilege := range privileges {
		if err := p.Primary().Exec("GRANT " + privilege + " ON *.* TO " + server.AppUser); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A replica that is too far behind, or whose replication has stopped, is left, and taken back.
func TestAReplicaThatLagsIsLeft(t *testing.T) {
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			pair := servertest.RunPair(t, kind)
			letAskForLag(t, pair)
			p, log := openLogged(t, pair.Primary().AppDSN(addrsOf(pair.Servers())), "pool_target=prefer-replica&pool_max_lag=5s")
			if port := portOf(t, p); !isAt(pair.Replica(), port) {
				t.Fatalf("the pool is at port %s", port)
			}
			if err := pair.Replica().Exec("STOP REPLICA SQL_THREAD"); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, "the replica is left", func() bool { return isAt(pair.Primary(), portOf(t, p)) })
			if lines := log.LinesWith("a replica is left"); len(lines) != 1 || !strings.Contains(lines[0], "has stopped") {
				t.Errorf("the log has %q", lines)
			}
			if err := pair.Replica().Exec("START REPLICA SQL_THREAD"); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, "the replica is taken back", func() bool {
				p.Recycle() // before the half minute that a connection to the primary lasts
				return isAt(pair.Replica(), portOf(t, p))
			})
		})
	}
}
