package livepool

import (
	"context"
	"sync"
)

type sessionKey struct{}

// poolKey finds the innermost session of one pool, whatever other pools' are
// between.
type poolKey struct{ p *Pool }

// sessionContext is the caller's context with the Session in it.
type sessionContext struct {
	context.Context
	s *Session
}

func (c *sessionContext) Value(key any) any {
	if key == (sessionKey{}) || key == (poolKey{c.s.pool}) {
		return c.s
	}
	return c.Context.Value(key)
}

// endedContext is a context that has ended with an error of ours.
type endedContext struct {
	context.Context
	err error
}

var closedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (c *endedContext) Done() <-chan struct{} { return closedChannel }
func (c *endedContext) Err() error            { return c.err }

// boundContext ends with its caller's context or with the unit's, whichever ends
// first. Released, it holds on to neither, and neither to it.
type boundContext struct {
	context.Context      // the caller's
	done                 chan struct{}
	stopCaller, stopUnit func() bool // take it off them

	mu  sync.Mutex
	err error // why done is closed
}

// bindContext returns nil if ctx ends no later than the unit anyway. It is the
// Done channel that tells, and not a value in ctx: context.WithoutCancel keeps
// the values.
func bindContext(ctx, unit context.Context) *boundContext {
	if unit.Done() == nil || unit.Done() == ctx.Done() || ctx.Err() != nil {
		return nil
	}
	b := &boundContext{Context: ctx, done: make(chan struct{})}
	b.stopCaller = context.AfterFunc(ctx, func() { b.end(ctx.Err()) })
	b.stopUnit = context.AfterFunc(unit, func() { b.end(unit.Err()) })
	return b
}

func (b *boundContext) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
		close(b.done)
	}
}

// Release does not end it: database/sql would tell the reader of a result that
// was read to its end.
func (b *boundContext) Release() {
	b.stopCaller()
	b.stopUnit()
}

func (b *boundContext) Done() <-chan struct{} { return b.done }
func (b *boundContext) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
