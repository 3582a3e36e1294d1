// attempt.go is what a connection and the unit of work on it know of each other,
// and the contexts by which they find each other.

package livepool

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// attempt is what the connection tells the session about its transaction.
type attempt struct {
	name    string
	ghost   atomic.Pointer[ghost] // what it has left on the server
	keyed   atomic.Bool           // its key is in the transaction
	ending  atomic.Int32          // whether the session itself is committing
	usurped atomic.Bool           // somebody else tried to

	// mu guards observed: a statement that another goroutine has under way when the
	// unit's context ends still adds to it while the unit is judged.
	mu       sync.Mutex
	observed observed
}

// observed is what has been seen of a transaction that decides whether its unit may
// be run again.
type observed struct {
	failure  error  // for which it may be
	cured    error  // such a failure, which a rollback to a savepoint has undone
	implicit string // the first statement that commits implicitly, or may, "" for none
	lostOver string // the statement over which the connection was lost, "" for none
}

// fails notes a failure for which the unit may be run again.
func (a *attempt) fails(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.failure = err
}

// lostOver notes the statement that was under way when the connection was lost.
func (a *attempt) lostOver(query string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.lostOver = query
}

// recovers notes that a rollback to a savepoint has undone the failure.
func (a *attempt) recovers() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.observed.failure != nil {
		a.observed.cured, a.observed.failure = a.observed.failure, nil
	}
}

// commitsImplicitly notes the statement that does, or may; "" that none does.
func (a *attempt) commitsImplicitly(query string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.implicit = query
}

func (a *attempt) soFar() observed {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.observed
}

// What attempt.ending is. Of a COMMIT that is let through only the session's own
// may be reported by it, and with Session.Tx another one may be under way.
const (
	notEnding  int32 = iota
	mayCommit        // the session commits
	committing       // a COMMIT was let through
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

// beginContext is the caller's context by which the connection knows the unit.
// Only BeginTx sees it: a transaction that the function begins by itself, on
// the pool, is none of the unit's.
type beginContext struct {
	context.Context
	a     *attempt
	until time.Time     // a connection is waited for
	among *atomic.Int32 // the sessions that wait for one without a limit, while this is one of them
}

// served notes that database/sql has a connection for the session.
func (c *beginContext) served() {
	if c.among != nil {
		c.among.Add(-1)
		c.among = nil
	}
}

// servesSession says whether it is a session that gets the connection, and notes
// that it does.
func servesSession(ctx context.Context) bool {
	c, ok := ctx.(*beginContext)
	if ok {
		c.served()
	}
	return ok
}

func (c *beginContext) Value(key any) any {
	if key == (sessionDial{}) {
		return c.until
	}
	return c.Context.Value(key)
}

// endedContext is a context that has ended with an error of ours.
type endedContext struct {
	context.Context
	err error
}

// preparingContext is that under which a unit inside another one prepares a
// statement: it is not run any more when that unit has ended.
type preparingContext struct {
	context.Context
	unit unit
}

// unit is one inside another one.
type unit interface {
	// over is why no statement of it may run any more, nil as long as one may.
	over() error
}

// unsentContext tells the connection of a statement that was not sent.
type unsentContext struct {
	context.Context
	err error
}

// unsentError is a statement that was not sent, because its own context had ended.
type unsentError struct {
	query string
	cause error
}

func (e *unsentError) Error() string {
	return fmt.Sprintf("livepool: %.40q was not sent, because its own context had ended: %v", e.query, e.cause)
}
func (e *unsentError) Unwrap() error { return e.cause }

var closedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (c *endedContext) Done() <-chan struct{} { return closedChannel }
func (c *endedContext) Err() error            { return c.err }

// boundContext ends with its caller's context or with the unit's, whichever ends
// first. Released, it holds on to neither, and neither to it.
type boundContext struct {
	context.Context // the caller's
	done            chan struct{}
	caller, unit    func() bool // take it off them

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
	b.caller = context.AfterFunc(ctx, func() { b.end(ctx.Err()) })
	b.unit = context.AfterFunc(unit, func() { b.end(unit.Err()) })
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

// release does not end it: database/sql would tell the reader of a result that
// was read to its end.
func (b *boundContext) release() {
	b.caller()
	b.unit()
}

func (b *boundContext) Done() <-chan struct{} { return b.done }
func (b *boundContext) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
