package livepool_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/proxy"
	"github.com/livepool/livepool/internal/server"
	"github.com/livepool/livepool/internal/server/servertest"
)

// A session is what sqlc, GORM and bun want.
var _ interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	PrepareContext(context.Context, string) (*sql.Stmt, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
} = (*livepool.Session)(nil)

type fn = func(context.Context, *livepool.Session) error

// ledger is a server with a table of units and their rows, and accounts 1 to 9.
func ledger(t *testing.T, kind server.Kind, args ...string) (*server.Server, *livepool.Pool) {
	t.Helper()
	s := servertest.Run(t, kind, args...)
	for _, q := range []string{
		"CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)",
		"CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)",
		"INSERT INTO test.account VALUES (1,0),(2,0),(3,0),(4,0),(5,0),(6,0),(7,0),(8,0),(9,0)",
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	p := open(t, s.DSN(), "")
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, p
}

func count(t *testing.T, s *server.Server, where string) (n int) {
	t.Helper()
	if err := s.QueryRow("SELECT COUNT(*) FROM test."+where, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func insert(v int) fn {
	return func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "INSERT INTO t (v) VALUES (?)", v)
		return err
	}
}

func TestHowAUnitEnds(t *testing.T) {
	refused := errors.New("refused by the job")
	s, p := ledger(t, server.MariaDB)
	for i, tt := range []struct {
		name  string
		after func() error // what fn does after its insert
		rows  int
		want  error
		panic bool
	}{
		{"nil commits", func() error { return nil }, 1, nil, false},
		{"an error rolls back", func() error { return refused }, 0, refused, false},
		{"a panic rolls back and goes on", func() error { panic(refused) }, 0, nil, true},
		{"Goexit rolls back", func() error { runtime.Goexit(); return nil }, 0, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			var recovered any
			var hook atomic.Bool
			done := make(chan struct{})
			go func() { // for Goexit
				defer close(done)
				defer func() { recovered = recover() }()
				err = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					s.AfterCommit(func(context.Context) { hook.Store(true) })
					if err := insert(i)(ctx, s); err != nil {
						return err
					}
					return tt.after()
				})
			}()
			<-done
			if !errors.Is(err, tt.want) || tt.panic != (recovered == refused) {
				t.Errorf("error %v, panic %v", err, recovered)
			}
			if n := count(t, s, fmt.Sprintf("t WHERE v = %d", i)); n != tt.rows {
				t.Errorf("%d rows, want %d", n, tt.rows)
			}
			if hook.Load() != (tt.rows == 1) {
				t.Errorf("AfterCommit ran: %v", hook.Load())
			}
			eventually(t, "the connection is back", func() bool { return p.Stats().InUse == 0 })
		})
	}
}

// A session that sends nothing takes no connection.
func TestSessionTakesItsConnectionAtTheFirstStatement(t *testing.T) {
	f := &fake{}
	p := openFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if n := f.connects.Load(); n != 0 {
			t.Errorf("%d connections before the first statement", n)
		}
		servedBy(t, s)
		if n := f.connects.Load(); n != 1 {
			t.Errorf("%d connections after it", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSessionOutlivedByItsUsers(t *testing.T) {
	_, p := ledger(t, server.MariaDB)
	var kept *livepool.Session
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		kept = s
		return insert(1)(ctx, s)
	}); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, exec := kept.ExecContext(ctx, "DO 1")
	_, query := kept.QueryContext(ctx, "SELECT 1")
	_, prepare := kept.PrepareContext(ctx, "SELECT 1")
	_, tx := kept.Tx(ctx)
	row := kept.QueryRowContext(ctx, "SELECT 1").Scan(new(int))
	for name, err := range map[string]error{"Exec": exec, "Query": query, "Prepare": prepare, "Tx": tx, "QueryRow": row} {
		if !errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("%s: %v, want ErrSessionDone", name, err)
		}
	}
}

// The runner gives the job up: whatever the function still does, nothing of it
// is committed.
func TestEndedContextEndsTheSession(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	for name, statement := range map[string]func(ctx context.Context, s *livepool.Session) error{
		"under the function's context": insert(2),
		"under another context":        func(_ context.Context, s *livepool.Session) error { return insert(2)(context.Background(), s) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				if err := insert(1)(ctx, s); err != nil {
					return err
				}
				cancel()
				if err := statement(ctx, s); !errors.Is(err, livepool.ErrSessionDone) && !errors.Is(err, context.Canceled) {
					t.Errorf("a statement after the end: %v", err)
				}
				return nil
			})
			if !errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want ErrSessionDone for the context's end", err)
			}
			if n := count(t, s, "t"); n != 0 {
				t.Errorf("%d rows, want none", n)
			}
		})
	}
	t.Run("a long statement under another context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := p.WithSession(ctx, func(_ context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(context.Background(), "DO SLEEP(20)")
			return err
		})
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 10*time.Second {
			t.Errorf("got %v after %s", err, took)
		}
	})
}

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
				update := func(id int) fn {
					return func(ctx context.Context, s *livepool.Session) error {
						_, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = ?", id)
						return err
					}
				}
				first, second := []fn{update(1), update(9)}, []fn{update(9), update(1)}
				if streamed {
					first[1] = lockAll
					second[1] = update(1)
				}
				var meet sync.WaitGroup
				meet.Add(2)
				var once [2]sync.Once
				unit := func(i int, steps []fn) {
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

// deadlocks has a transaction meet a deadlock at its victim statement: another
// one, which has more to lose, waits for the row that the victim holds.
func deadlocks(t *testing.T, s *server.Server, victim func(block func())) {
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
		eventually(t, "the other transaction waits", func() bool {
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
	s, p := ledger(t, server.MariaDB)
	swallow := func(t *testing.T, begin func() (*sql.Tx, error)) error {
		var result error
		deadlocks(t, s, func(block func()) {
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

// The deadlock may come while rows are read, which few programs check for.
func TestSwallowedDeadlockOfAResult(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	for _, prepared := range []bool{false, true} {
		deadlocks(t, s, func(block func()) {
			tx, err := p.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.Exec("UPDATE account SET balance = balance + 1 WHERE id = 1"); err != nil {
				t.Fatal(err)
			}
			block()
			query, args := "SELECT id FROM account WHERE id >= 5 ORDER BY id FOR UPDATE", []any(nil)
			if prepared {
				query, args = "SELECT id FROM account WHERE id >= ? ORDER BY id FOR UPDATE", []any{5}
			}
			rows, err := tx.Query(query, args...)
			if err == nil {
				for rows.Next() {
				}
				err = rows.Err()
				rows.Close()
			}
			var my *mysql.MySQLError
			if !errors.As(err, &my) || my.Number != 1213 {
				t.Fatalf("got %v, want a deadlock", err)
			}
			if _, err := tx.Exec("INSERT INTO t (v) VALUES (7)"); !errors.Is(err, livepool.ErrPoisoned) {
				t.Errorf("prepared %v: the statement after it: %v, want ErrPoisoned", prepared, err)
			}
			tx.Rollback()
			if n := count(t, s, "t WHERE v = 7"); n != 0 {
				t.Errorf("prepared %v: %d rows survive, want none", prepared, n)
			}
		})
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
		s, p := ledger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
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
		s, p := ledger(t, server.MariaDB, "--innodb-lock-wait-timeout=1", "--innodb-rollback-on-timeout=ON")
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
		s, p := ledger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
		locked(t, s, func() {
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := insert(1)(ctx, s); err != nil {
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
		s, p := ledger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
		locked(t, s, func() {
			if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := insert(1)(ctx, s); err != nil {
					return err
				}
				inner := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, wait)
					return err
				})
				if !isLockWait(inner) {
					t.Errorf("the inner unit: %v", inner)
				}
				return insert(2)(ctx, s)
			}); err != nil {
				t.Error(err)
			}
		})
		if n := count(t, s, "t"); n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
	})
	t.Run("a session may ask not to wait", func(t *testing.T) {
		s, p := ledger(t, server.MariaDB)
		locked(t, s, func() {
			if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := s.QueryRowContext(ctx, "SELECT balance FROM account WHERE id = 9 FOR UPDATE NOWAIT").Scan(new(int)); !isLockWait(err) {
					t.Errorf("got %v, want error 1205", err)
				}
				return insert(1)(ctx, s)
			}); err != nil {
				t.Error(err)
			}
		})
		if n := count(t, s, "t"); n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
	})
	t.Run("a unit is run again when the lock is free", func(t *testing.T) {
		s, p := ledger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
		done := make(chan error, 1)
		locked(t, s, func() {
			go func() {
				done <- p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					if err := insert(1)(ctx, s); err != nil {
						return err
					}
					_, err := s.ExecContext(ctx, wait)
					return err
				})
			}()
			eventually(t, "the unit is run again", func() bool { return p.Stats().Retried > 0 })
		})
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := count(t, s, "t"); n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
	})
}

// One key, one effect, and success for all.
func TestOnceAmongManyAtTheSameTime(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.DSN(), "")
		if err := p.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if err := p.WithSession(t.Context(), insert(1), livepool.Once("order 1")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := count(t, s, "t"); n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
		ran := false
		if err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { ran = true; return nil }, livepool.Once("order 1")); err != nil || ran {
			t.Errorf("a redelivery: %v, fn ran: %v", err, ran)
		}
		if err := p.WithSession(t.Context(), insert(2), livepool.Once("order 2")); err != nil || count(t, s, "t") != 2 {
			t.Errorf("another key: %v, %d rows", err, count(t, s, "t"))
		}
	})
}

// The client dies between COMMIT and its reply; the job is delivered again, to
// another process.
func TestOnceSurvivesACrashOfTheClient(t *testing.T) {
	if dsn := os.Getenv("LIVEPOOL_TEST_ONCE_DSN"); dsn != "" {
		p, err := livepool.Open(dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		fmt.Println("unit:", p.WithSession(t.Context(), insert(1), livepool.Once("order 1")))
		return
	}
	s, p := ledger(t, server.MariaDB)
	via := front(t, s)
	cut := via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.Stall)
	worker := func(dsn string) *exec.Cmd {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "LIVEPOOL_TEST_ONCE_DSN="+dsn)
		return cmd
	}
	first := worker(s.DSNVia(via.Addr()))
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	<-cut.Done()
	first.Process.Kill()
	first.Wait()
	if n := count(t, s, "t"); n != 1 {
		t.Fatalf("%d rows after the crash, want 1: its COMMIT had arrived", n)
	}
	out, err := worker(s.DSN()).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "unit: <nil>") {
		t.Errorf("the redelivery: %v\n%s", err, out)
	}
	if n := count(t, s, "t"); n != 1 {
		t.Errorf("%d rows after the redelivery, want 1", n)
	}
	if n, err := p.PurgeCommits(t.Context(), 0); err != nil || n != 1 {
		t.Errorf("purged %d, %v, want 1", n, err)
	}
	if n, err := p.PurgeCommits(t.Context(), time.Hour); err != nil || n != 0 {
		t.Errorf("purged %d, %v, want none", n, err)
	}
}

func TestMissingCommitTableSaysWhatToDo(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "")
	err := p.WithSession(t.Context(), insert(1), livepool.VerifyCommit())
	if err == nil || !strings.Contains(err.Error(), "CreateCommitTable") {
		t.Errorf("got %v", err)
	}
}

// AfterCommit of a unit whose COMMIT was lost runs when it is known to have
// happened.
func TestAfterCommitOfAResolvedCommit(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	var hooks atomic.Int32
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		s.AfterCommit(func(context.Context) { hooks.Add(1) })
		return insert(1)(ctx, s)
	}, livepool.VerifyCommit()); err != nil {
		t.Fatal(err)
	}
	if hooks.Load() != 1 || count(t, s, "t") != 1 {
		t.Errorf("AfterCommit ran %d times, %d rows, want one of each", hooks.Load(), count(t, s, "t"))
	}
	if st := p.Stats(); st.CommitsUnknown != 1 || st.CommitsResolved != 1 {
		t.Errorf("unknown %d, resolved %d, want 1 and 1", st.CommitsUnknown, st.CommitsResolved)
	}
}

// What a job leaves on its connection, no other job sees.
func TestSessionStateStaysWithItsJob(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, q := range []string{"CREATE TABLE test.t (v INT)", "CREATE DATABASE other"} {
			if err := s.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		for _, dirt := range []string{
			"SET @x = 1", "SET SESSION time_zone = '+07:00'", "USE other",
			"CREATE TEMPORARY TABLE test.t (w INT)", "DO GET_LOCK('a lock', 0)", "LOCK TABLES t WRITE",
			"SELECT 1 INTO @x", "DO @x := 1",
		} {
			p := open(t, s.DSN(), "")
			if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, dirt)
				return err
			}); err != nil {
				t.Errorf("%s: %v", dirt, err)
			}
			for range 50 {
				if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					var clean bool
					if err := s.QueryRowContext(ctx, "SELECT @x IS NULL AND @@time_zone <> '+07:00' AND DATABASE() = 'test' AND IS_FREE_LOCK('a lock')").Scan(&clean); err != nil {
						return err
					}
					if !clean {
						t.Errorf("%s: the next job sees it", dirt)
					}
					_, err := s.ExecContext(ctx, "INSERT INTO t (v) VALUES (1)")
					return err
				}); err != nil {
					t.Errorf("%s: the next job: %v", dirt, err)
				}
			}
			p.Close()
		}
	})
}

func TestSessionRefusesToHaveItsTransactionEnded(t *testing.T) {
	_, p := ledger(t, server.MariaDB)
	for _, query := range []string{"COMMIT", "rollback", "BEGIN", "START TRANSACTION", "SET autocommit = 1"} {
		if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, query)
			return err
		}); err == nil || !strings.Contains(err.Error(), "refused in a session") {
			t.Errorf("%s: %v", query, err)
		}
	}
}

// A unit that has committed implicitly is not run again, and says so.
func TestImplicitCommitIsNotRepeated(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	attempts := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		attempts++
		if err := insert(1)(ctx, sess); err != nil {
			return err
		}
		if _, err := sess.ExecContext(ctx, "CREATE TABLE u (v INT)"); err != nil {
			return err
		}
		if err := s.KillConnections(); err != nil {
			t.Error(err)
		}
		return insert(2)(ctx, sess)
	})
	if err == nil || attempts != 1 || !strings.Contains(err.Error(), "CREATE TABLE u") {
		t.Errorf("%d attempts, %v", attempts, err)
	}
	if n := count(t, s, "t"); n != 1 {
		t.Errorf("%d rows, want the one that was committed implicitly", n)
	}
}

// Sessions are served in the order in which they came.
func TestPlacesAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := openFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 6, 4 })
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if err := p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
					servedBy(t, s)
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
					time.Sleep(time.Second)
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(time.Millisecond) // so that there is an order
		}
		wg.Wait()
		if !slices.IsSorted(order) {
			t.Errorf("served in the order %v", order)
		}
		if n := f.connects.Load(); n > 200 || f.open() > 10 {
			t.Errorf("%d connections opened, %d open", n, f.open())
		}
	})
}

// PoolTimeout ends the wait, and says whether the pool was exhausted or the
// database down.
func TestPoolTimeoutTellsExhaustedFromDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := openFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		var wg sync.WaitGroup
		wg.Go(func() {
			p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
				servedBy(t, s)
				time.Sleep(time.Minute)
				return nil
			}, livepool.Name("the long report"))
		})
		synctest.Wait()
		start := time.Now()
		err := p.WithSession(t.Context(), insert(1))
		if took := time.Since(start); !errors.Is(err, livepool.ErrPoolTimeout) || took != 10*time.Second {
			t.Errorf("got %v after %s, want ErrPoolTimeout after 10s", err, took)
		}
		for _, part := range []string{"exhausted", "1 sessions in use", "1 waiting", "the long report", "10s"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
		wg.Wait()
	})
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("no route to host")
		f := &fake{onConnect: func(context.Context, int64) error { time.Sleep(time.Second); return down }}
		p := openFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				err := p.WithSession(t.Context(), insert(1))
				if !errors.Is(err, down) {
					t.Errorf("got %v, want the database's trouble in it", err)
				}
				if errors.Is(err, livepool.ErrPoolTimeout) && !strings.Contains(err.Error(), "cannot be reached") {
					t.Errorf("%q blames the pool", err)
				}
			})
		}
		wg.Wait()
	})
}

// A pool that is also used without sessions: the wait for a connection is
// bounded too.
func TestPoolTimeoutBehindPlainUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := openFake(t, &fake{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err = p.WithSession(t.Context(), insert(1))
		if took := time.Since(start); !errors.Is(err, livepool.ErrPoolTimeout) || took != 10*time.Second {
			t.Errorf("got %v after %s, want ErrPoolTimeout after 10s", err, took)
		}
		c.Close()
		if err := p.WithSession(t.Context(), insert(1)); err != nil {
			t.Error(err)
		}
	})
}

// Units inside units: an inner error undoes the inner part only, and a full
// pool of nested units does not lock itself up.
func TestNestedUnits(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	refused := errors.New("refused")
	var hooks []string
	hook := func(name string) func(context.Context) { return func(context.Context) { hooks = append(hooks, name) } }
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		if in, ok := livepool.FromContext(ctx); !ok || in != outer {
			t.Error("the context does not carry the session")
		}
		outer.AfterCommit(hook("outer"))
		if err := insert(1)(ctx, outer); err != nil {
			return err
		}
		if err := p.WithSession(ctx, func(ctx context.Context, inner *livepool.Session) error {
			inner.AfterCommit(hook("inner, undone"))
			if err := insert(2)(ctx, inner); err != nil {
				return err
			}
			return refused
		}); !errors.Is(err, refused) {
			t.Errorf("the inner unit: %v", err)
		}
		var kept *livepool.Session
		if err := p.WithSession(ctx, func(ctx context.Context, inner *livepool.Session) error {
			kept = inner
			inner.AfterCommit(hook("inner"))
			return p.WithSession(ctx, insert(3))
		}); err != nil {
			return err
		}
		if _, err := kept.ExecContext(ctx, "DO 1"); !errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("an inner session that has ended: %v", err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic of an inner unit was lost")
				}
			}()
			p.WithSession(ctx, func(ctx context.Context, inner *livepool.Session) error {
				insert(4)(ctx, inner)
				panic("inner")
			})
		}()
		if err := p.WithSession(ctx, func(ctx context.Context, own *livepool.Session) error {
			return insert(5)(ctx, own)
		}, livepool.RequiresNew()); err != nil {
			return err
		}
		if n := count(t, s, "t WHERE v = 5"); n != 1 {
			t.Errorf("RequiresNew: %d rows before the outer commit, want 1", n)
		}
		if err := p.WithSession(ctx, insert(6), livepool.ReadOnly()); err == nil {
			t.Error("an inner unit cannot make the transaction read-only")
		}
		return insert(7)(ctx, outer)
	})
	if err != nil {
		t.Fatal(err)
	}
	var kept []byte
	if err := s.QueryRow("SELECT GROUP_CONCAT(v ORDER BY v) FROM test.t", &kept); err != nil || string(kept) != "1,3,5,7" {
		t.Errorf("rows %s, %v, want 1,3,5,7", kept, err)
	}
	if !slices.Equal(hooks, []string{"outer", "inner"}) {
		t.Errorf("AfterCommit ran %v", hooks)
	}

	small := open(t, s.DSN(), "pool_size=2&pool_max_overflow=0&pool_timeout=5s")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := small.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := insert(8)(ctx, s); err != nil {
					return err
				}
				return small.WithSession(ctx, insert(9))
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSessionOptions(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	t.Run("ReadOnly", func(t *testing.T) {
		attempts := 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			attempts++
			return insert(1)(ctx, s)
		}, livepool.ReadOnly())
		var my *mysql.MySQLError
		if !errors.As(err, &my) || my.Number != 1792 || attempts != 1 {
			t.Errorf("a write: %v after %d attempts, want 1792 at once", err, attempts)
		}
	})
	t.Run("Isolation", func(t *testing.T) {
		for level, want := range map[sql.IsolationLevel]int{sql.LevelReadCommitted: 1, sql.LevelRepeatableRead: 0} {
			if err := s.Exec("DELETE FROM test.t"); err != nil {
				t.Fatal(err)
			}
			if err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
				var n int
				if err := sess.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(&n); err != nil {
					return err
				}
				if err := s.Exec("INSERT INTO test.t (v) VALUES (1)"); err != nil {
					return err
				}
				if err := sess.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(&n); err != nil {
					return err
				}
				if n != want {
					t.Errorf("%v sees %d rows of another transaction, want %d", level, n, want)
				}
				return nil
			}, livepool.Isolation(level)); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("MaxAttempts and Attempt", func(t *testing.T) {
		var attempts []int
		err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
			attempts = append(attempts, sess.Attempt())
			if err := insert(1)(ctx, sess); err != nil {
				return err
			}
			if err := s.KillConnections(); err != nil {
				t.Error(err)
			}
			return insert(2)(ctx, sess)
		}, livepool.MaxAttempts(3), livepool.Name("the nightly transfer"))
		if !slices.Equal(attempts, []int{1, 2, 3}) {
			t.Errorf("attempts %v", attempts)
		}
		for _, part := range []string{"the nightly transfer", "3 attempt", "MaxAttempts"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%v does not say %q", err, part)
			}
		}
	})
	t.Run("contradictions", func(t *testing.T) {
		for name, opts := range map[string][]livepool.SessionOption{
			"ReadOnly and Once":         {livepool.ReadOnly(), livepool.Once("k")},
			"ReadOnly and VerifyCommit": {livepool.ReadOnly(), livepool.VerifyCommit()},
			"a key too long":            {livepool.Once(strings.Repeat("k", 256))},
			"negative attempts":         {livepool.MaxAttempts(-1)},
			"OncePerID without a Job":   {livepool.OncePerID("x")},
		} {
			if err := p.WithSession(t.Context(), insert(1), opts...); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}

type orderID string

func TestJob(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	body := func(ctx context.Context, s *livepool.Session, v int64) error { return insert(int(v))(ctx, s) }
	job := livepool.Job(p, body, livepool.OncePerID("transfer"))
	for range 3 {
		for _, id := range []int64{1, 2} {
			if err := job(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	}
	if n := count(t, s, "t"); n != 2 {
		t.Errorf("%d rows of two ids delivered three times, want 2", n)
	}
	named := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id orderID) error { return insert(3)(ctx, s) }, livepool.OncePerID("ship"))
	uuid := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id [16]byte) error { return insert(4)(ctx, s) }, livepool.OncePerID("pack"))
	if err := errors.Join(named(t.Context(), "A-17"), uuid(t.Context(), [16]byte{1, 2})); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"transfer:1", "transfer:2", "ship:A-17", "pack:01020000000000000000000000000000"} {
		if n := count(t, s, fmt.Sprintf("livepool_commits WHERE unit = '%s'", key)); n != 1 {
			t.Errorf("the commit table has %d rows for %s, want 1", n, key)
		}
	}
}

func TestRetryOfAnIdempotentFunction(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
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

func TestSessionsAndPoolsAreNotSerialised(t *testing.T) {
	p := openFake(t, &fake{}, nil)
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		for name, v := range map[string]any{"session": s, "pool": p} {
			if _, err := json.Marshal(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
				t.Errorf("json of a %s: %v", name, err)
			}
			if err := gob.NewEncoder(new(bytes.Buffer)).Encode(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
				t.Errorf("gob of a %s: %v", name, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A statement sent into the middle of a result would read the result's rest as
// its answer.
func TestOpenResultRefusesTheNextStatement(t *testing.T) {
	_, p := ledger(t, server.MariaDB)
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		rows, err := s.QueryContext(ctx, "SELECT id FROM account")
		if err != nil {
			return err
		}
		rows.Next()
		if err := insert(1)(ctx, s); err == nil || !strings.Contains(err.Error(), "still open") {
			t.Errorf("got %v", err)
		}
		rows.Close()
		return insert(1)(ctx, s)
	}); err != nil {
		t.Error(err)
	}
}

// A unit costs the round trips of its transaction, and its key one more.
func TestRoundTripsOfAUnit(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (v INT)"); err != nil {
			t.Fatal(err)
		}
		via := front(t, s)
		p, plain := open(t, s.DSNVia(via.Addr()), ""), openPlain(t, s.DSNVia(via.Addr()))
		if err := p.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		trips := func(f func() error) int {
			t.Helper()
			if err := f(); err != nil { // warm
				t.Fatal(err)
			}
			via.ResetCounts()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			return via.Counts().RoundTrips()
		}
		literal := func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
			return err
		}
		want := trips(func() error {
			tx, err := plain.Begin()
			if err != nil {
				return err
			}
			if _, err := tx.Exec("INSERT INTO t VALUES (1)"); err != nil {
				return err
			}
			return tx.Commit()
		})
		if got := trips(func() error { return p.WithSession(t.Context(), literal) }); got != want {
			t.Errorf("%d round trips, plain has %d", got, want)
		}
		if got := trips(func() error { return p.WithSession(t.Context(), literal, livepool.VerifyCommit()) }); got != want+1 {
			t.Errorf("with a key %d round trips, want %d", got, want+1)
		}
	})
}

func TestUnitAllocatesLittleMoreThanItsTransaction(t *testing.T) {
	plain, _ := openNoop(t)
	p, err := livepool.OpenConnector(noop{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx := context.Background()
	measure := func(f func()) float64 {
		least := 1e9
		for range 5 {
			least = min(least, testing.AllocsPerRun(100, func() { f(); runtime.Gosched() }))
		}
		return least
	}
	tx := measure(func() {
		tx, _ := plain.BeginTx(ctx, nil)
		tx.ExecContext(ctx, "INSERT INTO t VALUES (1)")
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	})
	unit := measure(func() {
		if err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
	if unit > tx+4 {
		t.Errorf("a unit allocates %v times, its transaction alone %v: want at most 4 more", unit, tx)
	}
}

// COMMIT and ROLLBACK, which take no context, are bounded; the driver bounds
// neither.
func TestCommitAndRollbackAreBounded(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	for name, end := range map[string]func(*sql.Tx) error{"COMMIT": (*sql.Tx).Commit, "ROLLBACK": (*sql.Tx).Rollback} {
		t.Run(name, func(t *testing.T) {
			via := front(t, s)
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

// A transaction whose server has become read-only meanwhile was certainly not
// committed, and a unit finds its way to the new primary.
func TestCommitRefusedByADemotedServer(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			old, _ := ledger(t, kind)
			fresh, _ := ledger(t, kind)
			via := front(t, old)
			p := open(t, old.AppDSN(via.Addr()), "")
			attempts := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				attempts++
				if err := insert(1)(ctx, s); err != nil {
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

// A unit outlasts a server that is down for a while.
func TestUnitWaitsForItsServer(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Second, func() {
		if err := s.Start(); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := p.WithSession(t.Context(), insert(1)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := count(t, s, "t"); n != 8 {
		t.Errorf("%d rows, want 8", n)
	}
}

// Several goroutines may share a session; they take turns.
func TestSessionIsSafeForConcurrentUse(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	if err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if err := insert(i)(ctx, sess); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return nil
	}); err != nil {
		t.Error(err)
	}
	if n := count(t, s, "t"); n != 20 {
		t.Errorf("%d rows, want 20", n)
	}
}

// COMMIT runs to its end when the caller's context ends meanwhile.
func TestCommitIsNotTornByACancel(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
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
	if err := p.WithSession(ctx, insert(1)); err != nil {
		t.Errorf("got %v, want the commit to run to its end", err)
	}
	if n := count(t, s, "t"); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}
