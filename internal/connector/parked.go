// parked.go keeps a connection alive whose owner is elsewhere: the function of a
// unit, or whoever holds a sql.Tx or sql.Conn, calls a slow service between two
// statements, and the server closes what is idle for wait_timeout. The
// maintainer pings such a connection under the same exclusion as the owner's
// statements, until HoldLimit has passed without one.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/wire"
)

// isCheckedOut says whether a connection with that state is an owner's.
func isCheckedOut(state int32) bool { return state < idle }

// park ends a request: as long as nothing is under way on the connection, the
// maintainer may ping it. What forgets to call it is not kept alive, and no
// more.
func (c *conn) park() {
	if c.ctr.keepParkedAlive {
		c.parkNow()
	}
}

func (c *conn) parkNow() {
	if c.openResults == 0 && !c.rawExposed {
		c.state.CompareAndSwap(inUse, parked) // and not from under a ping that is still under way
	}
}

// parkWith is rest for a request that failed.
func (c *conn) parkWith(err error) error {
	if err != nil {
		err = c.hideBadConn(err) // before the maintainer may look
	}
	c.park()
	return err
}

// resume begins a request: it takes the connection back from the maintainer. An
// owner whose context ends while a ping is under way still has it.
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

// resumeBounded is resume for what has no context: COMMIT, ROLLBACK and the return
// of the connection. It waits for CommitTimeout; a connection on which a ping is
// still under way then is given up, and closed when that has ended.
func (c *conn) resumeBounded() error {
	if !c.ctr.keepParkedAlive || c.state.CompareAndSwap(parked, inUse) {
		return nil
	}
	if c.dead {
		return driver.ErrBadConn
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.Cfg.CommitTimeout)
	defer cancel()
	failure, err := c.awaitPing(ctx)
	switch {
	case err != nil:
		err = fmt.Errorf("%w: its keep-alive ping has had no answer for CommitTimeout (pool_commit_timeout), %s", driver.ErrBadConn, c.ctr.Cfg.CommitTimeout)
		c.abandon()
	case failure != nil:
		err = failure.err
		c.setUnitOrphan(failure.orphan)
	}
	c.dead = c.dead || err != nil
	return err
}

// awaitPing waits for the end of a ping, and returns what it has found if the
// owner must know.
func (c *conn) awaitPing(ctx context.Context) (*parkedFailure, error) {
	if state := c.state.Load(); state == inUse || !isCheckedOut(state) {
		return nil, nil // busy already, or to be claimed
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

// setUnitOrphan has the unit wait for the end of what it has left on the server.
func (c *conn) setUnitOrphan(orphan *orphan) {
	if unit := c.transaction.unit; unit != nil && orphan != nil {
		unit.Orphan.Store(orphan)
	}
}

// parkedFailure is what a ping found of which the owner must know: the connection was
// lost, or its transaction.
type parkedFailure struct {
	err    error
	orphan *orphan
}

// ownerPause is the owner's absence since its last request.
type ownerPause struct {
	lastRequest time.Duration // conn.entered, by which it is recognised
	answeredAt  time.Duration // its answer
	reported    bool          // it is longer than HoldLimit
}

// reserveParked runs f on a connection whose owner is elsewhere, as visitIdle on
// one that has none.
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

// maintainParked is look on a connection whose owner is elsewhere.
func (m *maintainer) maintainParked(c *conn) (due time.Duration) {
	keepAlive, limit := c.keepAlive, m.ctr.Cfg.HoldLimit
	if c.unconnected || keepAlive == 0 {
		return m.nextRegularRound()
	}
	if c.ownerPause.lastRequest != c.requestStarted {
		c.ownerPause = ownerPause{lastRequest: c.requestStarted, answeredAt: c.lastRoundTrip}
	}
	now := m.ctr.clock.Now()
	untilPing, untilHoldLimit := c.lastRoundTrip+keepAlive-now, addClamped(c.ownerPause.answeredAt, limit, 0)-now
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

// pingParked pings a connection whose owner is elsewhere. It is called during a
// visit, which it prolongs. It is as patient as a statement: what ends it is the
// stall check, the kernel or the other end, so that a server that is slow for a
// moment costs nobody a transaction.
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
			failure = &parkedFailure{err: err} // of the transaction, as any statement would be told
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
// PingTimeout more.
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
	return l.driverConn.Ping(context.Background()) // no context to be watched
}

// releaseParked ends a visit during which the owner was elsewhere. It returns
// false if the connection is not wanted any more, and then its link is the
// visitor's to close.
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
	c.state.Store(parked)
	if failure != nil {
		c.state.Store(parkedFailed)
	}
	return true
}

// reportHoldLimit reports a connection that is not kept alive any longer.
func (m *maintainer) reportHoldLimit(c *conn, idle time.Duration) {
	holder, checkoutStack := "a sql.Conn outside of a session", "set LeakAfter (pool_leak_after) to have it recorded"
	switch unit := c.transaction.unit; {
	case unit != nil:
		holder = unit.Name
	case c.transaction.open:
		holder = "a sql.Tx outside of a session"
	}
	if h := c.checkout.Load(); h != nil {
		checkoutStack = stackOf(h.stack)
	}
	m.ctr.Cfg.Log.LogAttrs(context.Background(), slog.LevelWarn,
		"livepool: a connection is held without a statement for longer than HoldLimit (pool_hold_limit) and is not kept alive any longer: "+
			"it is forgotten, or its holder takes long",
		slog.String("addr", m.ctr.addr), slog.Uint64("thread_id", uint64(c.threadID())), slog.String("unit", holder),
		slog.Bool("in_transaction", c.transaction.open), slog.Duration("idle", idle), slog.String("stack", checkoutStack))
}

// peekAfter is how long an owner must have been elsewhere for a look at the
// socket before its next statement: nothing beside the pause, and it tells a
// connection that the pause has ended, on which nothing was sent.
const peekAfter = 100 * time.Millisecond

// peekAfterPause looks at the socket after a pause, before anything else is done about
// the request.
func (c *conn) peekAfterPause(ctx context.Context, query string) error {
	if c.needsCheck || c.openResults > 0 || c.rawExposed || !c.ctr.peekSockets || c.transaction.poison != nil {
		return nil
	}
	peekErr := c.wire.Peek()
	switch {
	case peekErr == nil:
		return nil
	case !c.used: // and nothing of the owner's is on it
		c.ctr.reportIdleLoss(&c.link, peekErr)
		c.ctr.recordDiscard(&c.link, ByPeek)
		return c.reconnect(ctx, ByPeek)
	}
	return c.handleFailure(ctx, c.recordParkedLoss(peekErr), query, c.written(), statementRequest)
}

// recordParkedLoss notes a connection that a look at the socket found closed while its
// owner sent nothing, and tells of it.
func (c *conn) recordParkedLoss(peekErr error) error {
	c.dead = true
	c.ctr.reportIdleLoss(&c.link, peekErr)
	if c.transaction.open {
		c.abandon()
	}
	return c.ctr.newIdleLossError(&c.link, c.requestStarted-c.lastRoundTrip, c.ownerPause.reported, peekErr)
}

// idleLossError is a connection that was lost while its owner sent nothing. The
// request that met it was not sent.
type idleLossError struct {
	addr          string
	threadID      uint32
	idle          time.Duration // since its last answer
	pastKeepAlive bool          // it was idle for longer than it would be if it were kept alive
	why           string
	cause         error
}

// newIdleLossError tells how long a connection was idle, what may have cut it, and why it
// was not kept alive.
func (ctr *Connector) newIdleLossError(l *link, idle time.Duration, pastHoldLimit bool, cause error) error {
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
	return &idleLossError{ctr.addr, l.threadID(), idle, idle > 2*bound, why, cause}
}

func (e *idleLossError) Error() string {
	return fmt.Sprintf("livepool: connection %d to %s was lost before the statement was sent: nothing had been sent on it for %s, %s: %v",
		e.threadID, e.addr, e.idle.Round(time.Millisecond), e.why, e.cause)
}
func (e *idleLossError) Is(target error) bool { return target == driver.ErrBadConn }
func (e *idleLossError) Unwrap() error        { return e.cause }

// IsLossByPause says whether a unit's connection was lost because its function was
// elsewhere for too long: it would be so again.
func IsLossByPause(err error) bool {
	var loss *idleLossError
	return errors.As(err, &loss) && loss.pastKeepAlive
}
