// Package boundctx makes the contexts of the statements of a session: they end with the
// statement's own context or with the session's, whichever ends first.
package boundctx

import (
	"context"
	"sync"
)

// ended is a context that has ended with a given error.
type ended struct {
	context.Context
	err error
}

var closedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (c *ended) Done() <-chan struct{} { return closedChannel }
func (c *ended) Err() error            { return c.err }

// Ended returns a context with the values of ctx that has ended with err.
func Ended(ctx context.Context, err error) context.Context { return &ended{ctx, err} }

// valued ends as one context does, and has the values of another.
type valued struct {
	context.Context
	values context.Context
}

func (c valued) Value(key any) any { return c.values.Value(key) }

// WithValues returns a context that ends as ctx does, and has the values of another one.
func WithValues(ctx, values context.Context) context.Context { return valued{ctx, values} }

// Context ends with its caller's context or with the unit's, whichever ends first.
// After Release it no longer refers to either, nor do they to it.
type Context struct {
	context.Context      // the caller's
	done                 chan struct{}
	stopCaller, stopUnit func() bool // end the wait for them

	mu    sync.Mutex           // guards what follows
	err   error                // why done is closed
	after map[*func()]struct{} // what is to be called when done is closed
}

// Bind returns nil if ctx ends no later than the unit anyway. It compares the Done
// channels, because a value in ctx proves nothing: context.WithoutCancel keeps the values.
func Bind(ctx, unit context.Context) *Context {
	if unit.Done() == nil || unit.Done() == ctx.Done() || ctx.Err() != nil {
		return nil
	}
	b := &Context{Context: ctx, done: make(chan struct{})}
	b.stopCaller = context.AfterFunc(ctx, func() { b.end(ctx.Err()) })
	b.stopUnit = context.AfterFunc(unit, func() { b.end(unit.Err()) })
	return b
}

func (b *Context) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return
	}
	b.err = err
	close(b.done)
	for f := range b.after {
		go (*f)()
	}
}

// AfterFunc is how package context waits for a context that is not its own without a
// goroutine: it calls f in one when b has ended. stop says whether it prevented that.
func (b *Context) AfterFunc(f func()) (stop func() bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		go f()
		return func() bool { return false }
	}
	if b.after == nil {
		b.after = map[*func()]struct{}{}
	}
	b.after[&f] = struct{}{}
	return func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		_, waits := b.after[&f]
		delete(b.after, &f)
		return waits && b.err == nil
	}
}

// Release does not end the context: database/sql would report that to the reader of a
// result that was read to its end.
func (b *Context) Release() {
	b.stopCaller()
	b.stopUnit()
}

// Done is closed when the first of the two contexts has ended.
func (b *Context) Done() <-chan struct{} { return b.done }

// Err is the error of the context that ended first.
func (b *Context) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
