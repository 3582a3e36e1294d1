package livepool_test

// What waits for a commit, and what calls a unit with an id.

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

func TestOncePerIDTakesAName(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	job := livepool.Job(p, func(context.Context, *livepool.Session, int) error {
		t.Error("run, although nothing keeps it from being run twice")
		return nil
	}, livepool.OncePerID(""))
	if err := job(t.Context(), 5); err == nil || !strings.Contains(err.Error(), "OncePerID") {
		t.Errorf("error %v, want one about OncePerID", err)
	}
}

func TestSessionsAndPoolsAreNotSerialised(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		for name, v := range map[string]any{"session": s, "pool": p} {
			if _, err := json.Marshal(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
				t.Errorf("json of a %s: %v", name, err)
			}
			if err := gob.NewEncoder(new(bytes.Buffer)).Encode(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
				t.Errorf("gob of a %s: %v", name, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A hook is never lost: neither that of an inner unit that has ended, nor one that
// a hook adds, nor one that comes when all others have run.
func TestNoHookIsLost(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
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
				return labtest.Work(ctx, s)
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
	log := &labtest.CapturedLog{}
	p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Logger = slog.New(log) })
	var ran []string
	unit := func(how func()) error {
		ran = nil
		return p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { ran = append(ran, "first"); how() })
			s.AfterCommit(func(context.Context) { ran = append(ran, "second") })
			return labtest.Work(ctx, s)
		}, livepool.Name("mailer"))
	}
	if err := unit(func() { panicInHook() }); err != nil || !slices.Equal(ran, []string{"first", "second"}) {
		t.Errorf("%v, ran %v", err, ran)
	}
	said := log.LinesWith("AfterCommit has panicked")
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

func panicInHook() { panic("boom") }

// A programmer's error is told where it is made, before anything is committed.
func TestNilHook(t *testing.T) {
	commits := 0
	f := &fakedb.DB{OnCommit: func(*fakedb.Conn) error { commits++; return nil }}
	p := labtest.OpenFake(t, f, nil)
	defer func() {
		if r := recover(); r == nil || commits != 0 {
			t.Errorf("recovered %v after %d commits", r, commits)
		}
	}()
	p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		s.AfterCommit(nil)
		return labtest.Work(ctx, s)
	})
	t.Error("AfterCommit(nil) is accepted")
}

// The context of a hook has the caller's values, and neither end nor session.
func TestContextOfAHook(t *testing.T) {
	type key struct{}
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	other := labtest.OpenFake(t, &fakedb.DB{}, nil)
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
			return labtest.Work(ctx, s)
		})
	})
	if !ran || !errors.Is(err, livepool.ErrSessionDone) { // the outer unit's context has ended
		t.Errorf("ran %v, %v", ran, err)
	}
}
