// parked.go keeps a checked-out connection alive while its owner sends nothing (parked):
// a unit's function, or the holder of a sql.Tx or sql.Conn, calls a slow service between
// two statements, and the server closes what is idle for wait_timeout. The maintainer
// pings such a connection, never at the same time as the owner's statements, until
// HoldLimit has passed without a statement.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
)

// isCheckedOut says whether a connection in that state has an owner.
func isCheckedOut(state int32) bool { return state < idle }

// park ends a request: until the next one the maintainer may ping the connection. A path
// that does not call it only loses the keep-alive.
func (c *conn) park() {
	if c.ctr.keepParkedAlive {
		c.parkNow()
	}
}

// parkNow does not park a dead connection: there is nothing to keep alive, and its owner, who would
// not wait for a ping of it, writes what the maintainer would read.
func (c *conn) parkNow() {
	if c.openResults == 0 && !c.rawExposed && !c.dead {
		c.state.CompareAndSwap(inUse, parked) // unless a ping is still under way
	}
}

// parkWith is park after a request that may have failed.
func (c *conn) parkWith(err error) error {
	if err != nil {
		err = c.hideBadConn(err) // before the maintainer may look
	}
	c.park()
	return err
}

// resume begins a request: it takes the connection back from the maintainer. If the
// owner's context ends during a ping, the owner keeps the connection.
func (c *conn) resume(ctx context.Context, query string) error {
	if c.state.CompareAndSwap(parked, inUse) {
		return nil
	}
	failure, err := c.awaitPing(ctx)
	if err != nil || failure == nil {
		return err
	}
	if !c.used && mysqlerr.Number(failure.err) == 0 {
		l := c.detach() // nothing of the owner's is on it: the first use opens another
		l.close()
		return nil
	}
	c.requestStarted = c.ctr.clock.Now()
	c.setUnitOrphan(failure.orphan)
	return c.parkWith(c.handleFailure(ctx, failure.err, query, c.written(), statementRequest))
}

// resumeBounded is resume for what has no context: COMMIT, ROLLBACK and the return of
// the connection. It waits for CommitTimeout. If the ping has not ended by then the
// connection is given up, and closed when the ping ends.
func (c *conn) resumeBounded() error {
	switch {
	case !c.ctr.keepParkedAlive, c.state.Load() == inUse, c.state.CompareAndSwap(parked, inUse):
		return nil
	case c.dead: // given up already
		return driver.ErrBadConn
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.Cfg.CommitTimeout)
	defer cancel()
	failure, err := c.awaitPing(ctx)
	switch {
	case err != nil:
		c.abandon()
		c.mu.Lock()
		c.dead = true // read at the end of the ping
		c.mu.Unlock()
		c.failedEnd = fmt.Errorf("%w: its keep-alive ping has had no answer for CommitTimeout (pool_commit_timeout), %s", driver.ErrBadConn, c.ctr.Cfg.CommitTimeout)
		return c.failedEnd
	case failure != nil:
		c.noteFailedEnd(failure.err)
		c.setUnitOrphan(failure.orphan)
		return failure.err
	}
	return nil
}

// awaitPing waits for the end of a ping, and returns the failure that it found, if any.
func (c *conn) awaitPing(ctx context.Context) (*parkedFailure, error) {
	if state := c.state.Load(); state == inUse || !isCheckedOut(state) {
		return nil, nil // in use already, or idle: nothing to wait for
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := c.reservation; v != nil; v = c.reservation {
		c.mu.Unlock()
		select {
		case <-v.done:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if c.reservation == v {
			return nil, ctx.Err()
		}
	}
	c.state.Store(inUse)
	failure := c.parkedFailure
	c.parkedFailure = nil
	return failure, nil
}

// setUnitOrphan makes the unit wait until the thread that it left on the server has
// ended.
func (c *conn) setUnitOrphan(orphan *proclist.Orphan) {
	if unit := c.transaction.unit; unit != nil && orphan != nil {
		unit.Orphan.Store(orphan)
	}
}

// parkedFailure is the loss of a parked connection, or of its transaction, found by a
// ping: the owner must be told.
type parkedFailure struct {
	err    error
	orphan *proclist.Orphan
}

// ownerPause is the time since the owner's last request.
type ownerPause struct {
	lastRequest time.Duration // conn.requestStarted, which identifies the request
	answeredAt  time.Duration // when that was answered
	reported    bool          // it is longer than HoldLimit, and that was logged
}

// reserveParked runs f on a parked connection, as reserveIdle does on an idle one.
func (c *conn) reserveParked(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !c.state.CompareAndSwap(parked, parkedReserved) {
		return
	}
	f()
	if c.reservation == nil {
		c.state.Store(parked)
	}
}

// maintainParked is inspect for a parked connection. c is reserved, and c.mu held.
func (m *maintainer) maintainParked(c *conn) (due time.Duration) {
	keepAlive, limit := c.keepAlive, m.ctr.Cfg.HoldLimit
	if c.unconnected || keepAlive == 0 {
		return m.nextRegularRound()
	}
	if c.ownerPause.lastRequest != c.requestStarted {
		c.ownerPause = ownerPause{lastRequest: c.requestStarted, answeredAt: c.lastRoundTrip}
	}
	now := m.ctr.clock.Now()
	untilPing, untilHoldLimit := c.lastRoundTrip+keepAlive-now, clock.Add(c.ownerPause.answeredAt, limit, 0)-now
	switch {
	case c.ownerPause.reported:
	case untilHoldLimit <= 0:
		c.ownerPause.reported = true
		m.reportHoldLimit(c, now-c.ownerPause.answeredAt)
	case untilPing <= 0:
		m.pingParked(c)
	default:
		return min(untilPing, untilHoldLimit)
	}
	return m.nextRegularRound()
}

// pingParked pings a parked connection. It is called under a reservation, which then
// lasts until the answer. Like a statement it has no deadline: the stall check, the
// kernel or the other end stops it, so that a server that is slow for a moment costs
// nobody a transaction.
func (m *maintainer) pingParked(c *conn) {
	ctr, l, v, inTx := m.ctr, c.link, &reservation{done: make(chan struct{})}, c.transaction.open
	if !ctr.spawn(func() {
		ctr.Stats.Pings.Add(1)
		ctr.Stats.KeptAlive.Add(1)
		sent := ctr.clock.Now()
		err := ctr.pingUnbounded(&l)
		now := ctr.clock.Now()
		var failure *parkedFailure
		switch class := ctr.Classify(err); {
		case err == nil, mysqlerr.Number(err) != 0 && class&mysqlerr.ConnDead == 0 && !inTx:
			l.lastRoundTrip = max(now, sent+1)
		case mysqlerr.Number(err) != 0 && class&mysqlerr.ConnDead == 0:
			failure = &parkedFailure{err: err} // the transaction is lost; any statement would get this error
		default:
			failure = &parkedFailure{err: ctr.newIdleLossError(&l, now-l.lastRoundTrip, false, l.ioCause(err))}
			if inTx {
				failure.orphan = ctr.abandon(&l, true)
			}
			if mysqlerr.Number(err) != 0 {
				ctr.recordDeath(&l, wire.HungUp, now, err)
			}
			ctr.reportLoss(&l, err)
		}
		if !c.releaseParked(v, l, failure) {
			l.close()
		}
	}) {
		return
	}
	c.reservation = v
}

// pingUnbounded pings without a deadline. When the pool is closed it waits for
// PingTimeout and then closes the connection.
func (ctr *Connector) pingUnbounded(l *link) error {
	answered := make(chan struct{})
	stop := context.AfterFunc(ctr.Ctx, func() {
		clock.Wait(context.Background(), answered, ctr.Cfg.PingTimeout)
		select {
		case <-answered:
		default:
			l.wire.Close()
		}
	})
	defer stop()
	defer close(answered)
	return l.driverConn.Ping(context.Background()) // a context that ends would need a goroutine of the driver
}

// releaseParked ends the reservation of a parked connection. If it returns false the
// connection is not wanted any more, and the caller closes its link.
func (c *conn) releaseParked(v *reservation, l link, failure *parkedFailure) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeDeferred(v, failure == nil)
	if c.reservation != v {
		return false
	}
	c.lastRoundTrip, c.lossReported, c.parkedFailure = l.lastRoundTrip, l.lossReported, failure
	close(v.done)
	c.reservation = nil
	switch {
	case failure != nil:
		c.state.Store(parkedFailed)
	case !c.dead: // see parkNow
		c.state.Store(parked)
	}
	return true
}

// reportHoldLimit logs that a connection is not kept alive any longer.
func (m *maintainer) reportHoldLimit(c *conn, idle time.Duration) {
	holder, checkoutStack := "a sql.Conn outside of a session", "set LeakAfter (pool_leak_after) to have it recorded"
	switch unit := c.transaction.unit; {
	case unit != nil:
		holder = unit.Name
	case c.transaction.open:
		holder = "a sql.Tx outside of a session"
	}
	if taken := c.checkout.Load(); taken != nil {
		checkoutStack = stackOf(taken.stack)
	}
	m.ctr.Cfg.Log.LogAttrs(context.Background(), slog.LevelWarn,
		"livepool: a connection is held without a statement for longer than HoldLimit (pool_hold_limit) and is not kept alive any longer: "+
			"it is forgotten, or its holder takes long",
		slog.String("addr", c.addr()), slog.Uint64("thread_id", uint64(c.threadID())), slog.String("unit", holder),
		slog.Bool("in_transaction", c.transaction.open), slog.Duration("idle", idle), slog.String("stack", checkoutStack))
}

// peekAfter is how long a connection must have been parked before the socket is checked
// again. That costs little compared with the pause, and finds a connection that was
// closed meanwhile before anything is sent on it.
const peekAfter = 100 * time.Millisecond

// peekAfterPause checks the socket after a pause, before the request is sent.
func (c *conn) peekAfterPause(ctx context.Context, query string) error {
	if c.needsCheck || c.openResults > 0 || c.rawExposed || !c.ctr.peekSockets || c.transaction.poison != nil {
		return nil
	}
	peekErr := c.wire.Peek()
	switch {
	case peekErr == nil:
		return nil
	case !c.used: // nothing of the owner's is on it
		c.ctr.reportIdleLoss(&c.link, peekErr)
		c.ctr.recordDiscard(&c.link, ByPeek)
		return c.reconnect(ctx, ByPeek)
	}
	return c.handleFailure(ctx, c.recordParkedLoss(peekErr), query, c.written(), statementRequest)
}

// recordParkedLoss records and reports a connection that the socket shows to be closed,
// before the owner's next request was sent.
func (c *conn) recordParkedLoss(peekErr error) error {
	c.dead = true
	c.ctr.reportIdleLoss(&c.link, peekErr)
	if c.transaction.open {
		c.abandon()
	}
	return c.ctr.newIdleLossError(&c.link, c.requestStarted-c.lastRoundTrip, c.ownerPause.reported, peekErr)
}

// idleLossError says that a connection was lost while its owner sent nothing. The
// request that found this out was not sent.
type idleLossError struct {
	addr          string
	threadID      uint32
	idle          time.Duration // since its last answer
	pastKeepAlive bool          // it was idle for longer than the keep-alive would have allowed
	why           string
	cause         error
}

// newIdleLossError says how long a connection was idle, what may have closed it, and why
// it was not kept alive.
func (ctr *Connector) newIdleLossError(l *link, idle time.Duration, pastHoldLimit bool, cause error) error {
	if errors.Is(cause, net.ErrClosed) { // by this program
		why := "since the end of a statement's context, or a timeout of the driver's, closed it"
		return &idleLossError{ctr.addrOf(l), l.threadID(), idle, false, why, cause}
	}
	timeout, bound := time.Duration(0), ctr.Cfg.KeepAlive
	if l.facts != nil {
		timeout = l.facts.waitTimeout
	}
	if bound == 0 {
		bound = DefaultKeepAlive
	}
	why := "as a server ends what is idle for its wait_timeout, and a firewall what is idle for its own"
	switch {
	case timeout == 0:
	case idle >= timeout:
		why = fmt.Sprintf("which is longer than the server's wait_timeout, %s", timeout)
	default:
		why = fmt.Sprintf("which is less than the server's wait_timeout, %s: a restart, a KILL, an idle_transaction_timeout or a firewall has ended it", timeout)
	}
	if timeout > 0 {
		bound = min(bound, timeout/3)
	}
	switch {
	case ctr.Cfg.KeepAlive == 0:
		why += "; nothing kept it alive, because KeepAlive (pool_keepalive) is 0"
	case ctr.Cfg.HoldLimit == 0:
		why += "; nothing kept it alive, because HoldLimit (pool_hold_limit) is 0"
	case !ctr.keepParkedAlive:
		why += "; nothing kept it alive, because there is no Pool with livepool's dialer"
	case pastHoldLimit:
		why += fmt.Sprintf("; it was kept alive for no longer than HoldLimit (pool_hold_limit), %s", ctr.Cfg.HoldLimit)
	}
	return &idleLossError{ctr.addrOf(l), l.threadID(), idle, idle > 2*bound, why, cause}
}

func (e *idleLossError) Error() string {
	return fmt.Sprintf("livepool: connection %d to %s was lost before the statement was sent: nothing had been sent on it for %s, %s: %v",
		e.threadID, e.addr, e.idle.Round(time.Millisecond), e.why, e.cause)
}
func (e *idleLossError) Is(target error) bool { return target == driver.ErrBadConn }
func (e *idleLossError) Unwrap() error        { return e.cause }

// IsLossByPause says whether a unit's connection was lost because its function paused
// for too long: a retry would lose it again.
func IsLossByPause(err error) bool {
	var loss *idleLossError
	return errors.As(err, &loss) && loss.pastKeepAlive
}
