// errors.go is what a program can ask of an error: what it is, and what it means for
// the connection, the transaction and a retry. The table of the servers' error
// numbers is in internal/mysqlerr.

package livepool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/fifo"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// ErrCommitUnknown is what errors.Is finds in the error of a commit whose
// outcome is open: COMMIT was sent, and its answer lost. The work was applied
// once or not at all.
var ErrCommitUnknown = mysqlerr.ErrCommitUnknown

// ErrPoisoned is what errors.Is finds in the error of a statement, or of a
// Commit, that came after the server had ended the transaction; the error that
// ended it is wrapped too. Such a statement is not sent: it would run outside
// the transaction, and survive its rollback.
var ErrPoisoned = connector.ErrPoisoned

// Class is what an error means: a set of the flags below. 0 is an error that
// leaves connection and transaction as good as they were, such as a duplicate
// key.
type Class uint16

const (
	// ConnDead: the connection cannot be used again.
	ConnDead = Class(mysqlerr.ConnDead)
	// NotRun: the statement was refused, or never read; it did nothing.
	NotRun = Class(mysqlerr.NotRun)
	// Elsewhere: this server will not do the work now; another one, or a new
	// connection after a failover, may.
	Elsewhere = Class(mysqlerr.Elsewhere)
	// StatementUndone: the server has undone this statement alone. What the
	// transaction did before is still there, and would be committed.
	StatementUndone = Class(mysqlerr.StatementUndone)
	// TxGone: the server has ended the transaction, or will never commit it.
	// A later statement would run outside it, and survive a rollback.
	TxGone = Class(mysqlerr.TxGone)
	// CommitUnknown: as the answer to COMMIT, or in place of one, it leaves open
	// whether the transaction was committed.
	CommitUnknown = Class(mysqlerr.CommitUnknown)
	// Retry: a unit of work that met it may succeed when it is run again.
	Retry = Class(mysqlerr.Retry)
	// BackOff: with Retry; not at once.
	BackOff = Class(mysqlerr.BackOff)
)

// String lists the flags of c.
func (c Class) String() string { return mysqlerr.Class(c).String() }

// Classify says what err means, looking through errors that wrap it. A context
// that ended is 0: it says nothing of the server. ErrCommitUnknown never says
// Retry, whatever came in place of the answer: the work may have been applied.
func Classify(err error) Class { return Class(mysqlerr.Classify(err)) }

// ErrSessionDone is what errors.Is finds in the error of a statement on a
// session that has ended: its function has returned, or the context under which
// it runs has.
var ErrSessionDone = errors.New("livepool: the session has ended")

// sessionDoneError is ErrSessionDone with what happened.
type sessionDoneError struct {
	unit   string
	cause  error // the context's, nil when the function has returned
	outage error // why the server could not be reached by then, nil if it was not waited for
}

func (e *sessionDoneError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("livepool: the session of %s has ended: its function has returned, and with it the transaction", e.unit)
	}
	text := fmt.Sprintf("livepool: the session of %s has ended, and nothing of it is committed: its context ended: %v", e.unit, e.cause)
	if e.outage != nil {
		text += fmt.Sprintf("; until then it waited for a connection, and the server could not be reached: %v", e.outage)
	}
	return text
}

func (e *sessionDoneError) Is(target error) bool { return target == ErrSessionDone }
func (e *sessionDoneError) Unwrap() error        { return errors.Join(e.cause, e.outage) }

// ErrPoolClosed is what errors.Is finds in the error of a unit that needed a connection
// after Close. Nothing of it was applied.
var ErrPoolClosed = connector.ErrPoolClosed

// ErrUnreachable is what errors.Is finds in the error of a unit or statement for which no
// connection could be opened: the server cannot be reached, is full or does not answer.
// It was not sent; under Idempotent it may have been, on an earlier connection.
var ErrUnreachable = mysqlerr.ErrUnreachable

// UnitError is the error of WithSession, Job, Do and Retry, if livepool has something to
// say of it; a function's own error is returned as it is.
type UnitError struct {
	Name     string        // of the unit, see the option Name
	Key      string        // of Once or VerifyCommit, "" for none
	Attempts int           // how often it was tried
	Elapsed  time.Duration // since it began
	Reason   string        // why it was not tried again, "" if Err says so
	Err      error         // of the last attempt

	retryable  bool
	keyTells   bool // its COMMIT is unknown, and another delivery finds its key or not
	idempotent bool // it is a function of Retry, of which something may have run
}

// Error has the cause first, then what was tried, then what to do.
func (e *UnitError) Error() string {
	cause := strings.NewReplacer("livepool: ", "", "\n", "; ").Replace(e.Err.Error())
	text := fmt.Sprintf("livepool: %s; %s failed after %d attempt(s) in %s", cause, e.Name, e.Attempts, e.Elapsed.Round(time.Millisecond))
	if e.Key != "" {
		text += fmt.Sprintf(" (key %q)", e.Key)
	}
	if e.Reason != "" {
		text += ", " + e.Reason
	}
	switch {
	case e.retryable && e.idempotent:
		text += "; run it again later"
	case e.keyTells:
		text = strings.Replace(text, ": look at the data before you repeat it", "", 1) + "; deliver it again: its key tells"
	case e.retryable:
		text += "; nothing of it was applied: deliver it again later"
	}
	return text
}

func (e *UnitError) Unwrap() error { return e.Err }

// Retryable says whether a job that failed with err may be delivered again with hope:
// nothing of its unit was applied, and the cause may pass. That is so for an outage, an
// exhausted or closed pool, attempts that are used up and a context that ended. It is
// false for nil, for ErrCommitUnknown (which is to be looked at, or delivered again if the
// unit has Once), for the function's own error, and for one that will not pass. It is for
// the errors of WithSession, Job, Do and Retry; of a plain statement it only knows that
// the server could not be reached. docs/errors.md has what to do with each.
func Retryable(err error) bool {
	var unit *UnitError
	switch {
	case errors.As(err, &unit) && (errors.Is(unit.Err, ErrCommitUnknown) || !errors.Is(err, ErrCommitUnknown)):
		return unit.retryable
	case errors.Is(err, ErrCommitUnknown): // beside a unit, or without one
		return false
	}
	return errors.Is(err, ErrUnreachable) || isUnstarted(err)
}

// isUnstarted says whether err is of a unit that got no connection, or whose context has
// ended: nothing of it was applied. A session that is used after its function has returned
// is a mistake, and will not pass.
func isUnstarted(err error) bool {
	var done *sessionDoneError
	return errors.Is(err, ErrPoolTimeout) || errors.Is(err, ErrPoolClosed) || errors.As(err, &done) && done.cause != nil
}

// contextError is why a context has ended: its error, and the cause where it was
// given one. It is nil as long as it has not.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == nil || cause == err {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// ErrPoolTimeout is what errors.Is finds in the error of a session that waited
// for a connection longer than PoolTimeout.
var ErrPoolTimeout = fifo.ErrTimeout

// poolTimeout is the error of a session that has waited for its place, or its
// connection, in vain.
func (p *Pool) poolTimeout(unit string, waited time.Duration) error {
	st := p.DB.Stats()
	e := p.queue.TimeoutError(unit, waited)
	e.OpenConns, e.LastErr = st.InUse, p.ctr.Outage.LastError()
	if st.MaxOpenConnections != p.ctr.Cfg.MaxOpenConns() {
		e.Limit = st.MaxOpenConnections
	}
	return e
}
