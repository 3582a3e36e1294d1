package connector_test

// Statements that are the cause of their connection's end.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A statement that ends the connection each time is sent twice. Losses at other
// statements in between are accidents.
func TestStatementThatEndsItsConnectionIsNotSentAThirdTime(t *testing.T) {
	for name, tt := range map[string]struct {
		fatal func(attempt int) string
		runs  int
	}{
		"always the same": {func(int) string { return "DO 2" }, 2},
		"in turn":         {func(attempt int) string { return fmt.Sprint("DO ", 1+attempt%2) }, 6},
		"the same words, at another place each time": {func(attempt int) string { return fmt.Sprint("DO ", 1+attempt%2) }, 6},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.MaxAttempts = 6 })
			runs := 0
			f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
				if query == tt.fatal(runs) || query == "DO 9" {
					c.Valid.Store(false)
					return fakedb.ErrGone
				}
				return nil
			}
			start := time.Now()
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				runs++
				for i := range 3 {
					query := fmt.Sprint("DO ", i)
					if name != "always the same" && name != "in turn" && query == tt.fatal(runs) {
						query = "DO 9"
					}
					if _, err := s.ExecContext(ctx, query); err != nil {
						return err
					}
				}
				return nil
			})
			if !errors.Is(err, fakedb.ErrGone) || runs != tt.runs || time.Since(start) > 20*time.Second {
				t.Errorf("%v after %d runs, want the loss after %d", err, runs, tt.runs)
			}
			if strings.Contains(fmt.Sprint(err), `twice in a row while the server worked on "DO 2"`) != (tt.runs == 2) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Statements of livepool's own end no connection: whatever does so while they wait, three
// times in a row, the unit is run again.
func TestUnitWhoseKeyMeetsTwoLossesIsRunAgain(t *testing.T) {
	inner := func(ctx context.Context, s *livepool.Session) error {
		p := ctx.Value(poolInTest{}).(*livepool.Pool)
		_ = p.WithSession(ctx, func(context.Context, *livepool.Session) error { return errors.New("undone") })
		return labtest.Work(ctx, s)
	}
	for own, unit := range map[string]labtest.UnitFunc{
		"INSERT INTO livepool_commits": labtest.Work,
		"SAVEPOINT livepool_":          inner,
		"ROLLBACK TO SAVEPOINT":        inner,
		"RELEASE SAVEPOINT":            inner,
	} {
		t.Run(own, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, nil)
			met := 0
			f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
				if strings.HasPrefix(query, own) {
					if met++; met <= 3 {
						c.Valid.Store(false)
						return fakedb.ErrGone
					}
				}
				return nil
			}
			ctx := context.WithValue(t.Context(), poolInTest{}, p)
			if err := p.WithSession(ctx, unit, livepool.Once("key")); err != nil || met != 4 {
				t.Errorf("%v after %d times, want nil after 4", err, met)
			}
		})
	}
}

// poolInTest is under what a unit of this test finds its pool.
type poolInTest struct{}
