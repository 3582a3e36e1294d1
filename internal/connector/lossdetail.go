// lossdetail.go is about statements that themselves cause the loss of their connection:
// they are larger than the server accepts, take longer than the driver's readTimeout, or
// crash the server. Such a loss says nothing about the other connections.

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
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
)

// packetTooLarge is ER_NET_PACKET_TOO_LARGE. The server stops reading and closes the
// connection, so the client often sees a reset in place of the error.
const packetTooLarge = 1153

// tooLargeError is 1153 with the sizes, also if the client saw only a reset.
type tooLargeError struct {
	addr  string
	size  int // of the statement, at least
	limit int // of the server; 0 if it is not known
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

// driverTimeoutError is the error of a connection that a timeout of the driver's ended.
type driverTimeoutError struct {
	text  string
	cause error
}

func (e *driverTimeoutError) Error() string { return e.text }
func (e *driverTimeoutError) Unwrap() error { return e.cause }

// explainLoss adds what is known of the cause to the driver's error of a connection that
// was lost during a request, which says only that it is bad.
func (c *conn) explainLoss(err error, query string, mark uint64) error {
	w := c.wire
	if w == nil {
		return err
	}
	switch number := mysqlerr.Number(err); {
	case number == packetTooLarge:
		return &tooLargeError{c.addr(), max(int(w.Written-mark), len(query)+1), c.maxPacket(), err}
	case number != 0, w.IOErr == nil, w.Written == mark:
		return err
	}
	if size := c.rejectedPacketSize(query, mark); size > 0 {
		if errors.Is(err, driver.ErrBadConn) { // on which database/sql would send it again
			err = mysql.ErrInvalidConn
		}
		return &tooLargeError{c.addr(), size, c.maxPacket(), err}
	}
	_, stalled := proclist.StalledFor(w.IOErr)
	switch timeout := c.driverTimeout(query); {
	case timeout != nil:
		return fmt.Errorf("%w: %w", err, timeout)
	case stalled && !errors.Is(err, w.IOErr):
		return fmt.Errorf("%w: %w", err, w.IOErr)
	}
	return err
}

// rejectedPacketSize is the size of a packet of the request that the server certainly did
// not read, because it is larger than the server accepts; 0 if there is none. The total
// of LOAD DATA LOCAL or long data proves nothing, because their packets are small; nor do
// the facts of another server behind the address; nor does the size of a statement after
// which the server was silent.
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

// driverTimeout is not nil if a timeout of the driver's ended the connection. COMMIT and
// ROLLBACK have a timeout of livepool's.
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

// warnOfTimeouts warns, when the pool is opened, about timeouts in the DSN.
func (c *Settings) warnOfTimeouts() {
	if c.MySQL.ReadTimeout > 0 || c.MySQL.WriteTimeout > 0 {
		c.Log.Warn(fmt.Sprintf("livepool: readTimeout and writeTimeout of the DSN (%s, %s; 0 is none) cut honest statements that take longer: %s",
			c.MySQL.ReadTimeout, c.MySQL.WriteTimeout, timeoutAdvice))
	}
}

// LossCounter remembers the last statement during which a connection was lost, in one unit
// or one Pool.Retry.
type LossCounter struct {
	mu    sync.Mutex // a function may use several goroutines; guards the fields below
	last  Statement
	times int
}

// Add counts a loss, and says whether there are too many: a statement during which two
// connections in a row were lost is not sent a third time. The zero Statement resets the
// count.
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

// mayBeCausedByStatement says whether the statement under way may have caused the loss of
// its connection, because nothing shows another cause, such as the network or a server
// that shuts down.
func (c *conn) mayBeCausedByStatement(err error) bool {
	return mysqlerr.Number(err) == 0 && !errors.As(err, new(*unsolicitedError)) && (c.wire == nil || wire.LossOf(c.wire.IOErr) == wire.HungUp)
}

// repeatedLossError ends a Pool.Retry: the same statement has lost two connections.
type repeatedLossError struct {
	query string
	cause error
}

func (e *repeatedLossError) Error() string         { return e.cause.Error() + ", " + RepeatedLossText(e.query) }
func (e *repeatedLossError) Unwrap() error         { return e.cause }
func (e *repeatedLossError) Class() mysqlerr.Class { return mysqlerr.LostConn &^ mysqlerr.Retry }

// countRepeatedLoss counts the loss of a connection during a statement in a Pool.Retry, and
// says whether there are too many. Under Idempotent alone nothing is counted: database/sql
// sends a statement three times at most. A unit counts its own losses.
func (c *conn) countRepeatedLoss(ctx context.Context, err error, query string, mark uint64) bool {
	losses, _ := ctx.Value(idempotentKey{}).(*LossCounter)
	return losses != nil && c.transaction.unit == nil && (c.wire == nil || c.wire.Written != mark) && c.mayBeCausedByStatement(err) && losses.Add(Statement{Query: query})
}
