// hooks.go runs what waits for a unit's commit.

package livepool

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
)

// hooks are the functions that wait for a session's commit. mu guards the rest.
type hooks struct {
	mu        sync.Mutex
	pending   []func(context.Context)
	movedTo   *Session // of a unit inside another one that has ended well: that other one
	committed bool     // committed, and all that waited has run
}

// AfterCommit has f run once, after the unit's commit is known to have
// happened; of a unit inside another one, after the outer's commit. It is not run if the
// attempt is rolled back; but under Once an attempt whose COMMIT was lost counts as
// committed when its key is found, which another delivery of the same key may have
// committed in its place: then the functions of both are run, rather than none, so
// that they must tolerate being run twice for one key. Called after the commit, it runs
// f before it returns, or, from inside such a function, after that.
//
// The context that f gets has the values of WithSession's, but no session and no
// end: WithSession under it is a unit of its own. If f panics, that is logged
// with its stack; the other functions run, and WithSession returns nil, because
// the work is applied. A nil f panics at once.
func (s *Session) AfterCommit(f func(context.Context)) {
	if f == nil {
		panic("livepool: AfterCommit(nil): it takes a function")
	}
	h := &s.hooks
	h.mu.Lock()
	movedTo, committed := h.movedTo, h.committed
	if movedTo == nil && !committed {
		h.pending = append(h.pending, f)
	}
	h.mu.Unlock()
	switch {
	case movedTo != nil:
		movedTo.AfterCommit(f)
	case committed:
		s.runHook(f)
	}
}

// takeHooks takes over the hooks of a unit inside this one: they wait for the common
// commit, and so do those that come later.
func (s *Session) takeHooks(inner *Session) {
	h := &inner.hooks
	h.mu.Lock()
	pending := h.pending
	h.pending, h.movedTo = nil, s
	h.mu.Unlock()
	for _, f := range pending {
		s.AfterCommit(f)
	}
}

// runHooks runs the hooks, those too that a hook adds.
func (s *Session) runHooks() {
	for {
		h := &s.hooks
		h.mu.Lock()
		if len(h.pending) == 0 {
			h.committed = true
			h.mu.Unlock()
			return
		}
		f := h.pending[0]
		h.pending = h.pending[1:]
		h.mu.Unlock()
		s.runHook(f)
	}
}

// runHook runs one. Its panic ends here, because the work is applied;
// runtime.Goexit goes on, once the others have run.
func (s *Session) runHook(f func(context.Context)) {
	ctx := outsideUnits{context.WithoutCancel(s.caller), s.pool.unitsPool()}
	returned := false
	defer func() {
		if returned {
			return
		}
		if p := recover(); p != nil {
			s.pool.cfg.log.Error("livepool: a function of AfterCommit has panicked; the unit is committed, and is reported as such",
				slog.String("unit", s.options.name), slog.String("panic", fmt.Sprint(p)), slog.String("stack", string(debug.Stack())))
			return
		}
		s.runHooks()
	}()
	f(ctx)
	returned = true
}

// outsideUnits hides the sessions, of this pool and of others, that the context is of: what
// is done under it is not part of their transactions. Shutdown lets it come to its end.
type outsideUnits struct {
	context.Context
	underWay *Pool
}

func (c outsideUnits) Value(key any) any {
	switch key := key.(type) {
	case sessionKey, poolKey:
		return nil
	case underWayKey:
		if key.p == c.underWay {
			return true
		}
	}
	return c.Context.Value(key)
}
