package behaviour_test

// Units of work inside units of work.

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Units inside units: an inner error undoes the inner part only, and a full
// pool of nested units does not lock itself up.
func TestNestedUnits(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	refused := errors.New("refused")
	var hooks []string
	hook := func(name string) func(context.Context) { return func(context.Context) { hooks = append(hooks, name) } }
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		if in, ok := livepool.FromContext(ctx); !ok || in != outer {
			t.Error("the context does not carry the session")
		}
		outer.AfterCommit(hook("outer"))
		if err := labtest.Insert(1)(ctx, outer); err != nil {
			return err
		}
		if err := p.WithSession(ctx, func(ctx context.Context, inner *livepool.Session) error {
			inner.AfterCommit(hook("inner, undone"))
			if err := labtest.Insert(2)(ctx, inner); err != nil {
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
			return p.WithSession(ctx, labtest.Insert(3))
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
				labtest.Insert(4)(ctx, inner)
				panic("inner")
			})
		}()
		if err := p.WithSession(ctx, func(ctx context.Context, own *livepool.Session) error {
			return labtest.Insert(5)(ctx, own)
		}, livepool.RequiresNew()); err != nil {
			return err
		}
		if n := count(t, s, "t WHERE v = 5"); n != 1 {
			t.Errorf("RequiresNew: %d rows before the outer commit, want 1", n)
		}
		if err := p.WithSession(ctx, labtest.Insert(6), livepool.ReadOnly()); err == nil {
			t.Error("an inner unit cannot make the transaction read-only")
		}
		return labtest.Insert(7)(ctx, outer)
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
				if err := labtest.Insert(8)(ctx, s); err != nil {
					return err
				}
				return small.WithSession(ctx, labtest.Insert(9))
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A, inside it B (another pool), inside that A again.
func TestUnitTwoPoolsNested(t *testing.T) {
	s, a := openLedger(t, server.MariaDB)
	b := open(t, s.DSN(), "")
	err := a.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
		if err := b.WithSession(ctx, func(ctx context.Context, bs *livepool.Session) error {
			return a.WithSession(ctx, labtest.Insert(1))
		}); err != nil {
			return err
		}
		return errors.New("refused")
	})
	if n := count(t, s, "t"); n != 0 {
		t.Errorf("%d rows: the inner unit did not join its pool's outer one, which said %v", n, err)
	}
}

// An inner unit whose own context ends after its function returned nil.
func TestUnitNestedContextEndsBeforeRelease(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	var innerErr error
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		ictx, cancel := context.WithCancel(ctx)
		innerErr = p.WithSession(ictx, func(ctx context.Context, in *livepool.Session) error {
			if err := labtest.Insert(2)(ctx, in); err != nil {
				return err
			}
			cancel()
			return nil
		})
		return labtest.Insert(1)(ctx, outer)
	})
	if n := count(t, s, "t WHERE v=2"); err == nil && innerErr != nil && n != 0 {
		t.Errorf("the inner unit said %v, and its row is committed", innerErr)
	}
}

// The savepoint is gone: the inner unit's error undoes nothing.
func TestUnitNestedUndoFails(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	var innerErr error
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		if _, err := outer.ExecContext(ctx, "SAVEPOINT mine"); err != nil {
			return err
		}
		innerErr = p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
			if _, err := in.ExecContext(ctx, "ROLLBACK TO mine"); err != nil { // takes livepool_1 away
				return err
			}
			if err := labtest.Insert(2)(ctx, in); err != nil {
				return err
			}
			if _, err := in.ExecContext(ctx, "SAVEPOINT later"); err != nil {
				return err
			}
			return errors.New("refused")
		})
		// This undoes nothing of the inner unit, and the transaction goes on after it.
		if _, err := outer.ExecContext(ctx, "ROLLBACK TO later"); err != nil {
			return err
		}
		return labtest.Insert(1)(ctx, outer)
	})
	if n := count(t, s, "t"); err == nil || n != 0 || innerErr == nil {
		t.Errorf("outer %v, the inner unit said %v, %d rows are committed", err, innerErr, n)
	}
}

// An inner unit's own context ends during its statement: the driver closes the connection.
func TestUnitInnerTimeoutThenOuterGoesOn(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		if err := labtest.Insert(1)(ctx, outer); err != nil {
			return err
		}
		ictx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		p.WithSession(ictx, func(ctx context.Context, in *livepool.Session) error {
			_, err := in.ExecContext(ctx, "DO SLEEP(3)")
			return err
		})
		labtest.Insert(2)(ctx, outer)
		return nil
	})
	if n := count(t, s, "t"); err == nil || n != 0 {
		t.Errorf("%d rows, %v", n, err)
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

// A statement that commits would commit the key of a unit inside, and half of it.
func TestInnerOnceRefusesWhatCommits(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	first := true
	unit := func(ctx context.Context, sess *livepool.Session) error {
		return p.WithSession(ctx, func(ctx context.Context, sess *livepool.Session) error {
			if err := labtest.Insert(1)(ctx, sess); err != nil {
				return err
			}
			if _, err := sess.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS u (v INT)"); err != nil {
				return err
			}
			if first {
				first = false
				return errors.New("something passing")
			}
			return labtest.Insert(2)(ctx, sess)
		}, livepool.Once("k"))
	}
	err1 := p.WithSession(t.Context(), unit)
	err2 := p.WithSession(t.Context(), unit)
	if n := count(t, s, "t"); err2 == nil && n != 2 {
		t.Errorf("nil with %d rows of 2; first %v, second %v", n, err1, err2)
	}
}

// A goroutine of the function is in the middle of a unit inside when it returns.
func TestUnitThatReturnsBeforeAnotherInsideItCommitsNothing(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	half, over := make(chan struct{}), make(chan struct{})
	var innerErr error
	ended := make(chan struct{})
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		go func() {
			defer close(ended)
			innerErr = p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
				if err := labtest.Insert(1)(ctx, in); err != nil {
					return err
				}
				close(half)
				<-over
				return labtest.Insert(2)(ctx, in)
			})
		}()
		<-half
		return nil
	})
	close(over)
	<-ended
	if n := count(t, s, "t"); n == 1 {
		t.Errorf("half of the inner unit is committed; outer said %v, inner said %v", err, innerErr)
	}
}

// What a statement has committed takes the key of a unit that follows it along at
// once, and without its work.
func TestInnerOnceAfterAnImplicitCommitIsRefused(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.DSN(), "")
		if err := p.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		passing := errors.New("something passing")
		first := true
		unit := func(ctx context.Context, outer *livepool.Session) error {
			if _, err := outer.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS u (v INT)"); err != nil {
				return err
			}
			return p.WithSession(ctx, func(ctx context.Context, inner *livepool.Session) error {
				if err := labtest.Insert(1)(ctx, inner); err != nil {
					return err
				}
				if first {
					first = false
					return passing
				}
				return labtest.Insert(2)(ctx, inner)
			}, livepool.Once("k"))
		}
		err1 := p.WithSession(t.Context(), unit)
		err2 := p.WithSession(t.Context(), unit)
		if n := count(t, s, "t"); n != 0 || err1 == nil || err2 == nil || errors.Is(err1, passing) || !strings.Contains(err1.Error(), "CREATE TABLE") {
			t.Errorf("%d rows; first %v, second %v", n, err1, err2)
		}
	})
}

// A key that the unit around it holds is not committed: neither is the work done,
// nor will it be, and another connection would wait for it.
func TestInnerOnceWithTheKeyOfTheUnitAroundIt(t *testing.T) {
	_, p := openLedger(t, server.MariaDB)
	inner := func(opts ...livepool.SessionOption) labtest.UnitFunc {
		return func(ctx context.Context, _ *livepool.Session) error {
			return p.WithSession(ctx, labtest.Insert(1), append(opts, livepool.Once("k"))...)
		}
	}
	for name, unit := range map[string]func() error{
		"inside":      func() error { return p.WithSession(t.Context(), inner(), livepool.Once("k")) },
		"RequiresNew": func() error { return p.WithSession(t.Context(), inner(livepool.RequiresNew()), livepool.Once("k")) },
		"two levels above": func() error {
			return p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error { return p.WithSession(ctx, inner()) }, livepool.Once("k"))
		},
		"past a RequiresNew": func() error {
			return p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
				return p.WithSession(ctx, inner(), livepool.RequiresNew())
			}, livepool.Once("k"))
		},
	} {
		if err := unit(); err == nil || !strings.Contains(err.Error(), "holds this key") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		for range 2 { // one after the other, the second is a redelivery
			if err := inner()(ctx, s); err != nil {
				return err
			}
		}
		return nil
	}, livepool.Once("another")); err != nil {
		t.Error(err)
	}
}

// Once a unit inside with a key has ended, the one around it may do what it could
// do before: the key has its work with it.
func TestImplicitCommitAfterAnInnerOnce(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		if err := p.WithSession(ctx, labtest.Insert(1), livepool.Once("k")); err != nil {
			return err
		}
		_, err := outer.ExecContext(ctx, "CREATE TABLE u (v INT)")
		return err
	})
	if n := count(t, s, "t"); err != nil || n != 1 {
		t.Errorf("%d rows: %v", n, err)
	}
}

// As half of a unit inside another one, so half of one inside that. The outermost
// handles the error of the middle one, with which both are undone, and goes on.
func TestInnerUnitThatReturnsBeforeAnotherInsideIt(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	half, over := make(chan struct{}), make(chan struct{})
	ended := make(chan struct{})
	var middleErr, innerErr error
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		middleErr = p.WithSession(ctx, func(ctx context.Context, middle *livepool.Session) error {
			go func() {
				defer close(ended)
				innerErr = p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
					if err := labtest.Insert(1)(ctx, in); err != nil {
						return err
					}
					close(half)
					<-over
					return labtest.Insert(2)(ctx, in)
				})
			}()
			<-half
			return nil
		})
		close(over)
		<-ended
		return nil
	})
	if n := count(t, s, "t"); n != 0 || err != nil || middleErr == nil || innerErr == nil {
		t.Errorf("%d rows; outer said %v, the middle one %v, the inner one %v", n, err, middleErr, innerErr)
	}
}
