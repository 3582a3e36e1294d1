package connector_test

// Errors of statements that the function of a unit has not passed on.

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// What the function returns is its error, whatever it is, and nothing is applied.
func TestReturnedErrorOfAStatementIsAsItWas(t *testing.T) {
	for _, number := range []uint16{1062, 1114, 1021, 1197, 1030, 1226} {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		told := fakedb.ServerError(number, "said")
		f.OnExec = func(context.Context, *fakedb.Conn, string) error { return told }
		runs := 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error { runs++; return labtest.Work(ctx, s) })
		if err != told || runs != 1 {
			t.Errorf("%d: got %v after %d runs, want its own error after one", number, err, runs)
		}
	}
}

// The user's own word on an error stands, as long as the transaction does.
func TestClassifySaysWhatMayBeSwallowed(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.Classify = func(err error) (livepool.Class, bool) {
			switch {
			case labtest.IsServerError(err, 1114):
				return 0, true
			case labtest.IsServerError(err, 1062):
				return livepool.StatementUndone, true
			}
			return 0, false
		}
	})
	for number, poisons := range map[uint16]bool{1114: false, 1062: true} {
		f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if query == "fails" {
				return fakedb.ServerError(number, "said")
			}
			return nil
		}
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.ExecContext(ctx, "fails")
			return labtest.Work(ctx, s)
		})
		if errors.Is(err, livepool.ErrPoisoned) != poisons {
			t.Errorf("%d: %v", number, err)
		}
	}
}

// A context that ends between database/sql and the driver.
func TestSwallowedContextThatEndsBeforeTheWrite(t *testing.T) {
	var cancel context.CancelFunc
	f := &fakedb.DB{OnExec: func(ctx context.Context, _ *fakedb.Conn, query string) error {
		if query == "INSERT" {
			cancel()
		}
		return ctx.Err()
	}}
	p := labtest.OpenFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		tx, err := s.Tx(ctx) // where the session itself does not look
		if err != nil {
			return err
		}
		var own context.Context
		own, cancel = context.WithCancel(ctx)
		tx.ExecContext(own, "INSERT")
		return nil
	})
	if !errors.Is(err, livepool.ErrPoisoned) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The context of an inner unit ends while its savepoint is set, by which nothing of
// the outer one is missing.
func TestSavepointOfAnInnerUnitIsSentUnderTheOuterContext(t *testing.T) {
	var cancel context.CancelFunc
	f := &fakedb.DB{OnExec: func(ctx context.Context, _ *fakedb.Conn, query string) error {
		if strings.HasPrefix(query, "SAVEPOINT") {
			cancel()
			select {
			case <-ctx.Done(): // it is the inner one's
			case <-time.After(100 * time.Millisecond):
			}
		}
		return ctx.Err()
	}}
	p := labtest.OpenFake(t, f, nil)
	var inner error
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if err := labtest.Work(ctx, s); err != nil {
			return err
		}
		ctx, cancel = context.WithCancel(ctx)
		inner = p.WithSession(ctx, labtest.Work)
		return nil
	})
	if err != nil || !errors.Is(inner, context.Canceled) {
		t.Errorf("%v; the inner one %v", err, inner)
	}
}
