package behaviour_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Both of two units that deadlock are applied once, also where the deadlock
// comes in the middle of a result.
func TestDeadlockedUnitsAreBothApplied(t *testing.T) {
	t.Parallel()
	for _, streamed := range []bool{false, true} {
		t.Run(fmt.Sprint("streamed ", streamed), func(t *testing.T) {
			servertest.Each(t, func(t *testing.T, s *server.Server) {
				for _, q := range []string{
					"CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)",
					"INSERT INTO test.account VALUES (1,0),(2,0),(3,0),(4,0),(5,0),(6,0),(7,0),(8,0),(9,0)",
				} {
					if err := s.Exec(q); err != nil {
						t.Fatal(err)
					}
				}
				p := open(t, s.DSN(), "")
				lockAll := func(ctx context.Context, s *livepool.Session) error {
					rows, err := s.QueryContext(ctx, "SELECT id FROM account ORDER BY id FOR UPDATE")
					if err != nil {
						return err
					}
					defer rows.Close()
					for rows.Next() {
					}
					return rows.Err()
				}
				update := func(id int) labtest.UnitFunc {
					return func(ctx context.Context, s *livepool.Session) error {
						_, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = ?", id)
						return err
					}
				}
				first, second := []labtest.UnitFunc{update(1), update(9)}, []labtest.UnitFunc{update(9), update(1)}
				if streamed {
					first[1] = lockAll
					second[1] = update(1)
				}
				var meet sync.WaitGroup
				meet.Add(2)
				var once [2]sync.Once
				unit := func(i int, steps []labtest.UnitFunc) {
					if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						if err := steps[0](ctx, s); err != nil {
							return err
						}
						once[i].Do(func() { meet.Done(); meet.Wait() }) // the first time both hold a lock that the other wants
						return steps[1](ctx, s)
					}); err != nil {
						t.Errorf("unit %d: %v", i, err)
					}
				}
				var wg sync.WaitGroup
				wg.Go(func() { unit(0, first) })
				wg.Go(func() { unit(1, second) })
				wg.Wait()
				want := 4
				if streamed {
					want = 3
				}
				var sum int
				if err := s.QueryRow("SELECT SUM(balance) FROM test.account", &sum); err != nil || sum != want {
					t.Errorf("sum %d, %v, want %d: each applied once", sum, err, want)
				}
				if p.Stats().Retried == 0 {
					t.Error("there was no deadlock: the test shows nothing")
				}
			})
		})
	}
}

// A transaction whose server has become read-only meanwhile was certainly not
// committed, and a unit finds its way to the new primary.
func TestCommitRefusedByADemotedServer(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			old, _ := openLedger(t, kind)
			fresh, _ := openLedger(t, kind)
			via := proxyTo(t, old)
			p := open(t, old.AppDSN(via.Addr()), "")
			attempts := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				attempts++
				if err := labtest.Insert(1)(ctx, s); err != nil {
					return err
				}
				if attempts == 1 {
					if err := old.SetReadOnly(true); err != nil {
						t.Error(err)
					}
					via.SetUpstream(fresh.Addr())
				}
				return nil
			})
			if err != nil || attempts < 2 {
				t.Errorf("%v after %d attempts, want success on the new primary", err, attempts)
			}
			if a, b := count(t, old, "t"), count(t, fresh, "t"); a != 0 || b != 1 {
				t.Errorf("%d rows on the old primary, %d on the new one, want 0 and 1", a, b)
			}
		})
	}
}

// The pool is warm with connections to a server that was demoted; the address leads to a new primary.
func TestUnitDemotedBeforeTheUnit(t *testing.T) {
	t.Parallel()
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			old, _ := openLedger(t, kind)
			fresh, _ := openLedger(t, kind)
			via := proxyTo(t, old)
			p := open(t, old.AppDSN(via.Addr()), "")
			warmReal(t, p.DB, 2)
			if err := old.SetReadOnly(true); err != nil {
				t.Fatal(err)
			}
			via.SetUpstream(fresh.Addr())
			start := time.Now()
			err := p.WithSession(t.Context(), labtest.Insert(1))
			t.Logf("after %s: %v", time.Since(start), err)
			if err != nil || count(t, fresh, "t") != 1 {
				t.Errorf("want success on the new primary: %v", err)
			}
		})
	}
}

// A plain transaction that meets the server's refusal to write fails, for livepool does not
// know its function. The next ones meet the new primary: also where each takes another of
// the connections that were there before, and where COMMIT alone is refused.
func TestPlainTransactionsAfterADemotion(t *testing.T) {
	t.Parallel()
	for _, kind := range server.Kinds() {
		for _, when := range []string{"before the statement", "before COMMIT"} {
			t.Run(string(kind)+"/"+when, func(t *testing.T) {
				old, _ := openLedger(t, kind)
				fresh, _ := openLedger(t, kind)
				via := proxyTo(t, old)
				p := open(t, old.AppDSN(via.Addr()), "pool_size=8")
				warmReal(t, p.DB, 8)
				demote := func() {
					if err := old.SetReadOnly(true); err != nil {
						t.Error(err)
					}
					via.SetUpstream(fresh.Addr())
				}
				insert := func(v int, beforeCommit func()) error {
					tx, err := p.BeginTx(t.Context(), nil)
					if err != nil {
						return err
					}
					defer tx.Rollback()
					if _, err := tx.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (?)", v); err != nil {
						return err
					}
					beforeCommit()
					return tx.Commit()
				}
				first := demote
				if when == "before the statement" {
					demote()
					first = func() {}
				}
				if err := insert(0, first); err == nil {
					t.Error("the first was applied, want the refusal of the old primary")
				}
				for v := 1; v <= 20; v++ {
					if err := insert(v, func() {}); err != nil {
						t.Errorf("transaction %d: %v", v, err)
					}
				}
				if a, b := count(t, old, "t"), count(t, fresh, "t"); a != 0 || b != 20 {
					t.Errorf("%d rows on the old primary, %d on the new one, want 0 and 20", a, b)
				}
			})
		}
	}
}

// The address may still lead to the demoted server when the first transaction is refused.
// Those after it meet the new primary soon after new connections do.
func TestPlainTransactionsBeforeTheAddressMoves(t *testing.T) {
	t.Parallel()
	old, _ := openLedger(t, server.MariaDB)
	fresh, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, old)
	p := open(t, old.AppDSN(via.Addr()), "pool_size=4")
	warmReal(t, p.DB, 4)
	if err := old.SetReadOnly(true); err != nil {
		t.Fatal(err)
	}
	insert := func() error {
		tx, err := p.BeginTx(t.Context(), nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if err := tx.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM t").Scan(new(int)); err != nil {
			return err
		}
		if _, err := tx.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (1)"); err != nil {
			return err
		}
		return tx.Commit()
	}
	refused := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err := insert(); !labtest.IsServerError(err, 1290) {
			t.Fatalf("the demoted server said %v", err)
		}
		refused++
	}
	if opened := p.Stats().Opened; opened > 20 {
		t.Errorf("%d connections were opened for %d refused transactions", opened, refused)
	}
	via.SetUpstream(fresh.Addr())
	start := time.Now()
	labtest.Eventually(t, "the new primary is met", func() bool { return insert() == nil })
	if took := time.Since(start); took > 5*time.Second { // without a limit of its own it takes ten
		t.Errorf("after %s", took)
	}
}

// Read from one place in a ReadOnly unit, write to another in a unit of its own, whose COMMIT is lost.
func TestUnitReadOnlyRerunsAnotherUnitsUnknown(t *testing.T) {
	s, replica := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	primary := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	err := replica.WithSession(t.Context(), func(ctx context.Context, r *livepool.Session) error {
		if err := r.QueryRowContext(ctx, "SELECT COUNT(*) FROM account").Scan(new(int)); err != nil {
			return err
		}
		return primary.WithSession(ctx, labtest.Insert(1))
	}, livepool.ReadOnly())
	if n := count(t, s, "t"); n != 1 || err == nil {
		t.Errorf("%d rows, said %v: want one row and ErrCommitUnknown", n, err)
	}
}

// The same under Once: the outer unit is rerun although its own COMMIT was never sent.
func TestUnitOnceRerunsAnotherUnitsUnknown(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	other := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	err := p.WithSession(t.Context(), func(ctx context.Context, r *livepool.Session) error {
		return other.WithSession(ctx, labtest.Insert(1))
	}, livepool.Once("k"))
	if n := count(t, s, "t"); n != 1 || err == nil {
		t.Errorf("%d rows, said %v: want one row and ErrCommitUnknown", n, err)
	}
}

// A pool's own statement, in fn, in the middle of a unit that is Once, whose answer is lost.
func TestUnitPoolStatementInsideTheUnit(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("INSERT INTO t"), proxy.FIN)
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		if _, err := sess.ExecContext(ctx, "DO 1"); err != nil {
			return err
		}
		_, err := p.ExecContext(ctx, "INSERT INTO t (v) VALUES (1)") // autocommit, may have run
		return err
	})
	if n := count(t, s, "t"); n > 1 {
		t.Errorf("%d rows of one autocommitted statement whose loss made the unit run again: %v", n, err)
	}
}

// NOWAIT on MariaDB: the function says no, for good.
func TestUnitNowaitIsRetried(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	tx, _ := openPlain(t, s.DSN()).Begin()
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE account SET balance=1 WHERE id=9"); err != nil {
		t.Fatal(err)
	}
	tries := 0
	taken := errors.New("somebody else has it")
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		tries++
		if err := s.QueryRowContext(ctx, "SELECT balance FROM account WHERE id=9 FOR UPDATE NOWAIT").Scan(new(int)); err != nil {
			return taken
		}
		return nil
	}, livepool.MaxAttempts(4))
	if tries != 1 {
		t.Errorf("%d tries: %v", tries, err)
	}
}

func TestRetryOfAnIdempotentFunction(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	tries := 0
	err := p.Retry(t.Context(), func(ctx context.Context) error {
		tries++
		c, err := p.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if tries == 1 {
			if err := s.KillConnections(); err != nil {
				t.Error(err)
			}
		}
		_, err = c.ExecContext(ctx, "REPLACE INTO account VALUES (1, 5)")
		return err
	})
	if err != nil || tries != 2 {
		t.Errorf("%v after %d tries, want success at the second", err, tries)
	}
	tries = 0
	if err := p.Retry(t.Context(), func(ctx context.Context) error {
		tries++
		_, err := p.ExecContext(ctx, "INSERT INTO account VALUES (1, 5)")
		return err
	}); err == nil || tries != 1 {
		t.Errorf("a duplicate key: %v after %d tries, want the error at the first", err, tries)
	}
}
