package behaviour_test

// What becomes of a unit inside another one, and of what it has prepared, when a
// unit around it ends first.

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
)

// Three levels: the middle unit returns while the innermost runs, and is undone. The
// innermost is undone with it, as a whole, and the outer one goes on without both.
func TestInnermostUnitEndsWithTheMiddleOne(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	half, undone, second, committed := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	ended := make(chan struct{})
	var middleErr, innerErr, secondErr error
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		middleErr = p.WithSession(ctx, func(ctx context.Context, middle *livepool.Session) error {
			go func() {
				defer close(ended)
				innerErr = p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
					if err := labtest.Insert(1)(ctx, in); err != nil {
						return err
					}
					close(half)
					<-undone
					secondErr = labtest.Insert(2)(ctx, in)
					close(second)
					<-committed
					return secondErr
				})
			}()
			<-half
			return nil
		})
		close(undone)
		<-second
		return labtest.Insert(3)(ctx, outer) // the middle one's error is handled
	})
	n, whole := count(t, s, "t"), count(t, s, "t WHERE v = 3")
	close(committed)
	<-ended
	if err != nil || n != 1 || whole != 1 || middleErr == nil || innerErr == nil || !errors.Is(secondErr, livepool.ErrSessionDone) {
		t.Errorf("%d rows, of the outer unit %d, want 1 and 1; outer said %v, the middle one %v, the inner one %v, its second statement %v", n, whole, err, middleErr, innerErr, secondErr)
	}
}

// A statement prepared by a unit inside is that unit's: a goroutine that has
// outlived it adds nothing to the outer one.
func TestPreparedStatementOfAnInnerUnitEndsWithIt(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	refused := errors.New("refused")
	var during, late, whileOuter error
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		goOn, done := make(chan struct{}), make(chan struct{})
		inner := p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
			stmt, err := in.PrepareContext(ctx, "INSERT INTO t (v) VALUES (2)")
			if err != nil {
				return err
			}
			_, during = stmt.ExecContext(ctx)
			go func() {
				defer close(done)
				<-goOn
				_, late = stmt.ExecContext(ctx)
			}()
			return refused
		})
		close(goOn)
		<-done
		if !errors.Is(inner, refused) {
			return inner
		}
		stmt, err := outer.PrepareContext(ctx, "INSERT INTO t (v) VALUES (3)")
		if err != nil {
			return err
		}
		return p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
			_, whileOuter = stmt.ExecContext(ctx)
			return whileOuter
		})
	})
	if n := count(t, s, "t WHERE v = 2"); n != 0 || err != nil || during != nil || !errors.Is(late, livepool.ErrSessionDone) {
		t.Errorf("%d rows of an inner unit that was undone; outer %v; during %v; late %v", n, err, during, late)
	}
	if n := count(t, s, "t WHERE v = 3"); n != 1 || whileOuter != nil {
		t.Errorf("the outer unit's own statement: %v, %d rows", whileOuter, n)
	}
}

// The key of a unit inside that has ended is in the outer transaction: one of a
// transaction of its own would wait for it as long as it is waited for.
func TestOnceOfAnotherTransactionWithTheKeyOfAnInnerUnitThatHasEnded(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	once := livepool.Once("k")
	again := func(ctx context.Context) error {
		return p.WithSession(ctx, labtest.Insert(2), livepool.RequiresNew(), once)
	}
	nested := func(ctx context.Context, _ *livepool.Session) error {
		return p.WithSession(ctx, labtest.Insert(1), once)
	}
	for name, unit := range map[string]labtest.UnitFunc{
		"after it": func(ctx context.Context, outer *livepool.Session) error {
			return errors.Join(nested(ctx, outer), again(ctx))
		},
		"after one two levels below": func(ctx context.Context, _ *livepool.Session) error {
			return errors.Join(p.WithSession(ctx, nested), again(ctx))
		},
		"inside a unit after it": func(ctx context.Context, outer *livepool.Session) error {
			return errors.Join(nested(ctx, outer), p.WithSession(ctx, func(ctx context.Context, _ *livepool.Session) error { return again(ctx) }))
		},
		"inside a RequiresNew after it": func(ctx context.Context, outer *livepool.Session) error {
			return errors.Join(nested(ctx, outer), p.WithSession(ctx, nested, livepool.RequiresNew()))
		},
	} {
		if err := p.WithSession(t.Context(), unit); err == nil || !strings.Contains(err.Error(), "holds this key") {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
		p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			return errors.Join(nested(ctx, s), errors.New("refused"))
		})
		return again(ctx) // the key has been undone
	})
	if one, two := count(t, s, "t WHERE v = 1"), count(t, s, "t WHERE v = 2"); err != nil || one != 0 || two != 1 {
		t.Errorf("after one that was undone: %v, %d and %d rows, want 0 and 1", err, one, two)
	}
}
