// failure.go turns what the driver says of a failed request into what
// database/sql shall do about it, and spreads the news of a death. What an
// error means is errors.go's affair, what may be sent twice idempotent.go's.

package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/sqltext"
)

// effect is what a request leaves behind, which decides whether it may be sent
// again when its answer was lost.
type effect int

const (
	effectUnknown effect = iota // a statement: it may have done anything
	effectNone                  // PREPARE, BEGIN, a ping: gone with the connection
)

// failed turns what the driver says into what database/sql shall do, and
// spreads the news of a death. It returns an error that is driver.ErrBadConn,
// on which database/sql sends the request again on another connection, only if
// the request cannot have run, or may run twice, and no transaction is open.
func (c *conn) failed(ctx context.Context, err error, query string, mark uint64, has effect) error {
	if err == driver.ErrSkip {
		return err
	}
	err = c.guarded(c.explained(c.unasked(err), query, mark))
	if c.transaction.open {
		c.suffers(err, query, c.ran(query, has, c.wire == nil || c.written() != mark))
	}
	if c.isGone() && (c.transaction.open || c.written() != mark) {
		c.abandoned()
	}
	if errorNumber(err) == packetTooLarge {
		c.dead, c.mourned = true, true // of this alone; the others are as well as before
		return err
	}
	if errors.As(err, new(*idleLossError)) {
		c.mourn(err)
		c.dead = true
		return err // which has its story
	}
	if errorNumber(err) != 0 {
		c.prove() // an answer is a proof of life, whatever it says
		if c.refusesAllWork(err) {
			return c.leavesUseless(err, c.mayHaveRunInPart(query, has))
		}
		return c.refused(err, query, has, isIdempotent(ctx))
	}
	badConn := errors.Is(err, driver.ErrBadConn)
	if c.hurried && ctx.Err() != nil {
		c.ctr.askOne(c.entered)
	}
	if !badConn && (ctx.Err() != nil || c.classify(err)&ConnDead == 0) {
		return err // the caller's own context, or an error that the connection survives
	}
	c.mourn(err)
	switch {
	case (c.nothingSent(badConn, query, mark) || has == effectNone) && !c.transaction.open:
		return c.lost(err, "before the statement ran")
	case c.repeated(ctx, err, query, mark):
		return &repeatedLossError{query, c.explained(mysql.ErrInvalidConn, query, mark)}
	case c.transaction.open:
		return err
	case isIdempotent(ctx):
		return c.lost(err, "before the statement ran")
	case badConn: // the driver is mistaken, see nothingSent
		return c.explained(mysql.ErrInvalidConn, query, mark)
	}
	return err
}

// nothingSent says whether the request cannot have reached the server. Where
// there is a wire it knows; the driver says driver.ErrBadConn also of a later
// packet of LOAD DATA LOCAL that could not be written, and with rejectReadOnly of
// a refusal in the middle of a procedure.
func (c *conn) nothingSent(badConn bool, query string, mark uint64) bool {
	if c.wire == nil {
		return badConn && !sqltext.MayLoadData(query)
	}
	return c.wire.written == mark
}

// classify is the connector's, less what cannot be: as long as the wire is
// whole, an error that is not the server's, such as that of a file to be
// loaded, is none of the connection's.
func (c *conn) classify(err error) Class {
	class := c.ctr.classify(err)
	switch {
	case errors.As(err, new(*unaskedError)):
		return class
	case errors.Is(err, mysql.ErrBusyBuffer) && !c.heardGoodbye(),
		c.wire != nil && errorNumber(err) == 0 && !c.isGone() && c.inner.IsValid() && !errors.Is(err, driver.ErrBadConn):
		return 0
	}
	return class
}

// heardGoodbye says whether what keeps the driver from using a connection is what
// the server has sent unasked, together with the answer before, and not a result
// that the program has left open.
func (c *conn) heardGoodbye() bool {
	if c.transaction.open {
		return c.results == 0
	}
	return c.wire != nil && errors.Is(c.wire.peek(), io.EOF)
}

// idleClosed is ER_CLIENT_INTERACTION_TIMEOUT, which a server says unasked to a
// client that has sent nothing for wait_timeout, a second at the least.
const (
	idleClosed      = 4031
	leastIdleClosed = time.Second
)

// unaskedError is what a server said unasked, where its answer to a request may
// have been lost on the way: it says nothing of the request, which may have run
// before.
type unaskedError struct{ said error }

func (e *unaskedError) Error() string {
	return mysql.ErrInvalidConn.Error() + ": in place of an answer the server said: " + e.said.Error()
}
func (e *unaskedError) Unwrap() error { return mysql.ErrInvalidConn }

// unasked tells 4031 that comes too late to be from before the request.
func (c *conn) unasked(err error) error {
	if errorNumber(err) != idleClosed || Classify(err) != notSent || c.ctr.clock.now()-c.entered < leastIdleClosed {
		return err
	}
	c.dead = true
	c.ctr.died(&c.link, hungUp, c.ctr.clock.now(), err)
	return &unaskedError{err}
}

// refused looks at a server's error: after a refusal that another connection
// may not meet, and after 4031, the statement has not run.
func (c *conn) refused(err error, query string, has effect, idempotent bool) error {
	class := c.classify(err)
	if class&ConnDead != 0 {
		c.dead = true
		c.ctr.died(&c.link, hungUp, c.proved, err)
	}
	notReady := isNotReady(err)
	if notReady {
		c.notReady(err)
	}
	switch {
	case c.transaction.open:
		return err
	case class&ConnDead != 0 && (has == effectNone || idempotent):
		return c.lost(err, "by its server")
	case class&NotRun == 0:
		return err
	case class&ConnDead != 0:
		return c.lost(err, "before it read the statement")
	case c.mayHaveRunInPart(query, has):
		return err
	case c.spoke:
		return err // on a sql.Conn, whose state would be lost for nothing
	case class&Elsewhere == 0:
		return c.lost(err, "before it ran the statement")
	case !notReady && c.believes():
		return err
	}
	c.dead = true
	return c.lost(err, "because its server refuses the statement")
}

// mayHaveRunInPart says whether a refusal leaves open that an earlier part of the
// request was done.
func (c *conn) mayHaveRunInPart(query string, has effect) bool {
	return has != effectNone && (c.severalStatements(query) || !sqltext.SingleStatement(query))
}

// believes says whether the connection's server can be taken at its word when
// it refuses a statement (read-only, not ready). One that has worked before may
// have stayed with a server that was demoted since; the statement is then sent
// again until it meets a fresh connection, which tells the truth. Asked again
// within a second it is still believed, so that a program that goes on writing
// to a read-only server does not reconnect each time.
func (c *conn) believes() bool {
	if c.worked && (c.believed < 0 || c.proved-c.believed > time.Second) {
		return false
	}
	if !c.worked {
		c.worked, c.believed = true, c.proved
	}
	return true
}

// mourn spreads the news of a loss, if it was one. err is what the driver says
// of it, nil if it has not said anything.
func (c *conn) mourn(err error) { c.ctr.mourn(&c.link, err) }

func (ctr *connector) mourn(l *link, err error) {
	if l.wire != nil {
		err = l.wire.broken
	}
	now := ctr.clock.now()
	switch howLost(err) {
	case hungUp:
		ctr.died(l, hungUp, now, err)
	case wentSilent:
		waited, ok := stalledFor(err)
		if !ok {
			waited = tcpUserTimeout // the kernel's patience
		}
		ctr.died(l, wentSilent, now-waited, err)
	}
}

// cause is what the socket said where the driver only says that the connection
// is bad.
func (l *link) cause(err error) error {
	if l.wire != nil && l.wire.broken != nil && !errors.Is(l.wire.broken, net.ErrClosed) {
		return l.wire.broken
	}
	return err
}

// lostError is driver.ErrBadConn with its story, for the caller who gets it in
// the end because every try met the same.
type lostError struct {
	addr     string
	threadID uint32
	age      time.Duration
	silence  time.Duration
	when     string
	cause    error
}

func (c *conn) lost(err error, when string) error {
	now := c.ctr.clock.now()
	c.ctr.stats.resent.Add(1)
	return &lostError{c.ctr.addr, c.threadID(), now - c.born, now - c.proved, when, c.cause(err)}
}

func (e *lostError) Error() string {
	return fmt.Sprintf("livepool: connection %d to %s, %s old and %s after its last answer, was given up %s: %v",
		e.threadID, e.addr, e.age.Round(time.Millisecond), e.silence.Round(time.Millisecond), e.when, e.cause)
}

func (e *lostError) Is(target error) bool { return target == driver.ErrBadConn }
func (e *lostError) Unwrap() error        { return e.cause }

// withheld hides driver.ErrBadConn as long as a transaction or a result is open on
// the connection. database/sql closes a sql.Conn on that error, and waits first
// for all that is open on it: the caller would wait for itself.
func (c *conn) withheld(err error) error {
	if !c.transaction.open && c.results == 0 || !errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return &withheldError{err}
}

// withheldError is all that its cause is, but for driver.ErrBadConn. It has no
// Unwrap, by which that would be found.
type withheldError struct{ cause error }

func (e *withheldError) Error() string { return e.cause.Error() }
func (e *withheldError) Is(target error) bool {
	return target != driver.ErrBadConn && errors.Is(e.cause, target)
}
func (e *withheldError) class() Class       { return Classify(e.cause) }
func (e *withheldError) As(target any) bool { return errors.As(e.cause, target) }
