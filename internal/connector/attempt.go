// attempt.go is what a connection and the unit of work on it know about each other, and
// the contexts by which the unit makes itself known.

package connector

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/proclist"
)

// Attempt is one attempt at a unit of work, as the session and its connection share it.
type Attempt struct {
	Name               string                          // of the unit; set before the attempt begins
	Key                string                          // of the unit, "" for none; likewise
	Orphan             atomic.Pointer[proclist.Orphan] // what it has left on the server; the connection writes it
	HasKey             atomic.Bool                     // its key is in the transaction; the session writes it
	CommitState        atomic.Int32                    // CommitNotAllowed and so on; both write it
	CommitTriedByOther atomic.Bool                     // a COMMIT through Session.Tx was refused; the connection writes it

	server   atomic.Pointer[string] // on which its transaction was begun; the connection writes it
	mu       sync.Mutex             // guards observed: a statement may still be under way while the session reads it
	observed Observed               // the connection writes it
}

// Statement is one of a unit: its text, and its place among what the unit sends.
type Statement struct {
	Query  string
	number int
}

// Observed is what the connection saw of a transaction that decides whether its unit may
// be run again.
type Observed struct {
	Failure        error     // a failure for which it may be run again
	Recovered      error     // such a failure that a rollback to a savepoint has undone
	ImplicitCommit string    // the first statement that commits, or may commit, implicitly; "" for none
	LostStatement  Statement // during which the connection was lost; the zero one for none
}

// Server is the name of the server on which the transaction was begun, or one of several hosts
// that does not say it; "" if neither is known.
func (a *Attempt) Server() string {
	if name := a.server.Load(); name != nil {
		return *name
	}
	return ""
}

// NoteFailure records a failure for which the unit may be run again.
func (a *Attempt) NoteFailure(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.Failure = err
}

// noteLostStatement records the statement during which the connection was lost.
func (a *Attempt) noteLostStatement(lost Statement) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.LostStatement = lost
}

// ForgetLostStatement says that this statement, if it was the one, is not to blame.
func (a *Attempt) ForgetLostStatement(query string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.observed.LostStatement.Query == query {
		a.observed.LostStatement = Statement{}
	}
}

// noteRecovery records that a rollback to a savepoint has undone the failure.
func (a *Attempt) noteRecovery() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.observed.Failure != nil {
		a.observed.Recovered, a.observed.Failure = a.observed.Failure, nil
	}
}

// noteImplicitCommit records a statement that commits, or may commit, implicitly; "" means
// that none does.
func (a *Attempt) noteImplicitCommit(query string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.observed.ImplicitCommit = query
}

// Snapshot returns what was observed so far.
func (a *Attempt) Snapshot() Observed {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.observed
}

// The values of Attempt.CommitState. Only the session's own COMMIT may be sent, because
// only its outcome is reported; through Session.Tx the function may try another.
const (
	CommitNotAllowed int32 = iota
	CommitAllowed          // the session is committing
	commitStarted          // a COMMIT was sent
)

// CommitWasSent says whether a COMMIT of the unit was sent.
func (a *Attempt) CommitWasSent() bool { return a.CommitState.Load() == commitStarted }

// BeginContext is the context under which a session begins its transaction, by which the
// connection knows the unit. Only BeginTx gets it: a transaction that the function itself
// begins on the pool is not the unit's.
type BeginContext struct {
	context.Context
	Attempt      *Attempt
	DialDeadline time.Time     // until when a connection is waited for; zero: no limit
	Unbounded    *atomic.Int32 // counts the sessions that wait without a limit; nil when this is not one of them
	MayRunAgain  bool          // the unit may have another attempt after this one
	NeedsPrimary bool          // the unit may not begin on a host that was the primary
}

// NoteServed records that database/sql has a connection for the session.
func (c *BeginContext) NoteServed() {
	if c.Unbounded != nil {
		c.Unbounded.Add(-1)
		c.Unbounded = nil
	}
}

// noteSessionServed says whether a session gets the connection, and if so records that
// it is served.
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
	// EndedErr is why no statement of it may run any more; nil as long as one may.
	EndedErr() error
}

// prepareContext is the context under which an inner unit prepares a statement.
type prepareContext struct {
	context.Context
	unit InnerUnit
}

// WithPreparingUnit returns a context under which unit prepares a statement: the
// statement cannot be run after the unit has ended.
func WithPreparingUnit(ctx context.Context, unit InnerUnit) context.Context {
	return &prepareContext{ctx, unit}
}

// unsentContext tells the connection about a statement that was not sent.
type unsentContext struct {
	context.Context
	reason error
}

// WithUnsent returns a context under which the connection does not run query but records
// that it was not sent, because its own context had ended with cause.
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
