// failure.go turns the driver's error of a failed request into what database/sql shall do
// about it, and reports the loss of a connection. Package mysqlerr says what an error
// means, idempotent.go which statements may be sent twice.

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
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/sqltext"
	"github.com/livepool/livepool/internal/wire"
	"github.com/livepool/livepool/trace"
)

// requestKind says what a request may leave behind, and so whether it may be sent again
// after its answer was lost.
type requestKind int

const (
	statementRequest  requestKind = iota // a statement: it may have done anything
	effectlessRequest                    // PREPARE, BEGIN, a ping: gone with the connection
)

// handleFailure turns the driver's error into what database/sql shall do, and reports a
// loss. On driver.ErrBadConn database/sql sends the request again on another connection,
// so it returns that only if the request cannot have run, or may run twice, and no
// transaction is open.
func (c *conn) handleFailure(ctx context.Context, err error, query string, mark uint64, kind requestKind) error {
	if err == driver.ErrSkip {
		return err
	}
	err = c.asWrongTarget(c.asSessionReadOnly(c.explainLoss(c.asUnsolicited(err), query, mark)))
	if c.transaction.open {
		c.noteTxError(err, query, c.extentOf(query, kind, c.wire == nil || c.written() != mark))
	}
	if c.isBroken() && (c.transaction.open || c.written() != mark) {
		c.abandon()
	}
	if mysqlerr.Number(err) == packetTooLarge {
		c.dead, c.lossReported = true, true // only this connection is lost: it says nothing about the others
		return err
	}
	if errors.As(err, new(*idleLossError)) {
		c.reportLoss(err)
		c.dead = true
		return err // which says why already
	}
	if mysqlerr.Number(err) != 0 {
		c.touch() // an error of the server is an answer, too
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
	case badConn && ctx.Err() != nil && !c.transaction.open && c.isUnsent(badConn, query, mark):
		return ctx.Err() // for which the driver has closed the connection, as an earlier answer arrived
	case (c.isUnsent(badConn, query, mark) || kind == effectlessRequest) && !c.transaction.open:
		return c.newBadConnError(err, "before the statement ran")
	case c.countRepeatedLoss(ctx, err, query, mark):
		return &repeatedLossError{query, c.explainLoss(mysql.ErrInvalidConn, query, mark)}
	case c.transaction.open:
		return err
	case isIdempotent(ctx):
		return c.newBadConnError(err, "before the statement ran")
	case badConn: // the driver is mistaken, see isUnsent
		return c.explainLoss(mysql.ErrInvalidConn, query, mark)
	}
	return err
}

// isUnsent says whether the request cannot have reached the server. The wire knows that,
// if there is one. The driver returns driver.ErrBadConn also when a later packet of LOAD
// DATA LOCAL could not be written, and with rejectReadOnly when a server refuses a
// statement in the middle of a procedure.
func (c *conn) isUnsent(badConn bool, query string, mark uint64) bool {
	if c.wire == nil {
		return badConn && !sqltext.MayLoadData(query)
	}
	return c.wire.Written == mark
}

// classify is the connector's Classify, corrected by what the wire knows: while the wire
// has no I/O error, an error that is not the server's, such as that of a file to be
// loaded, does not concern the connection.
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

// hasUnsolicited says why the driver's buffer is busy: true if the server sent something
// unsolicited together with the last answer, false if the program left a result open.
func (c *conn) hasUnsolicited() bool {
	if c.transaction.open {
		return c.openResults == 0
	}
	return c.wire != nil && errors.Is(c.wire.Peek(), io.EOF)
}

// clientInteractionTimeout is ER_CLIENT_INTERACTION_TIMEOUT, which a server sends to a
// client that has sent nothing for wait_timeout, which is at least a second.
const (
	clientInteractionTimeout = 4031
	minInteractionTimeout    = time.Second
)

// unsolicitedError is an error that the server sent unsolicited, in place of an answer
// that may be lost. It says nothing about the request, which may have run before.
type unsolicitedError struct{ serverErr error }

func (e *unsolicitedError) Error() string {
	return mysql.ErrInvalidConn.Error() + ": in place of an answer the server said: " + e.serverErr.Error()
}
func (e *unsolicitedError) Unwrap() error { return mysql.ErrInvalidConn }

// asUnsolicited recognizes a 4031 that came too late to be from before the request.
func (c *conn) asUnsolicited(err error) error {
	if mysqlerr.Number(err) != clientInteractionTimeout || mysqlerr.Classify(err) != mysqlerr.NotSent || c.ctr.clock.Now()-c.requestStarted < minInteractionTimeout {
		return err
	}
	c.dead = true
	c.ctr.recordDeath(&c.link, wire.HungUp, c.ctr.clock.Now(), err)
	return &unsolicitedError{err}
}

// handleRefusal handles an error of the server. After 4031, or a refusal that another
// connection may not meet, the statement has not run and may be sent again.
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
	isDemotion := !c.transaction.open && c.noteDemotion(err)
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
		return err // on a sql.Conn, whose state must not be lost for a refusal
	case class&mysqlerr.Elsewhere == 0:
		return c.newBadConnError(err, "before it ran the statement")
	case !notReady && !isDemotion && c.isRefusalTrusted():
		return err
	}
	c.dead = true
	return c.newBadConnError(err, "because its server refuses the statement")
}

// mayHaveRunInPart says whether an earlier part of a refused request may have run.
func (c *conn) mayHaveRunInPart(query string, kind requestKind) bool {
	return kind != effectlessRequest && (c.mayBeMultiStatement(query) || !sqltext.SingleStatement(query))
}

// isRefusalTrusted says whether a refusal (read-only, not ready) is final, or the
// statement is sent on a fresh connection first. A connection that has answered before
// may be to a server that was demoted since, while the address leads to another by now.
// For a second after a trusted refusal the next one is trusted too, so that a program
// that keeps writing to a read-only server does not reconnect each time.
func (c *conn) isRefusalTrusted() bool {
	if c.answeredEver && (c.refusalTrustedAt < 0 || c.lastRoundTrip-c.refusalTrustedAt > time.Second) {
		return false
	}
	if !c.answeredEver {
		c.answeredEver, c.refusalTrustedAt = true, c.lastRoundTrip
	}
	return true
}

// reportLoss reports the loss of the link, if it was one. err is the driver's error, nil
// if there is none.
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
		waited, ok := proclist.StalledFor(err)
		if !ok {
			waited = wire.UserTimeout // the kernel gave it up
		}
		ctr.recordDeath(l, wire.WentSilent, now-waited, err)
	}
}

// ioCause is the error of the socket, where the driver only says that the connection is
// bad.
func (l *link) ioCause(err error) error {
	if l.wire != nil && l.wire.IOErr != nil && !errors.Is(l.wire.IOErr, net.ErrClosed) {
		return l.wire.IOErr
	}
	return err
}

// badConnError is driver.ErrBadConn with what happened, for the caller that gets it after
// the last resend.
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
	if c.ctr.Tracer.HasEvents() {
		c.ctr.Tracer.backgroundEvent(trace.Resend{Conn: c.ctr.traced(&c.link), Cause: err})
	}
	return &badConnError{c.addr(), c.threadID(), now - c.born, now - c.lastRoundTrip, detail, c.ioCause(err)}
}

func (e *badConnError) Error() string {
	return fmt.Sprintf("livepool: connection %d to %s, %s old and %s after its last answer, was given up %s: %v",
		e.threadID, e.addr, e.age.Round(time.Millisecond), e.sinceAnswer.Round(time.Millisecond), e.when, e.cause)
}

func (e *badConnError) Is(target error) bool { return target == driver.ErrBadConn }
func (e *badConnError) Unwrap() error        { return e.cause }

// hideBadConn hides driver.ErrBadConn while a transaction or a result is open on the
// connection. On that error database/sql closes a sql.Conn, and first waits for all that
// is open on it: the caller would wait for itself.
func (c *conn) hideBadConn(err error) error {
	if c.openTxs == 0 && c.openResults == 0 || !errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return &hiddenBadConnError{err}
}

// hiddenBadConnError matches all that its cause matches, except driver.ErrBadConn. It has
// no Unwrap, by which errors.Is would find that.
type hiddenBadConnError struct{ cause error }

func (e *hiddenBadConnError) Error() string { return e.cause.Error() }
func (e *hiddenBadConnError) Is(target error) bool {
	return target != driver.ErrBadConn && errors.Is(e.cause, target)
}
func (e *hiddenBadConnError) Class() mysqlerr.Class { return mysqlerr.Classify(e.cause) }
func (e *hiddenBadConnError) As(target any) bool    { return errors.As(e.cause, target) }
