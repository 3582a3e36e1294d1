package livepool_test

// Errors of statements that the function of a unit swallows, by their number and
// by the kind of statement. Whatever is swallowed, no half of a unit is committed
// that a correct program would not have meant.

import (
	"context"
	"errors"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// What the function returns is its error, whatever it is, and nothing is applied.
func TestReturnedErrorOfAStatementIsAsItWas(t *testing.T) {
	for _, number := range []uint16{1062, 1114, 1021, 1197, 1030, 1226} {
		f := &fakedb.DB{}
		p := openFake(t, f, nil)
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
	p := openFake(t, f, func(c *livepool.Config) {
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
