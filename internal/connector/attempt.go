// attempt.go is what a connection and the unit of work on it know of each other,
// and the contexts by which they find each other.

package connector

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Attempt is what the connection tells the session about its transaction.
type Attempt struct {
	Name               string
	Orphan             atomic.Pointer[orphan] // what it has left on the server
	HasKey             atomic.Bool            // its key is in the transaction
	CommitState        atomic.Int32           // whether the session itself is committing
	CommitTriedByOther atomic.Bool            // somebody else tried to

	// mu guards observed: a statement that another goroutine has under way when the
	// unit's context ends still adds to it while the unit is judged.
	mu       sync.Mutex
	observed Observed
}

// Observed is what has been seen of a transaction that decides whether its unit may
// be run again.
type Observed struct {
	Failure        error  // for which it may be
	Recovered      error  // such a failure, which a rollback to a savepoint has undone
	ImplicitCommit string // the first statement that commits implicitly, or may, "" for none
	LostStatement  string // the statement over which the connection was lost, "" for none
}

// NoteFailure notes a failure for which the unit may be run again.
func (a *Attempt) NoteFailure(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.Failure = err
}

// noteLostStatement notes the statement that was under way when the connection was lost.
func (a *Attempt) noteLostStatement(query string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.LostStatement = query
}

// ForgetLostStatement says that the statement is not to blame.
func (a *Attempt) ForgetLostStatement() { a.noteLostStatement("") }

// noteRecovery notes that a rollback to a savepoint has undone the failure.
func (a *Attempt) noteRecovery() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.observed.Failure != nil {
		a.observed.Recovered, a.observed.Failure = a.observed.Failure, nil
	}
}

// noteImplicitCommit notes the statement that does, or may; "" that none does.
func (a *Attempt) noteImplicitCommit(query string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.ImplicitCommit = query
}

func (a *Attempt) Snapshot() Observed {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.observed
}

// What attempt.ending is. Of a COMMIT that is let through only the session's own
// may be reported by it, and with Session.Tx another one may be under way.
const (
	CommitNotAllowed int32 = iota
	CommitAllowed          // the session commits
	commitStarted          // a COMMIT was let through
)

// BeginContext is the caller's context by which the connection knows the unit.
// Only BeginTx sees it: a transaction that the function begins by itself, on
// the pool, is none of the unit's.
type BeginContext struct {
	context.Context
	Attempt      *Attempt
	DialDeadline time.Time     // a connection is waited for
	Unbounded    *atomic.Int32 // the sessions that wait for one without a limit, while this is one of them
}

// NoteServed notes that database/sql has a connection for the session.
func (c *BeginContext) NoteServed() {
	if c.Unbounded != nil {
		c.Unbounded.Add(-1)
		c.Unbounded = nil
	}
}

// noteSessionServed says whether it is a session that gets the connection, and notes
// that it does.
func noteSessionServed(ctx context.Context) bool {
	c, ok := ctx.(*BeginContext)
	if ok {
		c.NoteServed()
	}
	return ok
}

func (c *BeginContext) Value(key any) any {
	if key == (DialDeadlineKey{}) {
		return c.DialDeadline
	}
	return c.Context.Value(key)
}

// InnerUnit is a unit inside another one.
type InnerUnit interface {
	// EndedErr is why no statement of it may run any more, nil as long as one may.
	EndedErr() error
}

// prepareContext is that under which a unit inside another one prepares a
// statement.
type prepareContext struct {
	context.Context
	unit InnerUnit
}

// WithPreparingUnit returns a context under which a unit inside another one prepares a
// statement: it is not run any more when that unit has ended.
func WithPreparingUnit(ctx context.Context, unit InnerUnit) context.Context {
	return &prepareContext{ctx, unit}
}

// unsentContext tells the connection of a statement that was not sent.
type unsentContext struct {
	context.Context
	reason error
}

// WithUnsent returns a context under which the connection notes, in place of running
// it, that query was not sent, because its own context had ended with cause.
func WithUnsent(ctx context.Context, query string, cause error) context.Context {
	return &unsentContext{context.WithoutCancel(ctx), &unsentError{query, cause}}
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
