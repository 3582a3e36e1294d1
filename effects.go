// effects.go acts on what the text of a statement tells of it: what leaves state
// on its connection has it closed when it is returned, and a unit learns of a
// transaction that ended inside of a statement. What a text tells is sqltext's
// affair.

package livepool

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/livepool/livepool/internal/sqltext"
)

// effects is what query does besides its work. It is read once, before it is
// sent. Plain statements of another driver have another grammar.
func (c *conn) effects(query string) sqltext.Effects {
	switch {
	case !c.ctr.mysql && c.transaction.unit == nil:
		return 0
	case c.wire == nil || c.wire.several:
		return sqltext.ScanSeveral(query)
	}
	return sqltext.Scan(query)
}

// severalStatements says whether the server may take query for more than one:
// unless the client asked for that, it does not, whatever is in it.
func (c *conn) severalStatements(query string) bool {
	return (c.wire == nil || c.wire.several) && sqltext.Several(query)
}

// screen looks at a statement of a session before it is sent, and refuses what
// would end the transaction behind the session's back.
func (c *conn) screen(query string, seen sqltext.Effects) error {
	switch {
	case seen&sqltext.Ends != 0:
		return fmt.Errorf("livepool: refused in a session: %.40q would end its transaction, which its function ends by returning", query)
	case seen&sqltext.Implicit != 0 && c.transaction.unit.keyed.Load():
		return fmt.Errorf("livepool: refused in a session with Once or VerifyCommit: %.40q commits, or may commit, and the key with it", query)
	}
	return nil
}

// runs notes what the statement that is about to be sent does, and returns how
// many bytes had been written by then. What a connector that wraps this one sets
// up in its Connect, before the first use, is for all borrowers.
func (c *conn) runs(ctx context.Context, query string, seen sqltext.Effects) (mark uint64, err error) {
	if seen&sqltext.State != 0 && !c.unchecked && (c.ctr.schema == "" || sqltext.SchemaOf(query) != c.ctr.schema) {
		c.stained = true
	}
	if unit := c.transaction.unit; unit != nil {
		if seen&sqltext.Hidden != 0 && c.ctr.mysql {
			if err := c.markTransaction(ctx, query, seen); err != nil {
				return 0, err
			}
		}
		if seen&sqltext.Implicit != 0 && unit.soFar().implicit == "" {
			unit.commitsImplicitly(fmt.Sprintf("%.40s", query))
		}
	}
	return c.written(), nil
}

// markSavepoint marks a unit's transaction while a statement runs in which it may
// end without an error. Units inside one another have names of another kind.
const markSavepoint = "livepool_mark"

// savepointUnknown is ER_SP_DOES_NOT_EXIST.
const savepointUnknown = 1305

// marked is a statement under which the transaction is marked.
type marked struct {
	query    string // "" for none
	commits  bool   // it may have committed
	implicit string // what observed.implicit was before it
}

// endedInsideError is of a statement that was answered and has ended its
// transaction.
type endedInsideError struct {
	query   string
	commits bool
	cause   error
}

func (e *endedInsideError) Error() string {
	what := "was rolled back inside of it, as by a deadlock, whose error the server did not pass on; nothing of it was applied"
	if e.commits {
		what = "ended inside of it, by a commit, a rollback, or a deadlock that it handles itself; what was done before it, and in it, may be committed"
	}
	return fmt.Sprintf("livepool: the server answered %.40q, but the transaction %s (a savepoint set before it is gone: %v)", e.query, what, e.cause)
}
func (e *endedInsideError) Unwrap() error { return e.cause }

// markTransaction sets a savepoint by which stillMarked tells whether the
// transaction has outlived the statement.
func (c *conn) markTransaction(ctx context.Context, query string, seen sqltext.Effects) error {
	mark := c.written()
	if _, err := c.inner.ExecContext(ctx, "SAVEPOINT "+markSavepoint, nil); err != nil {
		return c.failed(ctx, err, "SAVEPOINT", mark, effectUnknown)
	}
	c.prove()
	c.transaction.marked = marked{query, seen&sqltext.Implicit != 0, c.transaction.unit.soFar().implicit}
	return nil
}

// stillMarked is called after such a statement, when its results have been read.
// It poisons a transaction that has ended in it. If it has not, nothing was
// committed either.
func (c *conn) stillMarked(ctx context.Context) error {
	t := &c.transaction
	m := t.marked
	t.marked = marked{}
	if m.query == "" || t.unit == nil || t.poison != nil && !t.curable || c.isGone() {
		return nil
	}
	mark := c.written()
	_, err := c.inner.ExecContext(ctx, "RELEASE SAVEPOINT "+markSavepoint, nil)
	switch {
	case err == nil:
		c.prove()
		t.unit.commitsImplicitly(m.implicit)
		return nil
	case errorNumber(err) != savepointUnknown:
		err = c.failed(ctx, err, "RELEASE SAVEPOINT", mark, effectUnknown)
	default:
		c.prove()
		err = &endedInsideError{m.query, m.commits, err}
		t.unit.fails(err)
	}
	if t.poison == nil || t.curable {
		t.poison, t.curable = err, false
		c.ctr.stats.poisoned.Add(1)
	}
	return err
}

// answeredMarked is stillMarked where the statement's own error, if it has one,
// comes first.
func (c *conn) answeredMarked(ctx context.Context, err error) error {
	t := &c.transaction
	switch {
	case t.marked.query == "":
		return err
	case err == driver.ErrSkip: // it was not sent, and will be prepared
		t.unit.commitsImplicitly(t.marked.implicit)
		t.marked = marked{}
		return err
	}
	if ended := c.stillMarked(ctx); err == nil {
		return ended
	}
	return err
}
