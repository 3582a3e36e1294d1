package livepooltest_test

// Twice, on real servers and on the mock: what it lets pass, and what it says.

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
	"github.com/livepool/livepool/livepooltest"
)

func TestTwice(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		pool, proxy := open(t, s, "pool_max_attempts=1") // Twice says itself how often
		rows := livepooltest.Rows("SELECT v FROM t WHERE v > ?", 0)
		attempts, hooks, mails := []int{}, 0, 0
		var collected []int

		// A function that tolerates it, with a unit of its own inside.
		livepooltest.Twice(t, pool, func(ctx context.Context, s *livepool.Session) error {
			attempts = append(attempts, s.Attempt())
			s.AfterCommit(func(context.Context) { hooks++ })
			runs := 0
			return pool.WithSession(ctx, insert(&runs, 1))
		}, rows, livepooltest.Effect("mails", func() any { return mails }))
		if len(attempts) != 2 || attempts[0] != 1 || attempts[1] != 2 || hooks != 1 {
			t.Errorf("attempts %v, %d hooks", attempts, hooks)
		}
		wantRows(t, pool, 1)

		for name, tt := range map[string]struct {
			job  func(context.Context, *livepool.Session) error
			want []string
		}{
			"a variable": {func(ctx context.Context, s *livepool.Session) error {
				collected = append(collected, 0)
				runs := 0
				return insert(&runs, 10+len(collected))(ctx, s)
			}, []string{"the rows of SELECT v FROM t", "only after one run: v=11", "only after two runs: v=12"}},
			"a side effect": {func(ctx context.Context, s *livepool.Session) error {
				mails++
				runs := 0
				return insert(&runs, 2)(ctx, s)
			}, []string{"mails", "only after one run: 1", "only after two runs: 2", "AfterCommit"}},
			"past the session": {func(context.Context, *livepool.Session) error {
				_, err := pool.ExecContext(context.Background(), "INSERT INTO t VALUES (20)")
				return err
			}, []string{"only after two runs: v=20", "use the pool where it means its session"}},
			"fails by itself": {func(context.Context, *livepool.Session) error { return errors.New("no such order") },
				[]string{"the first run failed", "no such order"}},
			"fails the second time": {func(_ context.Context, s *livepool.Session) error {
				if s.Attempt() > 1 {
					return errors.New("seen before")
				}
				return nil
			}, []string{"and the second failed", "seen before"}},
			"an error of the query": {func(context.Context, *livepool.Session) error {
				proxy.NextStatement("from t where", livepooltest.Interrupted)
				return nil
			},
				[]string{"reading the rows of SELECT v FROM t", "1317"}},
		} {
			said := failure(t, func(t testing.TB) {
				livepooltest.Twice(t, pool, tt.job, rows, livepooltest.Effect("mails", func() any { return mails }))
			})
			for _, want := range tt.want {
				if !strings.Contains(said, want) {
					t.Errorf("%s: %q is missing in:\n%s", name, want, said)
				}
			}
		}
		_, _ = pool.ExecContext(t.Context(), "DELETE FROM t WHERE v <> 1")

		// Of many rows that differ some are shown.
		said := failure(t, func(t testing.TB) {
			livepooltest.Twice(t, pool, func(ctx context.Context, _ *livepool.Session) error {
				_, err := pool.ExecContext(context.WithoutCancel(context.Background()), "INSERT INTO t SELECT seq.v FROM (SELECT 1 v UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4) seq, "+
					"(SELECT 1 v UNION ALL SELECT 2 UNION ALL SELECT 3) times")
				return err
			}, rows)
		})
		if strings.Count(said, "only after two runs") != 10 || !strings.Contains(said, "and 2 more") {
			t.Errorf("said %s", said)
		}
	})
}

func TestTwiceOnTheMock(t *testing.T) {
	pool, mock, _ := livepooltest.Mock(t)
	runs := 0
	for _, end := range []func() *sqlmock.ExpectedRollback{mock.ExpectRollback, func() *sqlmock.ExpectedRollback { mock.ExpectCommit(); return nil }} {
		mock.ExpectBegin()
		mock.ExpectExec("INSERT INTO t").WillReturnResult(one)
		mock.ExpectQuery("SELECT v FROM t").WillReturnRows(sqlmock.NewRows([]string{"v"}).AddRow(1))
		end()
	}
	livepooltest.Twice(t, pool, insert(&runs, 1), livepooltest.Rows("SELECT v FROM t"))
	if runs != 2 {
		t.Errorf("%d runs", runs)
	}
}

// A server that does not know SIGNAL cannot be asked for a deadlock.
func TestTwiceWithoutASecondRun(t *testing.T) {
	said := failure(t, func(t testing.TB) {
		pool, mock, faults := livepooltest.Mock(t)
		mock.ExpectBegin()
		mock.ExpectRollback()
		faults.NextStatement("SIGNAL", livepooltest.Interrupted)
		livepooltest.Twice(t, pool, func(context.Context, *livepool.Session) error { return nil })
	})
	if !strings.Contains(said, "not run again after its first run") || !strings.Contains(said, "1317") {
		t.Errorf("said %s", said)
	}
}
