// tx.go watches a transaction: once the server has ended it nothing more runs in it, and
// COMMIT says what is known of its outcome. It holds for a plain sql.Tx as for a
// session. It retries nothing.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/sqltext"
)

// ErrPoisoned is what errors.Is finds in the error of a statement, or of a
// Commit, that came after the server had ended the transaction; the error that
// ended it is wrapped too. Such a statement is not sent: it would run outside
// the transaction, and survive its rollback.
var ErrPoisoned = errors.New("livepool: the transaction is over")

// poisonedError is ErrPoisoned with what was refused, and why.
type poisonedError struct {
	refused     string // the request
	cause       error
	recoverable bool // by a rollback to a savepoint
}

func (e *poisonedError) Error() string {
	if inside := (*txEndedError)(nil); errors.As(e.cause, &inside) && inside.mayHaveCommitted {
		return fmt.Sprintf("livepool: %s: the transaction is over: %v", e.refused, e.cause)
	}
	if e.recoverable {
		return fmt.Sprintf("livepool: %s: an earlier statement of the unit failed, and without it nothing of the unit is applied, "+
			"unless its function had it undone by a rollback to a savepoint: %v", e.refused, e.cause)
	}
	return fmt.Sprintf("livepool: %s: the transaction was ended by an earlier error, and nothing of it was applied: %v", e.refused, e.cause)
}
func (e *poisonedError) Is(target error) bool { return target == ErrPoisoned }
func (e *poisonedError) Unwrap() error        { return e.cause }

// commitUnknownError is ErrCommitUnknown with what happened.
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
func (e *commitUnknownError) Is(target error) bool { return target == mysqlerr.ErrCommitUnknown }
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

// failedEndError refuses what comes after a COMMIT or ROLLBACK that failed. On it database/sql
// closes a sql.Conn.
type failedEndError struct {
	addr     string
	threadID uint32
	cause    error
}

func (e *failedEndError) Error() string {
	return fmt.Sprintf("livepool: connection %d to %s is not used any more: the end of its last transaction failed, "+
		"which may still be open there; nothing was sent: %v", e.threadID, e.addr, e.cause)
}
func (e *failedEndError) Is(target error) bool  { return target == driver.ErrBadConn }
func (e *failedEndError) Unwrap() error         { return e.cause }
func (e *failedEndError) Class() mysqlerr.Class { return mysqlerr.NotSent }

// tx wraps the open transaction of a connection, which has one at a time. It is part of
// its conn, so that it costs no allocation.
type tx struct {
	c        *conn
	driverTx driver.Tx
}

// transaction is what a connection knows of its open transaction. Its owner writes it,
// during a request; the maintainer reads it while the connection is parked and reserved.
type transaction struct {
	open bool
	// poison is the error that ended it, nil while it can be committed.
	poison error
	// recoverable: the server has undone one statement only, and a rollback to a
	// savepoint clears the poison.
	recoverable bool
	// unit is the attempt of a unit of work whose transaction it is, nil for a
	// plain one.
	unit *Attempt
	// readOnly: it was begun as read-only, and has nothing to commit.
	readOnly bool
	// requests is how many were begun in it, those for a sentinel included.
	requests int
	// sentinel is the statement after which the server must be asked whether the
	// transaction still exists.
	sentinel sentinel
}

// begin notes a transaction that was begun under ctx, which database/sql passes on
// unchanged.
func (t *transaction) begin(ctx context.Context, readOnly bool) {
	t.open, t.unit, t.readOnly, t.requests = true, nil, readOnly, 0
	if unit, ok := ctx.(*BeginContext); ok {
		t.unit = unit.Attempt
	}
}

// noteTxError records an error inside a transaction. An error that ended the transaction
// poisons it. In a session so does every error that the function may not swallow
// (handlederrors.go): the other statements must not be committed without the failed one.
func (c *conn) noteTxError(err error, query string, ran extent) {
	t := &c.transaction
	class := c.classify(err)
	txGone := class&mysqlerr.TxGone != 0 || c.isBroken()
	if !t.open || t.poison != nil && !(t.recoverable && txGone) {
		return
	}
	switch maySwallow := t.unit == nil || c.maySwallow(err, query, ran); {
	case txGone, maySwallow && mysqlerr.Number(err) == lockWaitTimeout && c.facts.lockWaitMayEndTx():
		t.poison, t.recoverable = err, false
	case !maySwallow:
		t.poison, t.recoverable = err, true
	case t.unit != nil:
		return
	}
	if t.poison != nil {
		c.ctr.Stats.Poisoned.Add(1)
	}
	if t.unit != nil && txGone && ran != ranNothing && c.mayBeCausedByStatement(err) {
		t.unit.noteLostStatement(Statement{query, t.requests})
	}
	if class&mysqlerr.Retry == 0 {
		return
	}
	if t.unit != nil {
		t.unit.NoteFailure(err)
	}
	if class&mysqlerr.Elsewhere != 0 {
		c.noteWriteRefusal(err)
	}
}

// mayRun refuses a statement that would run outside the transaction for which it is
// meant.
func (c *conn) mayRun(query string) error {
	t := &c.transaction
	if t.poison == nil || t.recoverable && sqltext.RollsBackToSavepoint(query) {
		return nil
	}
	return &poisonedError{"statement refused", t.poison, t.recoverable}
}

// noteRecovery clears the poison after a successful rollback to a savepoint, which
// proves that the transaction exists.
func (c *conn) noteRecovery() {
	t := &c.transaction
	t.poison, t.recoverable = nil, false
	t.unit.noteRecovery()
}

// errResultOpen is returned for a statement while a result is still being read: the
// protocol does not allow it, and the driver does not always notice.
var errResultOpen = errors.New("livepool: the result of an earlier query is still open on this connection: read it to its end or close it before the next statement")

// lockWaitTimeout is ER_LOCK_WAIT_TIMEOUT.
const lockWaitTimeout = 1205

// Commit commits, within CommitTimeout. The error says what is known: nil, it is
// committed; ErrCommitUnknown, unknown; ErrPoisoned and any other error, certainly not
// committed. COMMIT is never sent again.
func (t *tx) Commit() error {
	defer t.c.endTx()
	return t.c.hideBadConn(t.commit())
}

func (t *tx) commit() error {
	c := t.c
	if c.failedEnd != nil { // of another one that was begun on it
		return &notCommittedError{c.addr(), c.threadID(), c.failedEnd}
	}
	if err := c.resumeBounded(); err != nil {
		return &notCommittedError{c.addr(), c.threadID(), err}
	}
	if unit := c.transaction.unit; unit != nil && !unit.CommitState.CompareAndSwap(CommitAllowed, commitStarted) {
		unit.CommitTriedByOther.Store(true)
		_ = t.rollback()
		return errors.New("livepool: commit refused, and rolled back: the transaction is a session's, which commits when its function returns")
	}
	if err := c.mayRun("COMMIT"); err != nil {
		_ = t.rollback()
		return &poisonedError{"commit refused", c.transaction.poison, c.transaction.recoverable}
	}
	if err := c.checkBeforeCommit(); err != nil {
		c.noteFailedEnd(err)
		c.abandon()
		if c.isBroken() {
			c.reportLoss(err)
		} else { // only the socket shows the loss
			c.ctr.reportIdleLoss(&c.link, err)
		}
		return &notCommittedError{c.addr(), c.threadID(), err}
	}
	if err := c.leftForAnother(); err != nil {
		c.noteFailedEnd(err)
		c.abandon()
		return &notCommittedError{c.addr(), c.threadID(), err}
	}
	c.requestStarted = c.ctr.clock.Earliest()
	start, mark := c.requestStarted, c.written()
	c.wire.SetLimit(c.ctr.Cfg.CommitTimeout)
	err := c.asUnsolicited(t.driverTx.Commit())
	c.wire.ClearLimit()
	if err == nil {
		c.touch()
		if unit := c.transaction.unit; unit != nil && unit.Key != "" {
			c.ctr.servers.noteCommit(unit.Server(), unit.Key)
		}
		return nil
	}
	c.dead = true
	if !hasEndedTx(err, c.classify(err)) {
		c.noteFailedEnd(err)
	}
	_ = c.handleFailure(context.Background(), err, "COMMIT", mark, statementRequest)
	switch {
	case c.wire == nil && errors.Is(err, driver.ErrBadConn), c.wire != nil && c.written() == mark: // ErrBadConn is no proof: TLS says that nothing was written where all was
		return &notCommittedError{c.addr(), c.threadID(), err}
	case mysqlerr.Number(err) != 0 && isCommitRefusal(c.classify(err)):
		return err
	}
	c.ctr.Stats.CommitsUnknown.Add(1)
	return &commitUnknownError{c.addr(), c.threadID(), c.ctr.clock.Now() - start, err, c.ioCause(nil)}
}

// noteFailedEnd notes that COMMIT or ROLLBACK has failed: whatever is left of the transaction ends
// with the connection, on which nothing more is sent. On one that is closed nothing can be.
func (c *conn) noteFailedEnd(err error) {
	c.dead = true
	if !c.isBroken() {
		c.failedEnd = err
	}
}

// hasEndedTx says whether the error is that of a server that has rolled the transaction back.
func hasEndedTx(err error, class mysqlerr.Class) bool {
	return mysqlerr.Number(err) != 0 && class&mysqlerr.TxGone != 0 && class&(mysqlerr.NotRun|mysqlerr.ConnDead|mysqlerr.CommitUnknown) == 0
}

// isCommitRefusal says whether a server's error in answer to COMMIT proves that
// nothing was committed. An error that livepool does not know proves nothing.
func isCommitRefusal(class mysqlerr.Class) bool {
	return class&mysqlerr.CommitUnknown == 0 && class&(mysqlerr.NotRun|mysqlerr.TxGone|mysqlerr.StatementUndone) != 0
}

// checkBeforeCommit finds a connection that is lost before COMMIT is sent. Afterwards
// the driver has the same error for a loss before and after, and the outcome would be
// unknown.
func (c *conn) checkBeforeCommit() error {
	switch {
	case c.ctr.IsMySQL && !c.driverConn.IsValid():
		return mysql.ErrInvalidConn
	case c.wire != nil && c.ctr.peekSockets:
		if err := c.wire.Peek(); err != nil {
			c.requestStarted = c.ctr.clock.Earliest()
			return c.recordParkedLoss(err)
		}
	case c.ctr.IsMySQL: // its ResetSession only checks the socket
		if c.driverConn.ResetSession(context.Background()) != nil {
			return mysql.ErrInvalidConn
		}
	}
	return nil
}

// leftForAnother is why nothing may be committed on a host that the pool has left for another one
// which takes writes, nil if it has not: what the old primary commits is lost. In a Galera cluster
// the commit of any node counts, and one that is out of it refuses the COMMIT; and two addresses,
// as of two balancers, may lead to one server.
func (c *conn) leftForAnother() error {
	if !c.ctr.followsPrimary() || c.transaction.readOnly || c.ctr.InCluster.Load() {
		return nil
	}
	i, known := c.ctr.hostSet.Primary()
	if !known {
		return nil
	}
	primary := c.ctr.hosts()[i]
	if server := primary.server.Load(); primary.isOf(c.host) || server != nil && *server == *c.server {
		return nil
	}
	return fmt.Errorf("%w: the pool has left this host for %s, which takes writes now", mysql.ErrInvalidConn, primary.addr)
}

// Rollback rolls back, within CommitTimeout. If that fails the connection is closed, and
// the server rolls back then.
func (t *tx) Rollback() error {
	defer t.c.endTx()
	if err := t.c.resumeBounded(); err != nil {
		return t.c.hideBadConn(err) // the server rolls back when the connection is closed
	}
	return t.c.hideBadConn(t.rollback())
}

func (t *tx) rollback() error {
	c := t.c
	mark := c.written()
	c.wire.SetLimit(c.ctr.Cfg.CommitTimeout)
	err := t.driverTx.Rollback()
	c.wire.ClearLimit()
	if err == nil {
		c.touch()
		return nil
	}
	c.noteFailedEnd(err)
	_ = c.handleFailure(context.Background(), err, "ROLLBACK", mark, statementRequest)
	return err
}

// endTx notes the end of the transaction, and clears its poison and sentinel.
func (c *conn) endTx() {
	t := &c.transaction
	c.openTxs--
	t.open, t.unit = false, nil
	if t.poison != nil || t.sentinel.query != "" {
		*t = transaction{}
	}
	c.park()
}
