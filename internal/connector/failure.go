// failure.go turns what the driver says of a failed request into what
// database/sql shall do about it, and spreads the news of a death. What an
// error means is errors.go's affair, what may be sent twice idempotent.go's.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/sqltext"
	"github.com/livepool/livepool/internal/wire"
)

// requestKind is what a request leaves behind, which decides whether it may be sent
// again when its answer was lost.
type requestKind int

const (
	statementRequest  requestKind = iota // a statement: it may have done anything
	effectlessRequest                    // PREPARE, BEGIN, a ping: gone with the connection
)

// handleFailure turns what the driver says into what database/sql shall do, and
// spreads the news of a death. It returns an error that is driver.ErrBadConn,
// on which database/sql sends the request again on another connection, only if
// the request cannot have run, or may run twice, and no transaction is open.
func (c *conn) handleFailure(ctx context.Context, err error, query string, mark uint64, kind requestKind) error {
	if err == driver.ErrSkip {
		return err
	}
	err = c.asSessionReadOnly(c.explainLoss(c.asUnsolicited(err), query, mark))
	if c.transaction.open {
		c.noteTxError(err, query, c.extentOf(query, kind, c.wire == nil || c.written() != mark))
	}
	if c.isBroken() && (c.transaction.open || c.written() != mark) {
		c.abandon()
	}
	if mysqlerr.Number(err) == packetTooLarge {
		c.dead, c.lossReported = true, true // of this alone; the others are as well as before
		return err
	}
	if errors.As(err, new(*idleLossError)) {
		c.reportLoss(err)
		c.dead = true
		return err // which has its story
	}
	if mysqlerr.Number(err) != 0 {
		c.touch() // an answer is a proof of life, whatever it says
		if c.isAllWorkRefused(err) {
			return c.leaveUseless(err, c.mayHaveRunInPart(query, kind))
		}
		return c.handleRefusal(err, query, kind, isIdempotent(ctx))
	}
	badConn := errors.Is(err, driver.ErrBadConn)
	if c.pingSkipped && ctx.Err() != nil {
		c.ctr.pingOneIdle(c.requestStarted)
	}
	if !badConn && (ctx.Err() != nil || c.classify(err)&mysqlerr.ConnDead == 0) {
		return err // the caller's own context, or an error that the connection survives
	}
	c.reportLoss(err)
	switch {
	case (c.isUnsent(badConn, query, mark) || kind == effectlessRequest) && !c.transaction.open:
		return c.newBadConnError(err, "before the statement ran")
	case c.countRepeatedLoss(ctx, err, query, mark):
		return &repeatedLossError{query, c.explainLoss(mysql.ErrInvalidConn, query, mark)}
	case c.transaction.open:
		return err
	case isIdempotent(ctx):
		return c.newBadConnError(err, "before the statement ran")
	case badConn: // the driver is mistaken, see nothingSent
		return c.explainLoss(mysql.ErrInvalidConn, query, mark)
	}
	return err
}

// isUnsent says whether the request cannot have reached the server. Where
// there is a wire it knows; the driver says driver.ErrBadConn also of a later
// packet of LOAD DATA LOCAL that could not be written, and with rejectReadOnly of
// a refusal in the middle of a procedure.
func (c *conn) isUnsent(badConn bool, query string, mark uint64) bool {
	if c.wire == nil {
		return badConn && !sqltext.MayLoadData(query)
	}
	return c.wire.Written == mark
}

// classify is the connector's, less what cannot be: as long as the wire is
// whole, an error that is not the server's, such as that of a file to be
// loaded, is none of the connection's.
func (c *conn) classify(err error) mysqlerr.Class {
	class := c.ctr.Classify(err)
	switch {
	case errors.As(err, new(*unsolicitedError)):
		return class
	case errors.Is(err, mysql.ErrBusyBuffer) && !c.hasUnsolicited(),
		c.wire != nil && mysqlerr.Number(err) == 0 && !c.isBroken() && c.driverConn.IsValid() && !errors.Is(err, driver.ErrBadConn):
		return 0
	}
	return class
}

// hasUnsolicited says whether what keeps the driver from using a connection is what
// the server has sent unasked, together with the answer before, and not a result
// that the program has left open.
func (c *conn) hasUnsolicited() bool {
	if c.transaction.open {
		return c.openResults == 0
	}
	return c.wire != nil && errors.Is(c.wire.Peek(), io.EOF)
}

// clientInteractionTimeout is ER_CLIENT_INTERACTION_TIMEOUT, which a server says unasked to a
// client that has sent nothing for wait_timeout, a second at the least.
const (
	clientInteractionTimeout = 4031
	minInteractionTimeout    = time.Second
)

// unsolicitedError is what a server said unasked, where its answer to a request may
// have been lost on the way: it says nothing of the request, which may have run
// before.
type unsolicitedError struct{ serverErr error }

func (e *unsolicitedError) Error() string {
	return mysql.ErrInvalidConn.Error() + ": in place of an answer the server said: " + e.serverErr.Error()
}
func (e *unsolicitedError) Unwrap() error { return mysql.ErrInvalidConn }

// asUnsolicited tells 4031 that comes too late to be from before the request.
func (c *conn) asUnsolicited(err error) error {
	if mysqlerr.Number(err) != clientInteractionTimeout || mysqlerr.Classify(err) != mysqlerr.NotSent || c.ctr.clock.Now()-c.requestStarted < minInteractionTimeout {
		return err
	}
	c.dead = true
	c.ctr.recordDeath(&c.link, wire.HungUp, c.ctr.clock.Now(), err)
	return &unsolicitedError{err}
}

// handleRefusal looks at a server's error: after a refusal that another connection
// may not meet, and after 4031, the statement has not run.
func (c *conn) handleRefusal(err error, query string, kind requestKind, idempotent bool) error {
	class := c.classify(err)
	if class&mysqlerr.ConnDead != 0 {
		c.dead = true
		c.ctr.recordDeath(&c.link, wire.HungUp, c.lastRoundTrip, err)
	}
	notReady := mysqlerr.IsNodeNotReady(err)
	if notReady {
		c.noteNotReady(err)
	}
	switch {
	case c.transaction.open:
		return err
	case class&mysqlerr.ConnDead != 0 && (kind == effectlessRequest || idempotent):
		return c.newBadConnError(err, "by its server")
	case class&mysqlerr.NotRun == 0:
		return err
	case class&mysqlerr.ConnDead != 0:
		return c.newBadConnError(err, "before it read the statement")
	case c.mayHaveRunInPart(query, kind):
		return err
	case c.answeredSinceCheckout:
		return err // on a sql.Conn, whose state would be lost for nothing
	case class&mysqlerr.Elsewhere == 0:
		return c.newBadConnError(err, "before it ran the statement")
	case !notReady && c.isRefusalTrusted():
		return err
	}
	c.dead = true
	return c.newBadConnError(err, "because its server refuses the statement")
}

// mayHaveRunInPart says whether a refusal leaves open that an earlier part of the
// request was done.
func (c *conn) mayHaveRunInPart(query string, kind requestKind) bool {
	return kind != effectlessRequest && (c.mayBeMultiStatement(query) || !sqltext.SingleStatement(query))
}

// isRefusalTrusted says whether the connection's server can be taken at its word when
// it refuses a statement (read-only, not ready). One that has worked before may
// have stayed with a server that was demoted since; the statement is then sent
// again until it meets a fresh connection, which tells the truth. Asked again
// within a second it is still believed, so that a program that goes on writing
// to a read-only server does not reconnect each time.
func (c *conn) isRefusalTrusted() bool {
	if c.answeredEver && (c.refusalTrustedAt < 0 || c.lastRoundTrip-c.refusalTrustedAt > time.Second) {
		return false
	}
	if !c.answeredEver {
		c.answeredEver, c.refusalTrustedAt = true, c.lastRoundTrip
	}
	return true
}

// reportLoss spreads the news of a loss, if it was one. err is what the driver says
// of it, nil if it has not said anything.
func (c *conn) reportLoss(err error) { c.ctr.reportLoss(&c.link, err) }

func (ctr *Connector) reportLoss(l *link, err error) {
	if l.wire != nil {
		err = l.wire.IOErr
	}
	now := ctr.clock.Now()
	switch wire.LossOf(err) {
	case wire.HungUp:
		ctr.recordDeath(l, wire.HungUp, now, err)
	case wire.WentSilent:
		waited, ok := stalledFor(err)
		if !ok {
			waited = wire.UserTimeout // the kernel's patience
		}
		ctr.recordDeath(l, wire.WentSilent, now-waited, err)
	}
}

// ioCause is what the socket said where the driver only says that the connection
// is bad.
func (l *link) ioCause(err error) error {
	if l.wire != nil && l.wire.IOErr != nil && !errors.Is(l.wire.IOErr, net.ErrClosed) {
		return l.wire.IOErr
	}
	return err
}

// badConnError is driver.ErrBadConn with its story, for the caller who gets it in
// the end because every try met the same.
type badConnError struct {
	addr        string
	threadID    uint32
	age         time.Duration
	sinceAnswer time.Duration
	when        string
	cause       error
}

func (c *conn) newBadConnError(err error, detail string) error {
	now := c.ctr.clock.Now()
	c.ctr.Stats.Resent.Add(1)
	return &badConnError{c.ctr.addr, c.threadID(), now - c.born, now - c.lastRoundTrip, detail, c.ioCause(err)}
}

func (e *badConnError) Error() string {
	return fmt.Sprintf("livepool: connection %d to %s, %s old and %s after its last answer, was given up %s: %v",
		e.threadID, e.addr, e.age.Round(time.Millisecond), e.sinceAnswer.Round(time.Millisecond), e.when, e.cause)
}

func (e *badConnError) Is(target error) bool { return target == driver.ErrBadConn }
func (e *badConnError) Unwrap() error        { return e.cause }

// hideBadConn hides driver.ErrBadConn as long as a transaction or a result is open on
// the connection. database/sql closes a sql.Conn on that error, and waits first
// for all that is open on it: the caller would wait for itself.
func (c *conn) hideBadConn(err error) error {
	if !c.transaction.open && c.openResults == 0 || !errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return &hiddenBadConnError{err}
}

// hiddenBadConnError is all that its cause is, but for driver.ErrBadConn. It has no
// Unwrap, by which that would be found.
type hiddenBadConnError struct{ cause error }

func (e *hiddenBadConnError) Error() string { return e.cause.Error() }
func (e *hiddenBadConnError) Is(target error) bool {
	return target != driver.ErrBadConn && errors.Is(e.cause, target)
}
func (e *hiddenBadConnError) Class() mysqlerr.Class { return mysqlerr.Classify(e.cause) }
func (e *hiddenBadConnError) As(target any) bool    { return errors.As(e.cause, target) }
