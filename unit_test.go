package livepool_test

// Units of work at their edges: what other units, other pools, other people's
// commits and late goroutines do to them.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/proxy"
	"github.com/livepool/livepool/internal/server"
	"github.com/livepool/livepool/internal/server/servertest"
)

// A library that got the *sql.Tx commits it itself, loses the reply, and reports it in its own words.
func TestUnitTxCommitLostAppliedTwice(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		tx, err := sess.Tx(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO t (v) VALUES (1)"); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("saving: %v", err)
		}
		return nil
	})
	if n := count(t, s, "t"); n > 1 {
		t.Errorf("%d rows, said %v", n, err)
	}
}

// It commits, successfully, and the next thing fails with something retryable.
func TestUnitTxCommittedThenRetryable(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	tries := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		tries++
		tx, err := sess.Tx(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO t (v) VALUES (1)"); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF // of an http body, say
	}, livepool.MaxAttempts(3))
	if n := count(t, s, "t"); n != 0 {
		t.Errorf("%d rows after %d tries, said %v", n, tries, err)
	}
}

// Read from one place in a ReadOnly unit, write to another in a unit of its own, whose COMMIT is lost.
func TestUnitReadOnlyRerunsAnotherUnitsUnknown(t *testing.T) {
	s, replica := ledger(t, server.MariaDB)
	via := front(t, s)
	primary := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	err := replica.WithSession(t.Context(), func(ctx context.Context, r *livepool.Session) error {
		if err := r.QueryRowContext(ctx, "SELECT COUNT(*) FROM account").Scan(new(int)); err != nil {
			return err
		}
		return primary.WithSession(ctx, insert(1))
	}, livepool.ReadOnly())
	if n := count(t, s, "t"); n != 1 || err == nil {
		t.Errorf("%d rows, said %v: want one row and ErrCommitUnknown", n, err)
	}
}

// The same under Once: the outer unit is rerun although its own COMMIT was never sent.
func TestUnitOnceRerunsAnotherUnitsUnknown(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	via := front(t, s)
	other := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	err := p.WithSession(t.Context(), func(ctx context.Context, r *livepool.Session) error {
		return other.WithSession(ctx, insert(1))
	}, livepool.Once("k"))
	if n := count(t, s, "t"); n != 1 || err == nil {
		t.Errorf("%d rows, said %v: want one row and ErrCommitUnknown", n, err)
	}
}

// What commits inside, by ways that the scanner does not see, and is run again.
func TestUnitHiddenCommits(t *testing.T) {
	for name, query := range map[string]string{
		"CALL":              "CALL put()",
		"EXECUTE IMMEDIATE": "EXECUTE IMMEDIATE 'COMMIT'",
		"multi":             "INSERT INTO t (v) VALUES (1); COMMIT",
		"SET STATEMENT":     "SET STATEMENT max_statement_time=10 FOR CREATE TABLE zz (a INT)",
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := ledger(t, server.MariaDB)
			if err := s.Exec("CREATE PROCEDURE test.put() BEGIN INSERT INTO test.t (v) VALUES (1); COMMIT; END"); err != nil {
				t.Fatal(err)
			}
			p := open(t, s.DSN(), "multiStatements=true")
			tries := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
				tries++
				if name != "CALL" && name != "multi" {
					if err := insert(1)(ctx, sess); err != nil {
						return err
					}
				}
				if tries == 1 || name != "SET STATEMENT" {
					if _, err := sess.ExecContext(ctx, query); err != nil {
						return err
					}
				}
				if tries == 1 {
					if err := s.KillConnections(); err != nil {
						t.Error(err)
					}
				}
				_, err := sess.ExecContext(ctx, "DO 1")
				return err
			})
			if n := count(t, s, "t"); n > 1 {
				t.Errorf("%d rows of one unit, said %v", n, err)
			}
		})
	}
}

// A key that was committed by a DDL: the redelivery is told that all is done.
func TestUnitOnceWithDDL(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	first := true
	unit := func(ctx context.Context, sess *livepool.Session) error {
		if _, err := sess.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS u (v INT)"); err != nil {
			return err
		}
		if first {
			first = false
			return errors.New("something passing")
		}
		return insert(1)(ctx, sess)
	}
	err1 := p.WithSession(t.Context(), unit, livepool.Once("k"))
	err2 := p.WithSession(t.Context(), unit, livepool.Once("k"))
	if n := count(t, s, "t"); err2 == nil && n == 0 {
		t.Errorf("nil with zero rows; first %v, second %v", err1, err2)
	}
}

// An inner unit whose own context ends after its function returned nil.
func TestUnitNestedContextEndsBeforeRelease(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	var innerErr error
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		ictx, cancel := context.WithCancel(ctx)
		innerErr = p.WithSession(ictx, func(ctx context.Context, in *livepool.Session) error {
			if err := insert(2)(ctx, in); err != nil {
				return err
			}
			cancel()
			return nil
		})
		return insert(1)(ctx, outer)
	})
	if n := count(t, s, "t WHERE v=2"); err == nil && innerErr != nil && n != 0 {
		t.Errorf("the inner unit said %v, and its row is committed", innerErr)
	}
}

// The savepoint is gone: the inner unit's error undoes nothing.
func TestUnitNestedUndoFails(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	var innerErr error
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		if _, err := outer.ExecContext(ctx, "SAVEPOINT mine"); err != nil {
			return err
		}
		innerErr = p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
			if _, err := in.ExecContext(ctx, "ROLLBACK TO mine"); err != nil { // takes livepool_1 away
				return err
			}
			if err := insert(2)(ctx, in); err != nil {
				return err
			}
			return errors.New("refused")
		})
		return insert(1)(ctx, outer)
	})
	if n := count(t, s, "t WHERE v=2"); err == nil && n != 0 {
		t.Errorf("outer %v, the inner unit said %v, and its row is committed", err, innerErr)
	}
}

// The first statement met a failing connect and was swallowed.
func TestUnitSwallowedConnectFailure(t *testing.T) {
	f := &fake{}
	var queries []string
	f.onConnect = func(_ context.Context, n int64) error {
		if n == 1 {
			return serverError(1040, "Too many connections")
		}
		return nil
	}
	f.onExec = func(_ context.Context, _ *fakeConn, q string) error { queries = append(queries, q); return nil }
	p := openFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		s.ExecContext(ctx, "A")
		s.ExecContext(ctx, "B")
		return nil
	})
	if err == nil && strings.Join(queries, "") == "B" {
		t.Errorf("half applied: %v ran, said %v", queries, err)
	}
}

// The pool is warm with connections to a server that was demoted; the address leads to a new primary.
func TestUnitDemotedBeforeTheUnit(t *testing.T) {
	t.Parallel()
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			old, _ := ledger(t, kind)
			fresh, _ := ledger(t, kind)
			via := front(t, old)
			p := open(t, old.AppDSN(via.Addr()), "")
			warmReal(t, p.DB, 2)
			if err := old.SetReadOnly(true); err != nil {
				t.Fatal(err)
			}
			via.SetUpstream(fresh.Addr())
			start := time.Now()
			err := p.WithSession(t.Context(), insert(1))
			t.Logf("after %s: %v", time.Since(start), err)
			if err != nil || count(t, fresh, "t") != 1 {
				t.Errorf("want success on the new primary: %v", err)
			}
		})
	}
}

type secret string

func (secret) String() string { return "***" }

type uuidLike [16]byte

func (u uuidLike) String() string { return fmt.Sprintf("%x-%x", u[:8], u[8:]) }

func TestUnitOncePerIDOfAStringer(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	job := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id secret) error { return insert(1)(ctx, s) }, livepool.OncePerID("mail"))
	for _, id := range []secret{"a", "b", "c"} {
		if err := job(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if n := count(t, s, "t"); n != 3 {
		t.Errorf("%d rows of three ids, and nil for each", n)
	}
	u := livepool.Job(p, func(ctx context.Context, s *livepool.Session, id uuidLike) error { return nil }, livepool.OncePerID("u"))
	if err := u(t.Context(), uuidLike{1}); err != nil {
		t.Error(err)
	}
	if n := count(t, s, "livepool_commits WHERE unit = 'u:01000000000000000000000000000000'"); n != 1 {
		t.Errorf("a UUID type with String has not the documented key of 32 hexadecimal digits")
	}
}

func TestUnitEmptyKey(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	e := errors.Join(p.WithSession(t.Context(), insert(1), livepool.Once("")), p.WithSession(t.Context(), insert(1), livepool.Once("")))
	if n := count(t, s, "t"); n != 1 && e == nil {
		t.Errorf("Once(\"\") twice: %d rows and no error", n)
	}
}

// A, inside it B (another pool), inside that A again.
func TestUnitTwoPoolsNested(t *testing.T) {
	s, a := ledger(t, server.MariaDB)
	b := open(t, s.DSN(), "")
	err := a.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
		if err := b.WithSession(ctx, func(ctx context.Context, bs *livepool.Session) error {
			return a.WithSession(ctx, insert(1))
		}); err != nil {
			return err
		}
		return errors.New("refused")
	})
	if n := count(t, s, "t"); n != 0 {
		t.Errorf("%d rows: the inner unit did not join its pool's outer one, which said %v", n, err)
	}
}

// NOWAIT on MariaDB: the function says no, for good.
func TestUnitNowaitIsRetried(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
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

// An error that has nothing to do with the database.
func TestUnitForeignErrorIsRetried(t *testing.T) {
	p := openFake(t, &fake{}, nil)
	tries := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		tries++
		servedBy(t, s)
		return fmt.Errorf("the job's payload: %w", io.EOF)
	}, livepool.MaxAttempts(4))
	if tries != 1 {
		t.Errorf("%d tries: %v", tries, err)
	}
}

// The first statement has a context of its own, which ends while it waits for a place ...
func TestUnitFirstStatementsContextPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := openFake(t, &fake{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
		c, _ := p.Conn(t.Context())
		start := time.Now()
		var took time.Duration
		p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := s.ExecContext(ctx, "DO 1")
			took = time.Since(start)
			return err
		})
		c.Close()
		if took > 2*time.Second {
			t.Errorf("a statement with a timeout of 1s took %s", took)
		}
	})
}

// A statement under context.WithoutCancel of the function's own context.
func TestUnitWithoutCancelOutlivesTheSession(t *testing.T) {
	_, p := ledger(t, server.MariaDB)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(context.WithoutCancel(ctx), "DO SLEEP(30)")
		return err
	})
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the session's context ended after 300ms, it returned after %s: %v", took, err)
	}
}

func TestUnitQueryRowAfterTheEnd(t *testing.T) {
	_, p := ledger(t, server.MariaDB)
	ctx, cancel := context.WithCancel(t.Context())
	p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		insert(1)(ctx, s)
		stmt, _ := s.PrepareContext(ctx, "SELECT 1")
		cancel()
		time.Sleep(100 * time.Millisecond)
		if err := s.QueryRowContext(ctx, "SELECT 1").Scan(new(int)); !errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("QueryRow under fn's context: %v, want ErrSessionDone", err)
		}
		if err := s.QueryRowContext(context.Background(), "SELECT 1").Scan(new(int)); !errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("QueryRow under another: %v, want ErrSessionDone", err)
		}
		if err := stmt.QueryRowContext(context.Background()).Scan(new(int)); !errors.Is(err, livepool.ErrSessionDone) {
			t.Logf("prepared: %v", err)
		}
		return nil
	})
}

func TestUnitPoolTimeoutBlamesItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := openFake(t, &fake{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		c, _ := p.Conn(t.Context())
		err := p.WithSession(t.Context(), insert(1), livepool.Name("me"))
		c.Close()
		if strings.Contains(err.Error(), "1 sessions in use") || strings.Contains(err.Error(), "me has held its connection longest") {
			t.Errorf("%v", err)
		}
	})
}

func TestUnitHooks(t *testing.T) {
	t.Run("a panicking hook takes the others with it", func(t *testing.T) {
		p := openFake(t, &fake{}, nil)
		second := false
		func() {
			defer func() { recover() }()
			p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				s.AfterCommit(func(context.Context) { panic("first") })
				s.AfterCommit(func(context.Context) { second = true })
				return nil
			})
		}()
		if !second {
			t.Error("the second hook of a committed unit did not run")
		}
	})
	t.Run("a hook of a hook", func(t *testing.T) {
		p := openFake(t, &fake{}, nil)
		second := false
		p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { s.AfterCommit(func(context.Context) { second = true }) })
			return nil
		})
		if !second {
			t.Error("the hook that a hook added never ran, silently")
		}
	})
}

// The outcome could be known: one insert of the key would tell.
func TestUnitOnceWithOneAttempt(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	if err := p.WithSession(t.Context(), insert(1), livepool.Once("k"), livepool.MaxAttempts(1)); errors.Is(err, livepool.ErrCommitUnknown) {
		t.Errorf("unknown, although it has a key: %v", err)
	}
}

// A semicolon in a literal costs a connection.
func TestUnitSemicolonInALiteral(t *testing.T) {
	f := &fake{}
	p := openFake(t, f, nil)
	for _, q := range []string{"INSERT INTO t VALUES ('a;b')", "SELECT 1; -- done", "SELECT 1 /* a; b */"} {
		before := f.connects.Load()
		for range 5 {
			p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, q)
				return err
			})
		}
		if n := f.connects.Load() - before; n > 1 {
			t.Errorf("%s: five units, %d connections", q, n)
		}
	}
}

// A goroutine of an inner unit writes after the inner unit was undone.
func TestUnitLateGoroutineOfAnInnerUnit(t *testing.T) {
	f := &fake{}
	var mu sync.Mutex
	var log []string
	f.onExec = func(_ context.Context, _ *fakeConn, q string) error {
		mu.Lock()
		log = append(log, q)
		mu.Unlock()
		return nil
	}
	p := openFake(t, f, nil)
	bad := 0
	for range 2000 {
		log = nil
		p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			done := make(chan struct{})
			p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
				go func() { in.ExecContext(ctx, "INSERT"); close(done) }()
				runtime.Gosched()
				return errors.New("refused")
			})
			<-done
			return nil
		})
		undone := false
		for _, q := range log {
			if strings.HasPrefix(q, "ROLLBACK TO") {
				undone = true
			} else if q == "INSERT" && undone {
				bad++
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d times of 2000 a write of an undone inner unit was sent after its undoing, and committed with the outer one", bad)
	}
}

// The caller's context ends while a goroutine of the unit is in a statement (run with -race).
func TestUnitRaceOnTheAttempt(t *testing.T) {
	f := &fake{onExec: func(_ context.Context, _ *fakeConn, q string) error {
		if strings.HasPrefix(q, "CREATE") {
			time.Sleep(2 * time.Millisecond)
			return serverError(1213, "Deadlock found")
		}
		return nil
	}}
	p := openFake(t, f, nil)
	var wg sync.WaitGroup
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			s.ExecContext(ctx, "DO 1")
			started := make(chan struct{})
			wg.Go(func() { close(started); s.ExecContext(ctx, "CREATE TABLE x (a INT)") })
			<-started
			time.Sleep(500 * time.Microsecond)
			cancel()
			time.Sleep(500 * time.Microsecond)
			return errors.New("no")
		})
		wg.Wait()
	}
}

// A unit with an isolation level, a nested one with its own.
func TestUnitSetPasswordCommits(t *testing.T) {
	s, p := ledger(t, server.MySQL)
	if err := s.Exec("CREATE USER someone"); err != nil {
		t.Fatal(err)
	}
	tries := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		tries++
		if err := insert(1)(ctx, sess); err != nil {
			return err
		}
		if tries == 1 {
			if _, err := sess.ExecContext(ctx, "SET PASSWORD FOR someone = 'abc'"); err != nil {
				return err
			}
			s.KillConnections()
		}
		_, err := sess.ExecContext(ctx, "DO 1")
		return err
	})
	if n := count(t, s, "t"); n > 1 {
		t.Errorf("%d rows, said %v", n, err)
	}
}

// An inner unit's own context ends during its statement: the driver closes the connection.
func TestUnitInnerTimeoutThenOuterGoesOn(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		if err := insert(1)(ctx, outer); err != nil {
			return err
		}
		ictx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		p.WithSession(ictx, func(ctx context.Context, in *livepool.Session) error {
			_, err := in.ExecContext(ctx, "DO SLEEP(3)")
			return err
		})
		insert(2)(ctx, outer)
		return nil
	})
	if n := count(t, s, "t"); err == nil || n != 0 {
		t.Errorf("%d rows, %v", n, err)
	}
}

// A library with the usual deferred Rollback.
func TestUnitLibraryRollsBack(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		tx, err := sess.Tx(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		_, err = tx.Exec("INSERT INTO t (v) VALUES (1)")
		return err
	})
	if n := count(t, s, "t"); err == nil || n != 0 {
		t.Errorf("%d rows, %v", n, err)
	}
	t.Log(err)
}

// Goexit and panic while a place is waited for; the ctx ends in the queue: all places come back.
func TestUnitPlacesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := openFake(t, &fake{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 2, 0, time.Second })
		for i := range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7+1)*250*time.Millisecond)
			go func() {
				defer cancel()
				defer func() { recover() }()
				p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
					s.ExecContext(ctx, "DO 1")
					time.Sleep(time.Duration(i%5) * 250 * time.Millisecond)
					if i%3 == 0 {
						panic(1)
					}
					return nil
				})
			}()
			if i%4 == 0 {
				time.Sleep(250 * time.Millisecond)
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := p.DB.Stats().InUse; n != 0 {
			t.Errorf("%d in use", n)
		}
		for range 2 { // both places
			go p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if _, err := s.ExecContext(ctx, "DO 1"); err != nil {
					t.Error(err)
				}
				time.Sleep(100 * time.Millisecond)
				return nil
			})
		}
		time.Sleep(time.Second)
	})
}

// Ghost of a lost key insert, the ctx ends in COMMIT under Once, and so on.
func TestUnitOnceContextEndsInCommit(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "pool_commit_timeout=300ms")
	ctx, cancel := context.WithCancel(t.Context())
	cut := via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.Stall)
	go func() { <-cut.Done(); cancel() }()
	err := p.WithSession(ctx, insert(1), livepool.Once("k"))
	if !errors.Is(err, livepool.ErrCommitUnknown) {
		t.Errorf("%d rows, %v", count(t, s, "t"), err)
	}
}

// The key insert is cut in every way; the pool has one connection.
func TestUnitKeyInsertLost(t *testing.T) {
	for name, how := range map[string]proxy.Fault{"FIN": proxy.FIN, "RST": proxy.RST, "server side": proxy.KillServerSide} {
		for _, after := range []bool{false, true} {
			s, _ := ledger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
			via := front(t, s)
			p := open(t, s.DSNVia(via.Addr()), "pool_size=1&pool_max_overflow=0&readTimeout=1s")
			m := proxy.QueryPrefix("INSERT INTO livepool_commits")
			if after {
				via.CutAfter(m, how)
			} else {
				via.CutBefore(m, how)
			}
			var hooks atomic.Int32
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				s.AfterCommit(func(context.Context) { hooks.Add(1) })
				return insert(1)(ctx, s)
			}, livepool.Once("k"))
			if n := count(t, s, "t"); err != nil || n != 1 || hooks.Load() != 1 {
				t.Errorf("%s, after %v: %d rows, %d hooks, %v", name, after, n, hooks.Load(), err)
			}
		}
	}
}

// A pool's own statement, in fn, in the middle of a unit that is Once, whose answer is lost.
func TestUnitPoolStatementInsideTheUnit(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
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

// Statements after the end of the caller's context.
func TestUnitStatementAfterTheEnd(t *testing.T) {
	p := openFake(t, &fake{}, nil)
	sent := 0
	for range 2000 {
		ctx, cancel := context.WithCancel(t.Context())
		p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			s.ExecContext(ctx, "DO 1")
			cancel()
			if _, err := s.ExecContext(context.Background(), "INSERT"); err == nil {
				sent++
			}
			return nil
		})
	}
	if sent > 0 {
		t.Errorf("%d of 2000 statements after the end of the context ran, and said nil", sent)
	}
}

// Statements under contexts of their own.
func TestUnitForeignContextsPileUp(t *testing.T) {
	p := openFake(t, &fake{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	p.WithSession(ctx, func(_ context.Context, s *livepool.Session) error {
		s.ExecContext(context.Background(), "DO 1")
		before := heap()
		for range 50000 {
			s.ExecContext(context.Background(), "DO 1")
		}
		if grown := int64(heap()) - int64(before); grown > 5<<20 {
			t.Errorf("50000 statements hold %d kB", grown>>10)
		}
		return nil
	})
}

// Two sessions begin at the same time where a plain user leaves one connection.
func TestUnitPoolTimeoutRace(t *testing.T) {
	late := 0
	for range 500 {
		synctest.Test(t, func(t *testing.T) {
			p := openFake(t, &fake{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 2, 0, 10*time.Second })
			c, _ := p.Conn(t.Context())
			var wg sync.WaitGroup
			start := time.Now()
			for range 2 {
				wg.Go(func() {
					var took time.Duration
					err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						_, err := s.ExecContext(ctx, "DO 1")
						took = time.Since(start)
						time.Sleep(60 * time.Second)
						return err
					})
					if took > 11*time.Second {
						late++
						_ = err
					}
				})
			}
			wg.Wait()
			c.Close()
		})
		if late > 0 {
			break
		}
	}
	if late > 0 {
		t.Error("a session waited longer than PoolTimeout")
	}
}

// The lock wait timeout of an inner unit, passed on by the outer one: the outer one is run again.
func TestALockWaitOfAnInnerUnitRunsTheOuterOneAgain(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.l (id INT PRIMARY KEY, n INT); INSERT INTO test.l VALUES (1, 0)"); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.AppDSN(s.Addr()), "")
		held, err := p.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Rollback()
		if _, err := held.Exec("UPDATE l SET n = n + 1"); err != nil {
			t.Fatal(err)
		}
		attempts := 0
		err = p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
			if attempts++; attempts == 2 {
				held.Rollback()
			}
			return p.WithSession(ctx, func(ctx context.Context, u *livepool.Session) error {
				_, err := u.ExecContext(ctx, "UPDATE l SET n = n + 10")
				return err
			})
		})
		if err != nil || attempts != 2 {
			t.Errorf("said %v after %d attempts", err, attempts)
		}
	}, "--innodb-lock-wait-timeout=1")
}

// A unit whose context ends before its first statement, and which swallows that.
func TestAUnitWhoseContextEndedIsNotApplied(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	if err := s.Exec("CREATE TABLE test.l (id INT)"); err != nil {
		t.Fatal(err)
	}
	p := open(t, s.AppDSN(s.Addr()), "")
	ctx, cancel := context.WithCancel(t.Context())
	hooked := false
	err := p.WithSession(ctx, func(ctx context.Context, u *livepool.Session) error {
		u.AfterCommit(func(context.Context) { hooked = true })
		cancel()
		u.ExecContext(ctx, "INSERT INTO l VALUES (1)")
		return nil
	})
	if !errors.Is(err, livepool.ErrSessionDone) || hooked {
		t.Errorf("said %v, AfterCommit ran: %v", err, hooked)
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

// MariaDB answers NOWAIT with a lock wait timeout, which, if the server is set so,
// ends the transaction: what follows must not be committed by itself.
func TestNowaitThatEndsTheTransactionIsNotHalfApplied(t *testing.T) {
	s, p := ledger(t, server.MariaDB, "--innodb-rollback-on-timeout=ON")
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
		if err := insert(1)(ctx, s); err != nil {
			return err
		}
		nowait = s.QueryRowContext(ctx, "SELECT balance FROM account WHERE id = 9 FOR UPDATE NOWAIT").Scan(new(int))
		return insert(2)(ctx, s)
	})
	t.Logf("nowait %v; unit %v; rows %d", nowait, err, count(t, s, "t"))
	if n := count(t, s, "t"); err == nil && n != 2 {
		t.Errorf("nil, and %d rows of 2", n)
	}
}

// An inner unit whose failure is swallowed does not make that of another forgotten,
// which is passed on.
func TestFailureOfAnInnerUnitIsRememberedPastAnother(t *testing.T) {
	for _, second := range []bool{false, true} {
		f := &fake{}
		f.onExec = func(_ context.Context, c *fakeConn, q string) error {
			switch q {
			case "INSERT A":
				return serverError(1205, "Lock wait timeout exceeded")
			case "INSERT B":
				return serverError(3024, "Query execution was interrupted, maximum statement execution time exceeded")
			}
			return nil
		}
		p := openFake(t, f, nil)
		n := 0
		p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
			n++
			inner := func(q string) error {
				return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, q)
					return err
				})
			}
			err := inner("INSERT A")
			if second {
				inner("INSERT B")
			}
			return err
		}, livepool.MaxAttempts(3))
		if n != 3 {
			t.Errorf("second %v: %d attempts, want 3", second, n)
		}
	}
}

// A connection lost while an inner unit is undone is a connection lost.
func TestConnectionLostWhileAnInnerUnitIsUndone(t *testing.T) {
	for _, bad := range []error{serverError(1205, "Lock wait timeout exceeded"), serverError(3024, "Query execution was interrupted, maximum statement execution time exceeded")} {
		f := &fake{}
		f.onExec = func(_ context.Context, c *fakeConn, q string) error {
			switch {
			case q == "INSERT B" && c.id == 1:
				return bad
			case strings.HasPrefix(q, "ROLLBACK TO") && c.id == 1:
				c.valid.Store(false)
				return errGone
			}
			return nil
		}
		p := openFake(t, f, nil)
		err := p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
			p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, "INSERT B")
				return err
			})
			return nil
		})
		if err != nil {
			t.Errorf("%v: a connection lost before COMMIT was not retried: %v", bad, err)
		}
	}
}

// MaxElapsed may end the wait for a server of which nothing is known yet.
func TestMaxElapsedDuringTheFirstConnect(t *testing.T) {
	f := &fake{onConnect: func(ctx context.Context, n int64) error { <-ctx.Done(); return ctx.Err() }}
	p := openFake(t, f, func(c *livepool.Config) { c.MaxElapsed = 200 * time.Millisecond })
	err := p.WithSession(context.Background(), work)
	if err == nil {
		t.Fatal("nil")
	}
	defer func() {
		if r := recover(); r != nil {
			t.Fatalf("err.Error() of %T panics: %v", err, r)
		}
	}()
	t.Log(err.Error())
}

// The answer is lost on the way and the server, having been idle after it for
// wait_timeout, says 4031, which is what the client then reads in its place.
func TestIdleCloseInPlaceOfALostAnswer(t *testing.T) {
	s, _ := ledger(t, server.MySQL)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "wait_timeout=1&pool_keepalive=0&pool_stall_after=0")
	lose := func() { // what the server says next
		via.DropToClient(true)
		time.AfterFunc(300*time.Millisecond, func() { via.DropToClient(false) })
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
			if err := insert(1)(ctx, s); err != nil {
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

// What bun writes, with the values in the text: without multiStatements the
// server takes it for one statement, whatever is in it.
func TestUnitTextWithSemicolonsInAKeyedUnit(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	if err := s.Exec("CREATE TABLE test.doc (v TEXT)"); err != nil {
		t.Fatal(err)
	}
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		for _, v := range []string{`{"a": "line\\nof; text"}`, `<style>a{b:c;}</style> /*! c */`} {
			if _, err := s.ExecContext(ctx, "INSERT INTO doc VALUES ('"+v+"')"); err != nil {
				return err
			}
		}
		return nil
	}, livepool.VerifyCommit())
	if n := count(t, s, "doc"); err != nil || n != 2 {
		t.Errorf("%d rows: %v", n, err)
	}
	several := open(t, s.DSN(), "multiStatements=true")
	err = several.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "INSERT INTO doc VALUES ('3'); COMMIT")
		return err
	}, livepool.VerifyCommit())
	if n := count(t, s, "doc"); err == nil || n != 2 {
		t.Errorf("several statements, where the server takes them: %d rows, %v", n, err)
	}
}
