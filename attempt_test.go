package livepool_test

// Contexts that end, and statements that are under way when they do.

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A context that has ended runs nothing, neither alone nor inside another unit.
func TestUnitUnderAContextThatHasEnded(t *testing.T) {
	p := openFake(t, &fake{}, nil)
	over, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the worker is stopping"))
	late, cancelLate := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancelLate()
	runs := 0
	run := func(ctx context.Context) error {
		return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error { runs++; return work(ctx, s) })
	}
	if err := run(over); !errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the worker is stopping") {
		t.Errorf("cancelled: %v", err)
	}
	if err := run(late); !errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v", err)
	}
	if err := p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return run(ctx)
	}); !errors.Is(err, livepool.ErrSessionDone) {
		t.Errorf("inside: %v", err)
	}
	if runs != 0 {
		t.Errorf("ran %d times", runs)
	}
}

// A context that only has the unit's values outlives it; what is sent under it
// must not.
func TestStatementUnderAContextThatOutlivesTheUnit(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := open(t, s.DSN(), "")
		for name, send := range map[string]func(context.Context, *livepool.Session) error{
			"exec": func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, "DO SLEEP(30)")
				return err
			},
			"query": func(ctx context.Context, s *livepool.Session) error {
				return s.QueryRowContext(ctx, "SELECT SLEEP(30)").Scan(new(int))
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			start := time.Now()
			err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				long, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
				defer cancel()
				return send(long, s)
			})
			cancel()
			if took := time.Since(start); took > 15*time.Second || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: after %s: %v", name, took, err)
			}
		}
	})
}

// The deadline of a statement's own context is told as that.
func TestDeadlineOfAStatementInAUnit(t *testing.T) {
	f := &fake{onExec: func(ctx context.Context, _ *fakeConn, _ string) error { <-ctx.Done(); return ctx.Err() }}
	p := openFake(t, f, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		own, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if _, err := s.ExecContext(own, "DO 1"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("got %v", err)
		}
		return nil
	})
}

// A result under a foreign context holds nothing once it is closed, and says
// nothing wrong of how it ended.
func TestManyQueriesUnderAForeignContext(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := open(t, s.DSN(), "interpolateParams=true")
		unit, cancel := context.WithCancel(t.Context())
		defer cancel()
		foreign, cancelForeign := context.WithCancel(t.Context())
		defer cancelForeign()
		err := p.WithSession(unit, func(ctx context.Context, s *livepool.Session) error {
			var before, after runtime.MemStats
			for round := range 2 {
				if round == 1 {
					runtime.GC()
					runtime.ReadMemStats(&before)
				}
				for i := range 4000 {
					if i%2 == 0 {
						if err := s.QueryRowContext(foreign, "SELECT 1").Scan(new(int)); err != nil {
							return err
						}
						continue
					}
					rows, err := s.QueryContext(foreign, "SELECT ?", i)
					if err != nil {
						return err
					}
					for rows.Next() {
					}
					if err := rows.Err(); err != nil {
						return err
					}
					if err := rows.Close(); err != nil {
						return err
					}
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
			t.Logf("4000 closed results hold %d bytes", held)
			if held > 300_000 {
				t.Errorf("4000 closed results hold %d bytes", held)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// A goroutine of the function has a statement under way, on the *sql.Tx or a
// Stmt, when the context ends; its failure comes while the unit is judged. For
// the race detector.
func TestFailureThatComesWhileTheUnitIsJudged(t *testing.T) {
	for name, statement := range map[string]func(*sql.Tx, *sql.Stmt){
		"tx":   func(tx *sql.Tx, _ *sql.Stmt) { tx.ExecContext(context.Background(), "SLOW") },
		"stmt": func(_ *sql.Tx, stmt *sql.Stmt) { stmt.ExecContext(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{}
			sent := make(chan struct{})
			slow := func(c *fakeConn) error {
				close(sent)
				time.Sleep(200 * time.Millisecond) // a channel would order what is to be seen as a race
				c.valid.Store(false)
				return mysql.ErrInvalidConn
			}
			f.onExec = func(_ context.Context, c *fakeConn, query string) error {
				if query == "SLOW" || query == "prepared" {
					return slow(c)
				}
				return nil
			}
			p := openFake(t, f, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			over := make(chan struct{})
			err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				tx, err := s.Tx(ctx)
				if err != nil {
					return err
				}
				stmt, err := s.PrepareContext(ctx, "prepared")
				if err != nil {
					return err
				}
				go func() { defer close(over); statement(tx, stmt) }()
				<-sent
				cancel()
				time.Sleep(50 * time.Millisecond) // meanwhile database/sql ends the transaction, and waits for the statement
				return ctx.Err()
			})
			<-over
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

// Both are told: that the context ended, and why, and what the unit waited for.
func TestContextThatEndsInAnOutage(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := open(t, s.DSN(), "pool_min_idle=0")
		warmReal(t, p.DB, 1)
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		for _, opts := range [][]livepool.SessionOption{nil, {livepool.Once("k")}} {
			deploy := errors.New("a new version is deployed")
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				for p.Stats().Outages == 0 {
					time.Sleep(10 * time.Millisecond)
				}
				cancel(deploy)
			}()
			err := p.WithSession(ctx, work, opts...)
			if !errors.Is(err, context.Canceled) || !errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, deploy) || !strings.Contains(err.Error(), "connection refused") {
				t.Errorf("got %v", err)
			}
		}
	})
}
