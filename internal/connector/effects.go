// effects.go acts on what package sqltext says about a statement: a connection on which a
// statement left state is closed when it is returned, and a unit learns that a statement
// ended its transaction.

package connector

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"

	"github.com/livepool/livepool/internal/committable"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/sqltext"
)

// effects is what query does besides its work. It is read once, before query is sent.
// Outside units the statements of another driver, with another grammar, are not read.
func (c *conn) effects(query string) sqltext.Effects {
	scan := sqltext.Scan
	switch {
	case !c.ctr.IsMySQL && c.transaction.unit == nil:
		return 0
	case c.wire == nil || c.wire.MultiStatements:
		scan = sqltext.ScanSeveral
	}
	effects := scan(query)
	if effects != 0 { // of a comment that is executed, unless it is livepool's own
		if rest, isOwn := strings.CutSuffix(query, committable.IfCommitted); isOwn {
			return scan(rest)
		}
	}
	return effects
}

// mayBeMultiStatement says whether the server may read query as several statements. It
// never does unless the client asked for that at its login.
func (c *conn) mayBeMultiStatement(query string) bool {
	return (c.wire == nil || c.wire.MultiStatements) && sqltext.Several(query)
}

// vetStatement refuses, before it is sent, a statement that would end the session's
// transaction.
func (c *conn) vetStatement(query string, effects sqltext.Effects) error {
	switch {
	case effects&sqltext.Ends != 0:
		return fmt.Errorf("livepool: refused in a session: %.40q would end its transaction, which its function ends by returning", query)
	case effects&sqltext.Implicit != 0 && c.transaction.unit.HasKey.Load():
		return fmt.Errorf("livepool: refused in a session with Once or VerifyCommit: %.40q commits, or may commit, and the key with it", query)
	}
	return nil
}

// noteEffects records what the statement that is about to be sent does, and returns how
// many bytes were written before it. State that a connector that wraps this one sets up
// in its Connect, before the first use, is for all users.
func (c *conn) noteEffects(ctx context.Context, query string, effects sqltext.Effects) (mark uint64, err error) {
	if effects&sqltext.State != 0 && !c.needsCheck && (c.ctr.schema == "" || sqltext.SchemaOf(query) != c.ctr.schema) {
		c.dirty = true
	}
	if unit := c.transaction.unit; unit != nil {
		if effects&sqltext.Hidden != 0 && c.ctr.IsMySQL {
			if effects&sqltext.Implicit != 0 {
				c.ctr.unitsCall.Store(true)
			}
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

// sentinelSavepoint is set in a unit's transaction before a statement that may end it
// without an error. Inner units have savepoints with other names.
const sentinelSavepoint = "livepool_mark"

// noSuchSavepoint is ER_SP_DOES_NOT_EXIST.
const noSuchSavepoint = 1305

// sentinel is the statement for which the savepoint is set. Whoever has the conn writes it.
type sentinel struct {
	query            string // "" for none
	mayHaveCommitted bool   // it may commit
	implicitBefore   string // Observed.ImplicitCommit before it
}

// txEndedError is the error of a statement that was answered and has ended its
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

// setSentinel sets a savepoint, by which checkSentinel finds out whether the transaction
// survived the statement.
func (c *conn) setSentinel(ctx context.Context, query string, effects sqltext.Effects) error {
	mark := c.written()
	if _, err := c.driverConn.ExecContext(ctx, "SAVEPOINT "+sentinelSavepoint, nil); err != nil {
		return c.handleFailure(ctx, err, "SAVEPOINT", mark, statementRequest)
	}
	c.touch()
	c.transaction.sentinel = sentinel{query, effects&sqltext.Implicit != 0, c.transaction.unit.Snapshot().ImplicitCommit}
	return nil
}

// checkSentinel is called after such a statement, when its results have been read. It
// poisons the transaction if that ended in the statement. If it did not, the statement
// has committed nothing.
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

// afterStatement calls checkSentinel after a statement with err, which is returned if
// there is one.
func (c *conn) afterStatement(ctx context.Context, err error) error {
	t := &c.transaction
	switch {
	case t.sentinel.query == "":
		return err
	case err == driver.ErrSkip: // it was not sent: database/sql prepares it
		t.unit.noteImplicitCommit(t.sentinel.implicitBefore)
		t.sentinel = sentinel{}
		return err
	}
	if endedErr := c.checkSentinel(ctx); err == nil {
		return endedErr
	}
	return err
}
