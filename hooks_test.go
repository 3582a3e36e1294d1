package livepool_test

// What waits for a commit: each function once, whatever the others do.

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A hook is never lost: neither that of an inner unit that has ended, nor one that
// a hook adds, nor one that comes when all others have run.
func TestNoHookIsLost(t *testing.T) {
	p := openFake(t, &fake{}, nil)
	var ran []string
	hook := func(name string) func(context.Context) { return func(context.Context) { ran = append(ran, name) } }
	var outer, inner, deep, undone *livepool.Session
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		outer = s
		if err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			inner = s
			s.AfterCommit(func(context.Context) {
				ran = append(ran, "inner")
				inner.AfterCommit(hook("from the inner's own hook"))
				deep.AfterCommit(hook("from a hook, of the innermost"))
			})
			return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				deep = s
				return work(ctx, s)
			})
		}); err != nil {
			return err
		}
		p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			undone = s
			s.AfterCommit(hook("undone"))
			return errors.New("refused")
		})
		undone.AfterCommit(hook("undone, and late"))
		inner.AfterCommit(hook("after the inner unit"))
		if len(ran) != 0 {
			t.Errorf("ran before the commit: %v", ran)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	outer.AfterCommit(hook("after all"))
	inner.AfterCommit(hook("after all, of the inner"))
	want := []string{"inner", "after the inner unit", "from the inner's own hook", "from a hook, of the innermost", "after all", "after all, of the inner"}
	if !slices.Equal(ran, want) {
		t.Errorf("ran %q\nwant %q", ran, want)
	}

	var failed *livepool.Session
	ran = nil
	p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error { failed = s; return errors.New("refused") })
	if failed.AfterCommit(hook("of a unit that failed")); len(ran) != 0 {
		t.Errorf("ran %q", ran)
	}
}

// The work is applied, whatever becomes of what follows it.
func TestHookThatPanics(t *testing.T) {
	log := &lifeLog{}
	p := openFake(t, &fake{}, func(c *livepool.Config) { c.Logger = slog.New(log) })
	var ran []string
	unit := func(how func()) error {
		ran = nil
		return p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { ran = append(ran, "first"); how() })
			s.AfterCommit(func(context.Context) { ran = append(ran, "second") })
			return work(ctx, s)
		}, livepool.Name("mailer"))
	}
	if err := unit(func() { explodeInAHook() }); err != nil || !slices.Equal(ran, []string{"first", "second"}) {
		t.Errorf("%v, ran %v", err, ran)
	}
	said := log.about("AfterCommit has panicked")
	if len(said) != 1 || !strings.Contains(said[0], "unit=mailer") || !strings.Contains(said[0], "boom") || !strings.Contains(said[0], "explodeInAHook") {
		t.Errorf("the log says %q", said)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		unit(runtime.Goexit)
	}()
	if <-over; !slices.Equal(ran, []string{"first", "second"}) {
		t.Errorf("Goexit: ran %v", ran)
	}
}

func explodeInAHook() { panic("boom") }

// A programmer's error is told where it is made, before anything is committed.
func TestNilHook(t *testing.T) {
	commits := 0
	f := &fake{onCommit: func(*fakeConn) error { commits++; return nil }}
	p := openFake(t, f, nil)
	defer func() {
		if r := recover(); r == nil || commits != 0 {
			t.Errorf("recovered %v after %d commits", r, commits)
		}
	}()
	p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		s.AfterCommit(nil)
		return work(ctx, s)
	})
	t.Error("AfterCommit(nil) is accepted")
}

// The context of a hook has the caller's values, and neither end nor session.
func TestContextOfAHook(t *testing.T) {
	type key struct{}
	p := openFake(t, &fake{}, nil)
	other := openFake(t, &fake{}, nil)
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "value"), time.Minute)
	ran := false
	err := other.WithSession(ctx, func(ctx context.Context, _ *livepool.Session) error {
		return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { cancel() })
			s.AfterCommit(func(ctx context.Context) {
				ran = true
				_, has := ctx.Deadline()
				if s, ok := livepool.FromContext(ctx); ok || s != nil || has || ctx.Err() != nil || ctx.Done() != nil || ctx.Value(key{}) != "value" {
					t.Errorf("session %v, deadline %v, %v, value %v", ok, has, ctx.Err(), ctx.Value(key{}))
				}
			})
			return work(ctx, s)
		})
	})
	if !ran || !errors.Is(err, livepool.ErrSessionDone) { // the outer unit's context has ended
		t.Errorf("ran %v, %v", ran, err)
	}
}

// What the hook of a RequiresNew does is no part of the unit around it, which fails.
func TestUnitOfAHookIsItsOwn(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.DSN(), "")
		var hookErr error
		err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
			if err := insert(1)(ctx, outer); err != nil {
				return err
			}
			if err := p.WithSession(ctx, func(ctx context.Context, own *livepool.Session) error {
				own.AfterCommit(func(ctx context.Context) { hookErr = p.WithSession(ctx, insert(3)) })
				return insert(2)(ctx, own)
			}, livepool.RequiresNew()); err != nil {
				return err
			}
			return errors.New("refused")
		})
		if n, of := count(t, s, "t"), count(t, s, "t WHERE v = 3"); hookErr != nil || n != 2 || of != 1 {
			t.Errorf("the hook's unit said %v; %d rows, want 2, and %d of the hook's, want 1; %v", hookErr, n, of, err)
		}
	})
}

// Two deliveries of one key: the first one's COMMIT is lost and has not happened, the
// second is applied meanwhile. The key says that the work is applied, not by whom:
// the hooks of both are run, for with those of neither a notification would be lost.
func TestHooksOfTwoDeliveriesOfOneKey(t *testing.T) {
	s, direct := ledger(t, server.MariaDB)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "pool_size=1")
	cut := via.CutBefore(proxy.QueryPrefix("COMMIT"), proxy.RST)
	var mu sync.Mutex
	var hooks []string
	unit := func(name string, v int) fn {
		return func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { mu.Lock(); hooks = append(hooks, name); mu.Unlock() })
			if name == "first" && s.Attempt() == 1 {
				via.Refuse()
			}
			return insert(v)(ctx, s)
		}
	}
	var second error
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-cut.Done()
		second = direct.WithSession(context.Background(), unit("second", 2), livepool.Once("k"))
		if err := via.Reopen(); err != nil {
			t.Error(err)
		}
	}()
	first := p.WithSession(t.Context(), unit("first", 1), livepool.Once("k"))
	<-done
	if n, of := count(t, s, "t"), count(t, s, "t WHERE v = 2"); n != 1 || of != 1 || first != nil || second != nil || !slices.Equal(hooks, []string{"second", "first"}) {
		t.Errorf("%d rows, %d of the second delivery, want 1 and 1; %v, %v; hooks %v", n, of, first, second, hooks)
	}
}
