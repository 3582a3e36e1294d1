package behaviour_test

// Commits inside a unit of work that are not its own.

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

func TestSessionRefusesToHaveItsTransactionEnded(t *testing.T) {
	_, p := openLedger(t, server.MariaDB)
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
	s, p := openLedger(t, server.MariaDB)
	attempts := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		attempts++
		if err := labtest.Insert(1)(ctx, sess); err != nil {
			return err
		}
		if _, err := sess.ExecContext(ctx, "CREATE TABLE u (v INT)"); err != nil {
			return err
		}
		if err := s.KillConnections(); err != nil {
			t.Error(err)
		}
		return labtest.Insert(2)(ctx, sess)
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
			s, _ := openLedger(t, server.MariaDB)
			if err := s.Exec("CREATE PROCEDURE test.put() BEGIN INSERT INTO test.t (v) VALUES (1); COMMIT; END"); err != nil {
				t.Fatal(err)
			}
			p := open(t, s.DSN(), "multiStatements=true")
			tries := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
				tries++
				if name != "CALL" && name != "multi" {
					if err := labtest.Insert(1)(ctx, sess); err != nil {
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
	s, p := openLedger(t, server.MySQL)
	if err := s.Exec("CREATE USER someone"); err != nil {
		t.Fatal(err)
	}
	tries := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		tries++
		if err := labtest.Insert(1)(ctx, sess); err != nil {
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

// A library that got the *sql.Tx commits it itself, loses the reply, and reports it in its own words.
func TestUnitTxCommitLostAppliedTwice(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
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
	s, p := openLedger(t, server.MariaDB)
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
	s, p := openLedger(t, server.MariaDB)
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
