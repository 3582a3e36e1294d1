// effects.go acts on what the text of a statement tells of it: what leaves state
// on its connection has it closed when it is returned, and a unit learns of a
// transaction that ended inside of a statement. What a text tells is sqltext's
// affair.

package connector

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/sqltext"
)

// effects is what query does besides its work. It is read once, before it is
// sent. Plain statements of another driver have another grammar.
func (c *conn) effects(query string) sqltext.Effects {
	switch {
	case !c.ctr.IsMySQL && c.transaction.unit == nil:
		return 0
	case c.wire == nil || c.wire.MultiStatements:
		return sqltext.ScanSeveral(query)
	}
	return sqltext.Scan(query)
}

// mayBeMultiStatement says whether the server may take query for more than one:
// unless the client asked for that, it does not, whatever is in it.
func (c *conn) mayBeMultiStatement(query string) bool {
	return (c.wire == nil || c.wire.MultiStatements) && sqltext.Several(query)
}

// vetStatement looks at a statement of a session before it is sent, and refuses what
// would end the transaction behind the session's back.
func (c *conn) vetStatement(query string, effects sqltext.Effects) error {
	switch {
	case effects&sqltext.Ends != 0:
		return fmt.Errorf("livepool: refused in a session: %.40q would end its transaction, which its function ends by returning", query)
	case effects&sqltext.Implicit != 0 && c.transaction.unit.HasKey.Load():
		return fmt.Errorf("livepool: refused in a session with Once or VerifyCommit: %.40q commits, or may commit, and the key with it", query)
	}
	return nil
}

// noteEffects notes what the statement that is about to be sent does, and returns how
// many bytes had been written by then. What a connector that wraps this one sets
// up in its Connect, before the first use, is for all borrowers.
func (c *conn) noteEffects(ctx context.Context, query string, effects sqltext.Effects) (mark uint64, err error) {
	if effects&sqltext.State != 0 && !c.needsCheck && (c.ctr.schema == "" || sqltext.SchemaOf(query) != c.ctr.schema) {
		c.dirty = true
	}
	if unit := c.transaction.unit; unit != nil {
		if effects&sqltext.Hidden != 0 && c.ctr.IsMySQL {
			if err := c.setSentinel(ctx, query, effects); err != nil {
				return 0, err
			}
		}
		if effects&sqltext.Implicit != 0 && unit.Snapshot().ImplicitCommit == "" {
			unit.noteImplicitCommit(fmt.Sprintf("%.40s", query))
		}
	}
	return c.written(), nil
}

// sentinelSavepoint marks a unit's transaction while a statement runs in which it may
// end without an error. Units inside one another have names of another kind.
const sentinelSavepoint = "livepool_mark"

// noSuchSavepoint is ER_SP_DOES_NOT_EXIST.
const noSuchSavepoint = 1305

// sentinel is a statement under which the transaction is marked.
type sentinel struct {
	query            string // "" for none
	mayHaveCommitted bool   // it may have committed
	implicitBefore   string // what observed.implicit was before it
}

// txEndedError is of a statement that was answered and has ended its
// transaction.
type txEndedError struct {
	query            string
	mayHaveCommitted bool
	cause            error
}

func (e *txEndedError) Error() string {
	what := "was rolled back inside of it, as by a deadlock, whose error the server did not pass on; nothing of it was applied"
	if e.mayHaveCommitted {
		what = "ended inside of it, by a commit, a rollback, or a deadlock that it handles itself; what was done before it, and in it, may be committed"
	}
	return fmt.Sprintf("livepool: the server answered %.40q, but the transaction %s (a savepoint set before it is gone: %v)", e.query, what, e.cause)
}
func (e *txEndedError) Unwrap() error { return e.cause }

// setSentinel sets a savepoint by which stillMarked tells whether the
// transaction has outlived the statement.
func (c *conn) setSentinel(ctx context.Context, query string, effects sqltext.Effects) error {
	mark := c.written()
	if _, err := c.driverConn.ExecContext(ctx, "SAVEPOINT "+sentinelSavepoint, nil); err != nil {
		return c.handleFailure(ctx, err, "SAVEPOINT", mark, statementRequest)
	}
	c.touch()
	c.transaction.sentinel = sentinel{query, effects&sqltext.Implicit != 0, c.transaction.unit.Snapshot().ImplicitCommit}
	return nil
}

// checkSentinel is called after such a statement, when its results have been read.
// It poisons a transaction that has ended in it. If it has not, nothing was
// committed either.
func (c *conn) checkSentinel(ctx context.Context) error {
	t := &c.transaction
	m := t.sentinel
	t.sentinel = sentinel{}
	if m.query == "" || t.unit == nil || t.poison != nil && !t.recoverable || c.isBroken() {
		return nil
	}
	mark := c.written()
	_, err := c.driverConn.ExecContext(ctx, "RELEASE SAVEPOINT "+sentinelSavepoint, nil)
	switch {
	case err == nil:
		c.touch()
		t.unit.noteImplicitCommit(m.implicitBefore)
		return nil
	case mysqlerr.Number(err) != noSuchSavepoint:
		err = c.handleFailure(ctx, err, "RELEASE SAVEPOINT", mark, statementRequest)
	default:
		c.touch()
		err = &txEndedError{m.query, m.mayHaveCommitted, err}
		t.unit.NoteFailure(err)
	}
	if t.poison == nil || t.recoverable {
		t.poison, t.recoverable = err, false
		c.ctr.Stats.Poisoned.Add(1)
	}
	return err
}

// afterStatement is stillMarked where the statement's own error, if it has one,
// comes first.
func (c *conn) afterStatement(ctx context.Context, err error) error {
	t := &c.transaction
	switch {
	case t.sentinel.query == "":
		return err
	case err == driver.ErrSkip: // it was not sent, and will be prepared
		t.unit.noteImplicitCommit(t.sentinel.implicitBefore)
		t.sentinel = sentinel{}
		return err
	}
	if endedErr := c.checkSentinel(ctx); err == nil {
		return endedErr
	}
	return err
}
