// lossdetail.go is about statements that are the cause of their connection's end:
// larger than the server takes, longer than the driver's readTimeout lets them
// be, or such that the server dies of them. That is no accident, and no news of
// the other connections.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/wire"
)

// packetTooLarge is ER_NET_PACKET_TOO_LARGE. The server reads no further and
// closes the connection, so that the error often is lost, and there is a reset.
const packetTooLarge = 1153

// tooLargeError is 1153 with its story, whatever has come of it.
type tooLargeError struct {
	addr  string
	size  int // of the statement, at the least
	limit int // of the server, 0 if it is not known
	cause error
}

func (e *tooLargeError) Error() string {
	limit := "larger than its max_allowed_packet"
	if e.limit > 0 {
		limit = fmt.Sprintf("above its max_allowed_packet of %d bytes", e.limit)
	}
	return fmt.Sprintf("livepool: %s has closed the connection because of a statement of %d bytes, %s; nothing of it ran: "+
		"send less at a time, or raise max_allowed_packet on the server: %v", e.addr, e.size, limit, e.cause)
}

func (e *tooLargeError) Unwrap() []error {
	if mysqlerr.Number(e.cause) != 0 {
		return []error{e.cause}
	}
	return []error{&mysql.MySQLError{Number: packetTooLarge, SQLState: [5]byte([]byte("08S01")),
		Message: "Got a packet bigger than 'max_allowed_packet' bytes"}, e.cause}
}

// driverTimeoutError is a connection that was ended by a timeout of the driver's.
type driverTimeoutError struct {
	text  string
	cause error
}

func (e *driverTimeoutError) Error() string { return e.text }
func (e *driverTimeoutError) Unwrap() error { return e.cause }

// explainLoss adds to what the driver says of a connection that was lost over a
// request, which is only that it is bad, what is known of why.
func (c *conn) explainLoss(err error, query string, mark uint64) error {
	w := c.wire
	if w == nil {
		return err
	}
	switch number := mysqlerr.Number(err); {
	case number == packetTooLarge:
		return &tooLargeError{c.ctr.addr, max(int(w.Written-mark), len(query)+1), c.maxPacket(), err}
	case number != 0, w.IOErr == nil, w.Written == mark:
		return err
	}
	if size := c.rejectedPacketSize(query, mark); size > 0 {
		if errors.Is(err, driver.ErrBadConn) { // on which database/sql would send it again
			err = mysql.ErrInvalidConn
		}
		return &tooLargeError{c.ctr.addr, size, c.maxPacket(), err}
	}
	_, stalled := stalledFor(w.IOErr)
	switch timeout := c.driverTimeout(query); {
	case timeout != nil:
		return fmt.Errorf("%w: %w", err, timeout)
	case stalled && !errors.Is(err, w.IOErr):
		return fmt.Errorf("%w: %w", err, w.IOErr)
	}
	return err
}

// rejectedPacketSize is the size of a packet of the request that the server has certainly
// not read, because it is larger than the session takes; 0 if there is none. What
// LOAD DATA LOCAL or long data come to in all proves nothing, for their packets are
// small; nor does what another server behind the address says of itself; nor does
// the size of a statement that has met silence.
func (c *conn) rejectedPacketSize(query string, mark uint64) int {
	w, size := c.wire, len(query)+1
	if w.OversizedAt > mark {
		size = max(size, w.Oversized)
	}
	if !c.facts.rejectsPacket(size) || !c.facts.isHandshakeID(w) || wire.LossOf(w.IOErr) != wire.HungUp {
		return 0
	}
	return size
}

// maxPacket is the server's max_allowed_packet, 0 if it is not known.
func (l *link) maxPacket() int {
	if l.facts == nil {
		return 0
	}
	return l.facts.maxAllowedPacket
}

// driverTimeout is not nil if it was a timeout of the driver's that has ended
// the connection. COMMIT and ROLLBACK have one of livepool's.
func (c *conn) driverTimeout(query string) error {
	var op *net.OpError
	if !c.ctr.ownDialer || query == "COMMIT" || query == "ROLLBACK" || !errors.As(c.wire.IOErr, &op) || !errors.Is(op, os.ErrDeadlineExceeded) {
		return nil
	}
	name, limit := "readTimeout", c.ctr.Cfg.MySQL.ReadTimeout
	if op.Op == "write" {
		name, limit = "writeTimeout", c.ctr.Cfg.MySQL.WriteTimeout
	}
	if limit == 0 {
		return nil
	}
	return &driverTimeoutError{fmt.Sprintf("it took longer than %s of the DSN, %s, which cuts honest statements too: %s", name, limit, timeoutAdvice), op}
}

const timeoutAdvice = "leave it out, for livepool asks the server about statements without a reply (StallAfter, pool_stall_after), " +
	"and bound statements by their contexts"

// warnOfTimeouts is said at Open.
func (c *Settings) warnOfTimeouts() {
	if c.MySQL.ReadTimeout > 0 || c.MySQL.WriteTimeout > 0 {
		c.Log.Warn(fmt.Sprintf("livepool: readTimeout and writeTimeout of the DSN (%s, %s; 0 is none) cut honest statements that take longer: %s",
			c.MySQL.ReadTimeout, c.MySQL.WriteTimeout, timeoutAdvice))
	}
}

// LossCounter remembers the last statement over which a connection was lost, of one
// unit or one Pool.Retry.
type LossCounter struct {
	mu    sync.Mutex // a function may use several goroutines; guards what follows
	last  Statement
	times int
}

// Add counts one more, and says whether it is one too many: what has just ended
// two connections in a row is not sent a third time. The zero statement is the end of
// the row.
func (l *LossCounter) Add(lost Statement) (tooMany bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lost != l.last {
		l.last, l.times = lost, 0
	}
	l.times++
	return lost != Statement{} && l.times >= 2
}

// RepeatedLossText is why a unit is not run again.
func RepeatedLossText(query string) string {
	return fmt.Sprintf("and is not run again, because its connection was lost twice in a row while the server worked on %.60q", query)
}

// mayBeCausedByStatement says whether the loss of a connection may be the doing of the statement
// that was under way, and not of the network or of a server that shuts down: it
// was sent, and there is no other word on what happened.
func (c *conn) mayBeCausedByStatement(err error) bool {
	return mysqlerr.Number(err) == 0 && !errors.As(err, new(*unsolicitedError)) && (c.wire == nil || wire.LossOf(c.wire.IOErr) == wire.HungUp)
}

// repeatedLossError ends a Pool.Retry.
type repeatedLossError struct {
	query string
	cause error
}

func (e *repeatedLossError) Error() string         { return e.cause.Error() + ", " + RepeatedLossText(e.query) }
func (e *repeatedLossError) Unwrap() error         { return e.cause }
func (e *repeatedLossError) Class() mysqlerr.Class { return mysqlerr.LostConn &^ mysqlerr.Retry }

// countRepeatedLoss counts the loss of a connection over a statement in a Pool.Retry. A
// context of Idempotent's own does not count: database/sql sends a statement
// thrice at the most. What is in a unit is counted there.
func (c *conn) countRepeatedLoss(ctx context.Context, err error, query string, mark uint64) bool {
	losses, _ := ctx.Value(idempotentKey{}).(*LossCounter)
	return losses != nil && c.transaction.unit == nil && (c.wire == nil || c.wire.Written != mark) && c.mayBeCausedByStatement(err) && losses.Add(Statement{Query: query})
}
