package behaviour_test

// Contexts that end, and statements that are under way when they do.

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

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
				time.Sleep(200 * time.Millisecond) // a unit that has not begun would be told of its context alone
				cancel(deploy)
			}()
			err := p.WithSession(ctx, labtest.Work, opts...)
			if !errors.Is(err, context.Canceled) || !errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, deploy) || !strings.Contains(err.Error(), "connection refused") {
				t.Errorf("got %v", err)
			}
		}
	})
}
