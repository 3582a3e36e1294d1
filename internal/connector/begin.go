// begin.go saves units the round trip of their BEGIN. On a connection that serves one unit
// after the other autocommit is turned off: there the first statement of a unit begins its
// transaction (MySQL manual, "autocommit, Commit, and Rollback").
//
// Invariant: outside a transaction nothing is sent for a caller while autocommit is off.
// The last step of beginRequest, which comes before anything that is sent, turns it on
// again. The state belongs to the link, with which it changes hands: as a spare, too.

package connector

import (
	"context"
	"database/sql/driver"

	"github.com/livepool/livepool/internal/mysqlerr"
)

const (
	// minUnitsInARow is after how many units without plain use between them a connection
	// changes. That costs nothing: the statement takes the place of BEGIN. To change back
	// costs plain use a round trip, and each time twice as many units are awaited.
	minUnitsInARow = 2
	maxUnitsInARow = 1 << 10
)

// begin begins a transaction. It says whether the server was asked.
func (c *conn) begin(ctx context.Context, opts driver.TxOptions) (tx driver.Tx, asked bool, err error) {
	if c.mayBeginByItself(ctx, opts) {
		c.begun.c = c
		switch c.unitsInARow++; {
		case c.autocommitOff:
			return &c.begun, false, ctx.Err()
		case c.unitsInARow > max(c.awaitUnits, minUnitsInARow):
			err = c.setAutocommit(ctx, false)
			if mysqlerr.Number(err) == 0 {
				return &c.begun, true, err
			}
			c.awaitUnits = maxUnitsInARow // this server refuses it
		}
	}
	watched := c.watch(ctx)
	tx, err = c.driverConn.BeginTx(watched, opts)
	return tx, true, c.unwatch(watched, err)
}

func (l *link) setAutocommit(ctx context.Context, on bool) error {
	query := "SET autocommit = 0"
	if on {
		query = "SET autocommit = 1"
	}
	watched := l.watch(ctx)
	_, err := l.driverConn.ExecContext(watched, query, nil)
	if err = l.unwatch(watched, err); err == nil {
		l.autocommitOff = !on
	}
	return err
}

// mayBeginByItself says whether the first statement of what is begun may begin it. A BEGIN
// that is lost is sent again elsewhere; where a first statement is lost the unit has to be
// run again. So it must be a unit that may be, on a connection that has answered just now.
// A proxy that speaks SQL may not keep such a state of its connection.
func (c *conn) mayBeginByItself(ctx context.Context, opts driver.TxOptions) bool {
	unit, ok := ctx.(*BeginContext)
	if !ok || opts != (driver.TxOptions{}) || !unit.MayRunAgain || c.ctr.Cfg.ExplicitBegin || c.ctr.unitsCall.Load() || c.ctr.maintainer == nil || c.ctr.InCluster.Load() {
		return false
	}
	if c.wire == nil || c.wire.Wrapped || c.facts == nil || !c.facts.autocommit || !c.facts.isHandshakeID(c.wire) {
		return false
	}
	return c.ctr.clock.Latest()-c.lastRoundTrip <= c.pingAfter
}

// turnAutocommitOn is called before a request that is not in a transaction. A link on which
// it fails is replaced, since nothing of the caller's is on it; the other may be a spare on
// which autocommit is off, too.
func (c *conn) turnAutocommitOn(ctx context.Context) error {
	if _, isUnit := ctx.(*BeginContext); isUnit {
		return nil
	}
	c.unitsInARow, c.awaitUnits = 0, min(2*max(c.awaitUnits, minUnitsInARow), maxUnitsInARow)
	for c.autocommitOff { // each turn takes another link
		switch err := c.setAutocommit(ctx, true); {
		case err == nil:
			c.touch()
			return nil
		case ctx.Err() != nil: // a connection on which it is not known whether that ran is closed
			return ctx.Err()
		default:
			c.reportLoss(err)
		}
		if err := c.reconnect(ctx, ByDriver); err != nil {
			return err
		}
	}
	return nil
}

// begunTx is a transaction that its first statement begins.
type begunTx struct{ c *conn }

func (t *begunTx) Commit() error   { return t.end("COMMIT") }
func (t *begunTx) Rollback() error { return t.end("ROLLBACK") }

func (t *begunTx) end(query string) error {
	_, err := t.c.driverConn.ExecContext(context.Background(), query, nil)
	return err
}
