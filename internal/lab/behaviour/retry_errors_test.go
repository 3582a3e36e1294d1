package behaviour_test

// Errors of a bad moment, after which a unit succeeds when it is run again.

import (
	"context"
	"errors"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

func TestUnitThatMetABadMomentIsRunAgain(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s, "CREATE TABLE test.w (id INT PRIMARY KEY, v INT)", "INSERT INTO test.w VALUES (1, 0)")
		params := ""
		if s.Kind() != server.MySQL {
			params = "innodb_snapshot_isolation=1"
		}
		p := open(t, s.DSN(), params)
		// meets runs a unit of which the first attempt meets an error: when it has
		// begun to read, other happens, and then it runs query.
		meets := func(t *testing.T, number uint16, other func(), query string) {
			t.Helper()
			withTable(t, s)
			runs := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				runs++
				if err := labtest.Insert(1)(ctx, u); err != nil {
					return err
				}
				if err := u.QueryRowContext(ctx, "SELECT v FROM w WHERE id = 1").Scan(new(int)); err != nil {
					return err
				}
				if runs > 1 {
					return nil
				}
				other()
				_, err := u.ExecContext(ctx, query)
				if !labtest.IsServerError(err, number) {
					t.Errorf("got %v, want %d", err, number)
				}
				if _, next := u.ExecContext(ctx, "INSERT INTO t (v) VALUES (2)"); !errors.Is(next, livepool.ErrPoisoned) {
					t.Errorf("the next statement: %v, want ErrPoisoned", next)
				}
				return nil // swallowed
			})
			if n := count(t, s, "t"); err != nil || runs != 2 || n != 1 {
				t.Errorf("%v after %d runs, %d rows; want nil after 2, one row", err, runs, n)
			}
		}
		exec := func(query string) func() {
			return func() {
				if err := s.Exec(query); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Run("the table was altered", func(t *testing.T) {
			exec("CREATE TABLE test.altered (id INT PRIMARY KEY)")()
			meets(t, 1412, exec("ALTER TABLE test.altered ADD COLUMN v INT, ALGORITHM = COPY"), "SELECT COUNT(*) FROM altered")
		})
		if s.Kind() != server.MySQL {
			t.Run("the record has changed", func(t *testing.T) {
				meets(t, 1020, exec("UPDATE test.w SET v = v + 1"), "UPDATE w SET v = v + 10 WHERE id = 1")
			})
			return
		}
		t.Run("a deadlock of named locks", func(t *testing.T) {
			plain := openPlain(t, s.DSN())
			c, err := plain.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			take := func(name string) error {
				return c.QueryRowContext(t.Context(), "SELECT GET_LOCK('"+name+"', 20)").Scan(new(int))
			}
			done := make(chan error, 1)
			runs := 0
			err = p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				if runs++; runs > 1 {
					return labtest.Insert(5)(ctx, u)
				}
				if err := errors.Join(take("b"), u.QueryRowContext(ctx, "SELECT GET_LOCK('a', 1)").Scan(new(int))); err != nil {
					return err
				}
				go func() { done <- take("a") }()
				labtest.Eventually(t, "the other waits", func() bool {
					list, err := s.Processes()
					waits := false
					for _, p := range list {
						waits = waits || p.Info == "SELECT GET_LOCK('a', 20)"
					}
					return err == nil && waits
				})
				err := u.QueryRowContext(ctx, "SELECT GET_LOCK('b', 20)").Scan(new(int))
				if !labtest.IsServerError(err, 3058) {
					t.Errorf("got %v, want 3058", err)
				}
				return err
			})
			if n := count(t, s, "t WHERE v = 5"); err != nil || runs != 2 || n != 1 {
				t.Errorf("%v after %d runs, %d rows", err, runs, n)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	})
}
