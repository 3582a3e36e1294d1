package livepool_test

// Commits inside a unit of work that are not its own.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

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

// SET PASSWORD commits what was open: a unit lost after it is not run again.
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

// The Commit of somebody else, begun before the unit's own, waits for a statement.
func TestCommitOfSomebodyElseDuringTheUnits(t *testing.T) {
	f := &fake{}
	var mu sync.Mutex
	commits := 0
	running, goOn := make(chan struct{}), make(chan struct{})
	f.onExec = func(_ context.Context, c *fakeConn, q string) error {
		if q == "DO SLEEP(1)" {
			close(running)
			<-goOn
		}
		return nil
	}
	f.onCommit = func(c *fakeConn) error { mu.Lock(); commits++; mu.Unlock(); return nil }
	p := openFake(t, f, nil)
	var wg sync.WaitGroup
	var uerr error
	err := p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		tx, err := s.Tx(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT"); err != nil {
			return err
		}
		wg.Go(func() { tx.ExecContext(context.Background(), "DO SLEEP(1)") })
		<-running
		wg.Go(func() { uerr = tx.Commit() })
		time.Sleep(100 * time.Millisecond) // Commit is begun and waits for SLOW
		return nil
	})
	close(goOn)
	wg.Wait()
	if err != nil && commits != 0 {
		t.Errorf("committed, and the unit said %v (the other Commit: %v)", err, uerr)
	}
}

// ErrSessionDone says that nothing was committed.
func TestUnknownOutcomeIsNotSessionDone(t *testing.T) {
	f := &fake{}
	ctx, cancel := context.WithCancel(t.Context())
	f.onCommit = func(c *fakeConn) error { cancel(); c.valid.Store(false); return errGone }
	p := openFake(t, f, nil)
	err := p.WithSession(ctx, work, livepool.Once("k"))
	if !errors.Is(err, livepool.ErrCommitUnknown) {
		t.Fatal(err)
	}
	if errors.Is(err, livepool.ErrSessionDone) || strings.Contains(err.Error(), "nothing of it is committed") {
		t.Errorf("unknown, and at the same time not applied: %v", err)
	}
}
