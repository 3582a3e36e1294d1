// tx.go keeps a transaction honest: once the server has ended it nothing more
// runs in it, and COMMIT says what is known of its outcome. It holds for plain
// sql.Tx as for sessions. It retries nothing.

package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/sqltext"
)

// ErrPoisoned is what errors.Is finds in the error of a statement, or of a
// Commit, that came after the server had ended the transaction; the error that
// ended it is wrapped too. Such a statement is not sent: it would run outside
// the transaction, and survive its rollback.
var ErrPoisoned = errors.New("livepool: the transaction is over")

// ErrCommitUnknown is what errors.Is finds in the error of a commit whose
// outcome is open: COMMIT was sent, and its answer lost. The work was applied
// once or not at all.
var ErrCommitUnknown = errors.New("livepool: the outcome of the commit is unknown")

// poisonedError is ErrPoisoned with its story.
type poisonedError struct {
	what    string // what was asked for
	cause   error
	curable bool // by a rollback to a savepoint
}

func (e *poisonedError) Error() string {
	if inside := (*endedInsideError)(nil); errors.As(e.cause, &inside) && inside.commits {
		return fmt.Sprintf("livepool: %s: the transaction is over: %v", e.what, e.cause)
	}
	if e.curable {
		return fmt.Sprintf("livepool: %s: an earlier statement of the unit failed, and without it nothing of the unit is applied, "+
			"unless its function had it undone by a rollback to a savepoint: %v", e.what, e.cause)
	}
	return fmt.Sprintf("livepool: %s: the transaction was ended by an earlier error, and nothing of it was applied: %v", e.what, e.cause)
}
func (e *poisonedError) Is(target error) bool { return target == ErrPoisoned }
func (e *poisonedError) Unwrap() error        { return e.cause }

// commitUnknownError is ErrCommitUnknown with its story.
type commitUnknownError struct {
	addr     string
	threadID uint32
	took     time.Duration
	cause    error
	socket   error
}

func (e *commitUnknownError) Error() string {
	text := fmt.Sprintf("livepool: the outcome of the commit is unknown: COMMIT was sent on connection %d to %s and not answered within %s: %v",
		e.threadID, e.addr, e.took.Round(time.Millisecond), e.cause)
	if e.socket != nil && e.socket != e.cause {
		text += fmt.Sprintf(" (%v)", e.socket)
	}
	return text + "; the work was applied once or not at all: look at the data before you repeat it"
}
func (e *commitUnknownError) Is(target error) bool { return target == ErrCommitUnknown }
func (e *commitUnknownError) Unwrap() error        { return e.cause }

// notCommittedError is a commit that certainly did not happen, because the
// connection was lost before COMMIT was sent.
type notCommittedError struct {
	addr     string
	threadID uint32
	cause    error
}

func (e *notCommittedError) Error() string {
	return fmt.Sprintf("livepool: nothing was committed: connection %d to %s was lost before COMMIT was sent: %v",
		e.threadID, e.addr, e.cause)
}
func (e *notCommittedError) Unwrap() error { return e.cause }

// tx wraps the one transaction that a connection has at a time; it lives in
// its conn, so that it costs no allocation.
type tx struct {
	c     *conn
	inner driver.Tx
}

// transaction is what a connection knows of the one that is open on it.
type transaction struct {
	open bool
	// poison is what ended it, nil while it can be committed.
	poison error
	// curable: the server has undone one statement only, so that a rollback to
	// a savepoint makes the transaction whole again.
	curable bool
	// unit is the attempt of a unit of work whose transaction it is, nil for a
	// plain one.
	unit *attempt
	// marked is the statement after which it must be asked whether there still is
	// this transaction.
	marked marked
}

// begins notes a transaction that was begun under ctx, which database/sql hands
// down as it gets it.
func (t *transaction) begins(ctx context.Context) {
	t.open, t.unit = true, nil
	if unit, ok := ctx.(*beginContext); ok {
		t.unit = unit.a
	}
}

// suffers notes an error inside a transaction. Whatever ended the transaction
// poisons it; a session is stricter, because a function that swallows the error
// of one statement must not have the others committed, but for errors that a
// correct program handles (see swallow.go).
func (c *conn) suffers(err error, query string, ran extent) {
	t := &c.transaction
	class := c.classify(err)
	gone := class&TxGone != 0 || c.isGone()
	if !t.open || t.poison != nil && !(t.curable && gone) {
		return
	}
	switch handled := t.unit == nil || c.maySwallow(err, query, ran); {
	case gone, handled && errorNumber(err) == lockWaitTimeout && c.facts.mayEndTx():
		t.poison, t.curable = err, false
	case !handled:
		t.poison, t.curable = err, true
	case t.unit != nil:
		return
	}
	if t.poison != nil {
		c.ctr.stats.poisoned.Add(1)
	}
	if t.unit != nil && gone && ran != ranNothing && c.blames(err) {
		t.unit.lostOver(query)
	}
	if t.unit == nil || class&Retry == 0 {
		return
	}
	t.unit.fails(err)
	if class&Elsewhere != 0 && !isNotReady(err) {
		c.refusedWrite()
	}
}

// mayRun refuses what would run outside the transaction that it is meant for.
func (c *conn) mayRun(query string) error {
	t := &c.transaction
	if t.poison == nil || t.curable && sqltext.RollsBackToSavepoint(query) {
		return nil
	}
	return &poisonedError{"statement refused", t.poison, t.curable}
}

// cured notes a statement that ran although the transaction was poisoned: the
// rollback to a savepoint, by whose success the transaction is known to exist.
func (c *conn) cured() {
	t := &c.transaction
	t.poison, t.curable = nil, false
	t.unit.recovers()
}

// errResultOpen is in place of a query sent into the middle of a result, which
// the protocol does not allow and the driver does not always notice.
var errResultOpen = errors.New("livepool: the result of an earlier query is still open on this transaction: read it to its end or close it before the next statement")

// lockWaitTimeout is ER_LOCK_WAIT_TIMEOUT.
const lockWaitTimeout = 1205

// Commit commits, within CommitTimeout, and says what is known of the outcome:
// nil, done; ErrPoisoned, or any other error but one, certainly not done;
// ErrCommitUnknown, open. It is never sent again.
func (t *tx) Commit() error {
	defer t.c.ends()
	return t.c.withheld(t.commit())
}

func (t *tx) commit() error {
	c := t.c
	if err := c.resumeToEnd(); err != nil {
		return &notCommittedError{c.ctr.addr, c.threadID(), err}
	}
	if unit := c.transaction.unit; unit != nil && !unit.ending.CompareAndSwap(mayCommit, committing) {
		unit.usurped.Store(true)
		_ = t.rollback()
		return errors.New("livepool: commit refused, and rolled back: the transaction is a session's, which commits when its function returns")
	}
	if err := c.mayRun("COMMIT"); err != nil {
		_ = t.rollback()
		return &poisonedError{"commit refused", c.transaction.poison, c.transaction.curable}
	}
	if err := c.lostBeforeCommit(); err != nil {
		c.dead = true
		c.abandoned()
		if c.isGone() {
			c.mourn(err)
		} else { // only the look at the socket knows
			c.ctr.mournIdle(&c.link, err)
		}
		return &notCommittedError{c.ctr.addr, c.threadID(), err}
	}
	c.entered, _ = c.ctr.clock.bounds()
	start, mark := c.entered, c.written()
	c.wire.limit(c.ctr.cfg.CommitTimeout)
	err := c.unasked(t.inner.Commit())
	c.wire.unlimit()
	if err == nil {
		c.prove()
		return nil
	}
	c.dead = true // whatever is left of the transaction goes with the connection
	_ = c.failed(context.Background(), err, "COMMIT", mark, effectUnknown)
	switch {
	case errors.Is(err, driver.ErrBadConn), c.wire != nil && c.written() == mark:
		return &notCommittedError{c.ctr.addr, c.threadID(), err}
	case errorNumber(err) != 0 && refusesCommit(c.classify(err)):
		return err
	}
	c.ctr.stats.commitsUnknown.Add(1)
	return &commitUnknownError{c.ctr.addr, c.threadID(), c.ctr.clock.now() - start, err, c.cause(nil)}
}

// refusesCommit says whether a server's error in answer to COMMIT proves that
// nothing was committed. An error that livepool does not know proves nothing.
func refusesCommit(class Class) bool {
	return class&CommitUnknown == 0 && class&(NotRun|TxGone|StatementUndone) != 0
}

// lostBeforeCommit tells a connection that is gone before COMMIT is sent from
// one that is lost after it, for which the driver has the same error.
func (c *conn) lostBeforeCommit() error {
	switch {
	case c.ctr.mysql && !c.inner.IsValid():
		return mysql.ErrInvalidConn
	case c.wire != nil && c.ctr.peeks:
		if err := c.wire.peek(); err != nil {
			c.entered, _ = c.ctr.clock.bounds()
			return c.lostAtRest(err)
		}
	case c.ctr.mysql: // whose ResetSession only looks
		if c.inner.ResetSession(context.Background()) != nil {
			return mysql.ErrInvalidConn
		}
	}
	return nil
}

// Rollback rolls back, within CommitTimeout. A connection on which that fails
// is closed, by which the server rolls back.
func (t *tx) Rollback() error {
	defer t.c.ends()
	if err := t.c.resumeToEnd(); err != nil {
		return t.c.withheld(err) // and the server rolls back, when the connection is closed
	}
	return t.c.withheld(t.rollback())
}

func (t *tx) rollback() error {
	c := t.c
	mark := c.written()
	c.wire.limit(c.ctr.cfg.CommitTimeout)
	err := t.inner.Rollback()
	c.wire.unlimit()
	if err == nil {
		c.prove()
		return nil
	}
	c.dead = true
	_ = c.failed(context.Background(), err, "ROLLBACK", mark, effectUnknown)
	return err
}

// ends notes the end of the transaction. What there was of doubt is gone too.
func (c *conn) ends() {
	t := &c.transaction
	t.open, t.unit = false, nil
	if t.poison != nil || t.marked.query != "" {
		*t = transaction{}
	}
	c.rest()
}
