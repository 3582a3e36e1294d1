package behaviour_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// causeDeadlock has a transaction meet a deadlock at its victim statement: another
// one, which has more to lose, waits for the row that the victim holds.
func causeDeadlock(t *testing.T, s *server.Server, victim func(block func())) {
	t.Helper()
	other := openPlain(t, s.DSN())
	tx, err := other.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for i := range 100 { // the server rolls back the one that has changed less
		if _, err := tx.Exec("INSERT INTO t (v) VALUES (?)", 1000+i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Exec("UPDATE account SET balance = 0 WHERE id = 9"); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	victim(func() {
		go func() {
			_, err := tx.Exec("UPDATE account SET balance = 0 WHERE id = 1")
			waiting <- err
		}()
		labtest.Eventually(t, "the other transaction waits", func() bool {
			list, err := s.Processes()
			return err == nil && slices.ContainsFunc(list, func(p server.Process) bool {
				return strings.Contains(p.Info, "id = 1") && strings.Contains(p.Info, "UPDATE")
			})
		})
		time.Sleep(50 * time.Millisecond) // from sent to waiting for the lock
	})
	if err := <-waiting; err != nil {
		t.Error(err)
	}
}

// A program that swallows a deadlock and goes on: the server has ended the
// transaction, so that on a plain sql.Tx what follows is committed by itself,
// and survives the rollback.
func TestSwallowedDeadlock(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	swallow := func(t *testing.T, begin func() (*sql.Tx, error)) error {
		var result error
		causeDeadlock(t, s, func(block func()) {
			tx, err := begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.Exec("UPDATE account SET balance = balance + 1 WHERE id = 1"); err != nil {
				t.Fatal(err)
			}
			block()
			_, err = tx.Exec("UPDATE account SET balance = balance + 1 WHERE id = 9")
			var my *mysql.MySQLError
			if !errors.As(err, &my) || my.Number != 1213 {
				t.Fatalf("got %v, want a deadlock", err)
			}
			if _, result = tx.Exec("INSERT INTO t (v) VALUES (7)"); result == nil {
				tx.Rollback()
				return
			}
			if err := tx.Commit(); !errors.Is(err, livepool.ErrPoisoned) {
				t.Errorf("Commit: %v, want ErrPoisoned", err)
			}
		})
		return result
	}

	plain := openPlain(t, s.DSN())
	if err := swallow(t, plain.Begin); err != nil {
		t.Errorf("plain: %v", err)
	}
	if n := count(t, s, "t WHERE v = 7"); n != 1 {
		t.Errorf("plain: %d rows survive the rollback, it was 1: is the poison still needed?", n)
	}
	if err := s.Exec("DELETE FROM test.t"); err != nil {
		t.Fatal(err)
	}

	if err := swallow(t, p.Begin); !errors.Is(err, livepool.ErrPoisoned) {
		t.Errorf("livepool: the statement after the deadlock: %v, want ErrPoisoned", err)
	}
	if n := count(t, s, "t WHERE v = 7"); n != 0 {
		t.Errorf("livepool: %d rows survive, want none", n)
	}
}

// A lock wait timeout undoes one statement. A plain transaction may go on; a
// session does not commit the rest by itself.
func TestLockWait(t *testing.T) {
	t.Parallel()
	locked := func(t *testing.T, s *server.Server, f func()) {
		t.Helper()
		holder := openPlain(t, s.DSN())
		tx, err := holder.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.Exec("UPDATE account SET balance = 0 WHERE id = 9"); err != nil {
			t.Fatal(err)
		}
		f()
	}
	const wait = "UPDATE account SET balance = 1 WHERE id = 9"
	isLockWait := func(err error) bool {
		var my *mysql.MySQLError
		return errors.As(err, &my) && my.Number == 1205
	}

	t.Run("a plain transaction stays usable", func(t *testing.T) {
		s, p := openLedger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
		locked(t, s, func() {
			tx, err := p.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			tx.Exec("INSERT INTO t (v) VALUES (1)")
			if _, err := tx.Exec(wait); !isLockWait(err) {
				t.Fatalf("got %v, want a lock wait timeout", err)
			}
			if _, err := tx.Exec("INSERT INTO t (v) VALUES (2)"); err != nil {
				t.Error(err)
			}
			if err := tx.Commit(); err != nil {
				t.Error(err)
			}
		})
		if n := count(t, s, "t"); n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
	})
	t.Run("but not where the server ends the transaction", func(t *testing.T) {
		s, p := openLedger(t, server.MariaDB, "--innodb-lock-wait-timeout=1", "--innodb-rollback-on-timeout=ON")
		locked(t, s, func() {
			tx, err := p.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			tx.Exec("INSERT INTO t (v) VALUES (1)")
			if _, err := tx.Exec(wait); !isLockWait(err) {
				t.Fatalf("got %v, want a lock wait timeout", err)
			}
			if _, err := tx.Exec("INSERT INTO t (v) VALUES (2)"); !errors.Is(err, livepool.ErrPoisoned) {
				t.Errorf("got %v, want ErrPoisoned", err)
			}
		})
		if n := count(t, s, "t"); n != 0 {
			t.Errorf("%d rows, want none", n)
		}
	})
	t.Run("a session that swallows it is not half committed", func(t *testing.T) {
		s, p := openLedger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
		locked(t, s, func() {
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := labtest.Insert(1)(ctx, s); err != nil {
					return err
				}
				s.ExecContext(ctx, wait)
				return nil
			}, livepool.MaxAttempts(1))
			if !errors.Is(err, livepool.ErrPoisoned) || !isLockWait(err) {
				t.Errorf("got %v, want ErrPoisoned for the lock wait", err)
			}
		})
		if n := count(t, s, "t"); n != 0 {
			t.Errorf("%d rows, want none", n)
		}
	})
	t.Run("a session may roll back to a savepoint", func(t *testing.T) {
		s, p := openLedger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
		locked(t, s, func() {
			if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := labtest.Insert(1)(ctx, s); err != nil {
					return err
				}
				inner := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, wait)
					return err
				})
				if !isLockWait(inner) {
					t.Errorf("the inner unit: %v", inner)
				}
				return labtest.Insert(2)(ctx, s)
			}); err != nil {
				t.Error(err)
			}
		})
		if n := count(t, s, "t"); n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
	})
	t.Run("a session may ask not to wait", func(t *testing.T) {
		s, p := openLedger(t, server.MariaDB)
		locked(t, s, func() {
			if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := s.QueryRowContext(ctx, "SELECT balance FROM account WHERE id = 9 FOR UPDATE NOWAIT").Scan(new(int)); !isLockWait(err) {
					t.Errorf("got %v, want error 1205", err)
				}
				return labtest.Insert(1)(ctx, s)
			}); err != nil {
				t.Error(err)
			}
		})
		if n := count(t, s, "t"); n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
	})
	t.Run("a unit is run again when the lock is free", func(t *testing.T) {
		s, p := openLedger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
		done := make(chan error, 1)
		locked(t, s, func() {
			go func() {
				done <- p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					if err := labtest.Insert(1)(ctx, s); err != nil {
						return err
					}
					_, err := s.ExecContext(ctx, wait)
					return err
				})
			}()
			labtest.Eventually(t, "the unit is run again", func() bool { return p.Stats().Retried > 0 })
		})
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := count(t, s, "t"); n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
	})
}

// MariaDB answers NOWAIT with a lock wait timeout, which, if the server is set so,
// ends the transaction: what follows must not be committed by itself.
func TestNowaitThatEndsTheTransactionIsNotHalfApplied(t *testing.T) {
	s, p := openLedger(t, server.MariaDB, "--innodb-rollback-on-timeout=ON")
	plain := openPlain(t, s.DSN())
	blocker, err := plain.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Rollback()
	if _, err := blocker.Exec("UPDATE account SET balance = 1 WHERE id = 9"); err != nil {
		t.Fatal(err)
	}
	var nowait error
	err = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if err := labtest.Insert(1)(ctx, s); err != nil {
			return err
		}
		nowait = s.QueryRowContext(ctx, "SELECT balance FROM account WHERE id = 9 FOR UPDATE NOWAIT").Scan(new(int))
		return labtest.Insert(2)(ctx, s)
	})
	t.Logf("nowait %v; unit %v; rows %d", nowait, err, count(t, s, "t"))
	if n := count(t, s, "t"); err == nil && n != 2 {
		t.Errorf("nil, and %d rows of 2", n)
	}
}

// A refused statement whose error the function swallows: the others must not be committed without it.
func TestASwallowedRefusalIsNotCommittedInParts(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.l (id INT)"); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.AppDSN(s.Addr()), "")
		err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
			if _, err := u.ExecContext(ctx, "INSERT INTO l VALUES (1)"); err != nil {
				return err
			}
			if u.Attempt() == 1 {
				s.SetReadOnly(true)
			}
			u.ExecContext(ctx, "INSERT INTO l VALUES (2)")
			s.SetReadOnly(false)
			return nil
		})
		var n int
		if e := s.QueryRow("SELECT COUNT(*) FROM test.l", &n); e != nil {
			t.Fatal(e)
		}
		if (err == nil && n != 2) || (err != nil && n != 0) {
			t.Errorf("said %v, %d of 2 rows", err, n)
		}
	})
}

// COMMIT and ROLLBACK, which take no context, are bounded; the driver bounds
// neither.
func TestCommitAndRollbackAreBounded(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	for name, end := range map[string]func(*sql.Tx) error{"COMMIT": (*sql.Tx).Commit, "ROLLBACK": (*sql.Tx).Rollback} {
		t.Run(name, func(t *testing.T) {
			via := proxyTo(t, s)
			p := open(t, s.DSNVia(via.Addr()), "pool_commit_timeout=300ms")
			tx, err := p.Begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("INSERT INTO t (v) VALUES (1)"); err != nil {
				t.Fatal(err)
			}
			via.Stall()
			start := time.Now()
			err = end(tx)
			if took := time.Since(start); err == nil || took < 300*time.Millisecond || took > 5*time.Second {
				t.Errorf("got %v after %s, want an error after CommitTimeout, 300ms", err, took)
			}
			if errors.Is(err, livepool.ErrCommitUnknown) != (name == "COMMIT") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// COMMIT runs to its end when the caller's context ends meanwhile.
func TestCommitIsNotTornByACancel(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cut := via.CutBefore(proxy.QueryPrefix("COMMIT"), proxy.Stall)
	go func() {
		<-cut.Done() // COMMIT is on its way
		cancel()
		time.Sleep(200 * time.Millisecond)
		via.Heal()
	}()
	if err := p.WithSession(ctx, labtest.Insert(1)); err != nil {
		t.Errorf("got %v, want the commit to run to its end", err)
	}
	if n := count(t, s, "t"); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

// The answer is lost on the way and the server, having been idle after it for
// wait_timeout, says 4031, which is what the client then reads in its place.
func TestIdleCloseInPlaceOfALostAnswer(t *testing.T) {
	s, _ := openLedger(t, server.MySQL)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "wait_timeout=1&pool_keepalive=0&pool_stall_after=0")
	lose := func() { // what the server says next
		via.DropToClient(true)
		afterNextQuery(via, func() { via.DropToClient(false) })
	}
	for _, tt := range []struct {
		name  string
		opts  []livepool.SessionOption
		want  error
		hooks int
	}{
		{"no option", nil, livepool.ErrCommitUnknown, 0},
		{"VerifyCommit", []livepool.SessionOption{livepool.VerifyCommit()}, nil, 1},
	} {
		if err := s.Exec("DELETE FROM test.t"); err != nil {
			t.Fatal(err)
		}
		attempts, hooks := 0, 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { hooks++ })
			if err := labtest.Insert(1)(ctx, s); err != nil {
				return err
			}
			if attempts++; attempts == 1 {
				lose()
			}
			return nil
		}, tt.opts...)
		if !errors.Is(err, tt.want) || hooks != tt.hooks {
			t.Errorf("%s: %v, and %d hooks run", tt.name, err, hooks)
		}
		if n := count(t, s, "t"); n != 1 {
			t.Errorf("%s: %d rows", tt.name, n)
		}
	}
	connectionID(t, p)
	lose()
	_, err := p.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (2)")
	if n := count(t, s, "t WHERE v = 2"); err == nil || n != 1 {
		t.Errorf("a statement of its own: %d rows, said %v", n, err)
	}
}
