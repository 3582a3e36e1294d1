package behaviour_test

// The unit of work: what it has, how it ends, and what outlives it.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

func TestHowAUnitEnds(t *testing.T) {
	refused := errors.New("refused by the job")
	s, p := openLedger(t, server.MariaDB)
	for i, tt := range []struct {
		name  string
		after func() error // what fn does after its insert
		rows  int
		want  error
		panic bool
	}{
		{"nil commits", func() error { return nil }, 1, nil, false},
		{"an error rolls back", func() error { return refused }, 0, refused, false},
		{"a panic rolls back and goes on", func() error { panic(refused) }, 0, nil, true},
		{"Goexit rolls back", func() error { runtime.Goexit(); return nil }, 0, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			var recovered any
			var hook atomic.Bool
			done := make(chan struct{})
			go func() { // for Goexit
				defer close(done)
				defer func() { recovered = recover() }()
				err = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					s.AfterCommit(func(context.Context) { hook.Store(true) })
					if err := labtest.Insert(i)(ctx, s); err != nil {
						return err
					}
					return tt.after()
				})
			}()
			<-done
			if !errors.Is(err, tt.want) || tt.panic != (recovered == refused) {
				t.Errorf("error %v, panic %v", err, recovered)
			}
			if n := count(t, s, fmt.Sprintf("t WHERE v = %d", i)); n != tt.rows {
				t.Errorf("%d rows, want %d", n, tt.rows)
			}
			if hook.Load() != (tt.rows == 1) {
				t.Errorf("AfterCommit ran: %v", hook.Load())
			}
			labtest.Eventually(t, "the connection is back", func() bool { return p.Stats().InUse == 0 })
		})
	}
}

func TestSessionOptions(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	t.Run("ReadOnly", func(t *testing.T) {
		attempts := 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			attempts++
			return labtest.Insert(1)(ctx, s)
		}, livepool.ReadOnly())
		var my *mysql.MySQLError
		if !errors.As(err, &my) || my.Number != 1792 || attempts != 1 {
			t.Errorf("a write: %v after %d attempts, want 1792 at once", err, attempts)
		}
	})
	t.Run("Isolation", func(t *testing.T) {
		for level, want := range map[sql.IsolationLevel]int{sql.LevelReadCommitted: 1, sql.LevelRepeatableRead: 0} {
			if err := s.Exec("DELETE FROM test.t"); err != nil {
				t.Fatal(err)
			}
			if err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
				var n int
				if err := sess.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(&n); err != nil {
					return err
				}
				if err := s.Exec("INSERT INTO test.t (v) VALUES (1)"); err != nil {
					return err
				}
				if err := sess.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(&n); err != nil {
					return err
				}
				if n != want {
					t.Errorf("%v sees %d rows of another transaction, want %d", level, n, want)
				}
				return nil
			}, livepool.Isolation(level)); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("MaxAttempts and Attempt", func(t *testing.T) {
		var attempts []int
		err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
			attempts = append(attempts, sess.Attempt())
			if err := labtest.Insert(1)(ctx, sess); err != nil {
				return err
			}
			if err := s.KillConnections(); err != nil {
				t.Error(err)
			}
			return labtest.Insert(2)(ctx, sess)
		}, livepool.MaxAttempts(3), livepool.Name("the nightly transfer"))
		if !slices.Equal(attempts, []int{1, 2, 3}) {
			t.Errorf("attempts %v", attempts)
		}
		for _, part := range []string{"the nightly transfer", "3 attempt", "MaxAttempts"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%v does not say %q", err, part)
			}
		}
	})
	t.Run("contradictions", func(t *testing.T) {
		for name, opts := range map[string][]livepool.SessionOption{
			"ReadOnly and Once":         {livepool.ReadOnly(), livepool.Once("k")},
			"ReadOnly and VerifyCommit": {livepool.ReadOnly(), livepool.VerifyCommit()},
			"a key too long":            {livepool.Once(strings.Repeat("k", 256))},
			"negative attempts":         {livepool.MaxAttempts(-1)},
			"OncePerID without a Job":   {livepool.OncePerID("x")},
		} {
			if err := p.WithSession(t.Context(), labtest.Insert(1), opts...); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}

func TestSessionOutlivedByItsUsers(t *testing.T) {
	_, p := openLedger(t, server.MariaDB)
	var kept *livepool.Session
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		kept = s
		return labtest.Insert(1)(ctx, s)
	}); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, exec := kept.ExecContext(ctx, "DO 1")
	_, query := kept.QueryContext(ctx, "SELECT 1")
	_, prepare := kept.PrepareContext(ctx, "SELECT 1")
	_, tx := kept.Tx(ctx)
	row := kept.QueryRowContext(ctx, "SELECT 1").Scan(new(int))
	for name, err := range map[string]error{"Exec": exec, "Query": query, "Prepare": prepare, "Tx": tx, "QueryRow": row} {
		if !errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("%s: %v, want ErrSessionDone", name, err)
		}
	}
}

// The runner gives the job up: whatever the function still does, nothing of it
// is committed.
func TestEndedContextEndsTheSession(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	for name, statement := range map[string]func(ctx context.Context, s *livepool.Session) error{
		"under the function's context": labtest.Insert(2),
		"under another context":        func(_ context.Context, s *livepool.Session) error { return labtest.Insert(2)(context.Background(), s) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				if err := labtest.Insert(1)(ctx, s); err != nil {
					return err
				}
				cancel()
				if err := statement(ctx, s); !errors.Is(err, livepool.ErrSessionDone) && !errors.Is(err, context.Canceled) {
					t.Errorf("a statement after the end: %v", err)
				}
				return nil
			})
			if !errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want ErrSessionDone for the context's end", err)
			}
			if n := count(t, s, "t"); n != 0 {
				t.Errorf("%d rows, want none", n)
			}
		})
	}
	t.Run("a long statement under another context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := p.WithSession(ctx, func(_ context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(context.Background(), "DO SLEEP(20)")
			return err
		})
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 10*time.Second {
			t.Errorf("got %v after %s", err, took)
		}
	})
}

// A statement under context.WithoutCancel of the function's own context.
func TestUnitWithoutCancelOutlivesTheSession(t *testing.T) {
	_, p := openLedger(t, server.MariaDB)
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
	_, p := openLedger(t, server.MariaDB)
	ctx, cancel := context.WithCancel(t.Context())
	p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		labtest.Insert(1)(ctx, s)
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

// Several goroutines may share a session; they take turns.
func TestSessionIsSafeForConcurrentUse(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	if err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if err := labtest.Insert(i)(ctx, sess); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return nil
	}); err != nil {
		t.Error(err)
	}
	if n := count(t, s, "t"); n != 20 {
		t.Errorf("%d rows, want 20", n)
	}
}

// What a job leaves on its connection, no other job sees.
func TestSessionStateStaysWithItsJob(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, q := range []string{"CREATE TABLE test.t (v INT)", "CREATE DATABASE other"} {
			if err := s.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		for _, dirt := range []string{
			"SET @x = 1", "SET SESSION time_zone = '+07:00'", "USE other",
			"CREATE TEMPORARY TABLE test.t (w INT)", "DO GET_LOCK('a lock', 0)", "LOCK TABLES t WRITE",
			"SELECT 1 INTO @x", "DO @x := 1",
		} {
			p := open(t, s.DSN(), "")
			if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, dirt)
				return err
			}); err != nil {
				t.Errorf("%s: %v", dirt, err)
			}
			for range 50 {
				if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					var clean bool
					if err := s.QueryRowContext(ctx, "SELECT @x IS NULL AND @@time_zone <> '+07:00' AND DATABASE() = 'test' AND IS_FREE_LOCK('a lock')").Scan(&clean); err != nil {
						return err
					}
					if !clean {
						t.Errorf("%s: the next job sees it", dirt)
					}
					_, err := s.ExecContext(ctx, "INSERT INTO t (v) VALUES (1)")
					return err
				}); err != nil {
					t.Errorf("%s: the next job: %v", dirt, err)
				}
			}
			p.Close()
		}
	})
}

// A unit costs the round trips of its transaction, and its key one more.
func TestRoundTripsOfAUnit(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (v INT)"); err != nil {
			t.Fatal(err)
		}
		via := proxyTo(t, s)
		p, plain := open(t, s.DSNVia(via.Addr()), "pool_begin=explicit"), openPlain(t, s.DSNVia(via.Addr()))
		if err := p.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		trips := func(f func() error) int {
			t.Helper()
			if err := f(); err != nil { // warm
				t.Fatal(err)
			}
			via.ResetCounts()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			return via.Counts().RoundTrips()
		}
		literal := func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
			return err
		}
		want := trips(func() error {
			tx, err := plain.Begin()
			if err != nil {
				return err
			}
			if _, err := tx.Exec("INSERT INTO t VALUES (1)"); err != nil {
				return err
			}
			return tx.Commit()
		})
		if got := trips(func() error { return p.WithSession(t.Context(), literal) }); got != want {
			t.Errorf("%d round trips, plain has %d", got, want)
		}
		if got := trips(func() error { return p.WithSession(t.Context(), literal, livepool.VerifyCommit()) }); got != want+1 {
			t.Errorf("with a key %d round trips, want %d", got, want+1)
		}
	})
}
