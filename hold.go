// hold.go keeps a connection alive whose owner is elsewhere: the function of a
// unit, or whoever holds a sql.Tx or sql.Conn, calls a slow service between two
// statements, and the server closes what is idle for wait_timeout. The
// maintainer pings such a connection under the same exclusion as the owner's
// statements, until HoldLimit has passed without one.

package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// held says whether a connection with that state is an owner's.
func held(state int32) bool { return state < idle }

// rest ends a request: as long as nothing is under way on the connection, the
// maintainer may ping it. What forgets to call it is not kept alive, and no
// more.
func (c *conn) rest() {
	if c.ctr.keepsHeld {
		c.restNow()
	}
}

func (c *conn) restNow() {
	if c.results == 0 && !c.lent {
		c.state.CompareAndSwap(inUse, atRest) // and not from under a ping that is still under way
	}
}

// restWith is rest for a request that failed.
func (c *conn) restWith(err error) error {
	if err != nil {
		err = c.withheld(err) // before the maintainer may look
	}
	c.rest()
	return err
}

// resume begins a request: it takes the connection back from the maintainer. An
// owner whose context ends while a ping is under way still has it.
func (c *conn) resume(ctx context.Context, query string) error {
	if c.state.CompareAndSwap(atRest, inUse) {
		return nil
	}
	end, err := c.awaitPing(ctx)
	if err != nil || end == nil {
		return err
	}
	if !c.used && errorNumber(end.err) == 0 {
		l := c.detach() // nothing of the owner's is on it: the first use opens another
		l.close()
		return nil
	}
	c.entered = c.ctr.clock.now()
	c.tellUnit(end.orphan)
	return c.restWith(c.failed(ctx, end.err, query, c.written(), effectUnknown))
}

// resumeToEnd is resume for what has no context: COMMIT, ROLLBACK and the return
// of the connection. It waits for CommitTimeout; a connection on which a ping is
// still under way then is given up, and closed when that has ended.
func (c *conn) resumeToEnd() error {
	if !c.ctr.keepsHeld || c.state.CompareAndSwap(atRest, inUse) {
		return nil
	}
	if c.dead {
		return driver.ErrBadConn
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.cfg.CommitTimeout)
	defer cancel()
	end, err := c.awaitPing(ctx)
	switch {
	case err != nil:
		err = fmt.Errorf("%w: its keep-alive ping has had no answer for CommitTimeout (pool_commit_timeout), %s", driver.ErrBadConn, c.ctr.cfg.CommitTimeout)
		c.abandoned()
	case end != nil:
		err = end.err
		c.tellUnit(end.orphan)
	}
	c.dead = c.dead || err != nil
	return err
}

// awaitPing waits for the end of a ping, and returns what it has found if the
// owner must know.
func (c *conn) awaitPing(ctx context.Context) (*restEnd, error) {
	if state := c.state.Load(); state == inUse || !held(state) {
		return nil, nil // busy already, or to be claimed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := c.visit; v != nil; v = c.visit {
		c.mu.Unlock()
		select {
		case <-v.over:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if c.visit == v {
			return nil, ctx.Err()
		}
	}
	c.state.Store(inUse)
	end := c.restEnd
	c.restEnd = nil
	return end, nil
}

// tellUnit has the unit wait for the end of what it has left on the server.
func (c *conn) tellUnit(orphan *ghost) {
	if unit := c.transaction.unit; unit != nil && orphan != nil {
		unit.ghost.Store(orphan)
	}
}

// restEnd is what a ping found of which the owner must know: the connection was
// lost, or its transaction.
type restEnd struct {
	err    error
	orphan *ghost
}

// pause is the owner's absence since its last request.
type pause struct {
	request time.Duration // conn.entered, by which it is recognised
	since   time.Duration // its answer
	told    bool          // it is longer than HoldLimit
}

// visitAtRest runs f on a connection whose owner is elsewhere, as visitIdle on
// one that has none.
func (c *conn) visitAtRest(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone || !c.state.CompareAndSwap(atRest, visitedAtRest) {
		return
	}
	f()
	if c.visit == nil {
		c.state.Store(atRest)
	}
}

// tendHeld is look on a connection whose owner is elsewhere.
func (m *maintainer) tendHeld(c *conn) (due time.Duration) {
	keepAlive, limit := c.keepAlive, m.ctr.cfg.HoldLimit
	if c.shell || keepAlive == 0 {
		return m.soon()
	}
	if c.pause.request != c.entered {
		c.pause = pause{request: c.entered, since: c.proved}
	}
	now := m.ctr.clock.now()
	next, last := c.proved+keepAlive-now, later(c.pause.since, limit, 0)-now
	switch {
	case c.pause.told:
	case last <= 0:
		c.pause.told = true
		m.tellHeld(c, now-c.pause.since)
	case next <= 0:
		m.pingHeld(c)
	default:
		return min(next, last)
	}
	return m.soon()
}

// pingHeld pings a connection whose owner is elsewhere. It is called during a
// visit, which it prolongs. It is as patient as a statement: what ends it is the
// stall check, the kernel or the other end, so that a server that is slow for a
// moment costs nobody a transaction.
func (m *maintainer) pingHeld(c *conn) {
	ctr, l, v, inTx := m.ctr, c.link, &visit{over: make(chan struct{})}, c.transaction.open
	if !ctr.spawn(func() {
		ctr.stats.pings.Add(1)
		ctr.stats.keptAlive.Add(1)
		sent := ctr.clock.now()
		err := ctr.pingPatiently(&l)
		now := ctr.clock.now()
		var end *restEnd
		switch class := ctr.classify(err); {
		case err == nil, errorNumber(err) != 0 && class&ConnDead == 0 && !inTx:
			l.proved = max(now, sent+1)
		case errorNumber(err) != 0 && class&ConnDead == 0:
			end = &restEnd{err: err} // of the transaction, as any statement would be told
		default:
			end = &restEnd{err: ctr.idleLoss(&l, now-l.proved, false, l.cause(err))}
			if inTx {
				end.orphan = ctr.abandon(&l, true)
			}
			if errorNumber(err) != 0 {
				ctr.died(&l, hungUp, now, err)
			}
			ctr.mourn(&l, err)
		}
		if !c.leaveAtRest(v, l, end) {
			l.close()
		}
	}) {
		return
	}
	c.visit = v
}

// pingPatiently pings without a deadline. When the pool is closed it waits for
// PingTimeout more.
func (ctr *connector) pingPatiently(l *link) error {
	answered := make(chan struct{})
	stop := context.AfterFunc(ctr.life, func() {
		waitFor(context.Background(), answered, ctr.cfg.PingTimeout)
		select {
		case <-answered:
		default:
			l.wire.Close()
		}
	})
	defer stop()
	defer close(answered)
	return l.inner.Ping(context.Background()) // no context to be watched
}

// leaveAtRest ends a visit during which the owner was elsewhere. It returns
// false if the connection is not wanted any more, and then its link is the
// visitor's to close.
func (c *conn) leaveAtRest(v *visit, l link, end *restEnd) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.payOwed(v, end == nil)
	if c.visit != v {
		return false
	}
	c.proved, c.mourned, c.restEnd = l.proved, l.mourned, end
	close(v.over)
	c.visit = nil
	c.state.Store(atRest)
	if end != nil {
		c.state.Store(endedAtRest)
	}
	return true
}

// tellHeld reports a connection that is not kept alive any longer.
func (m *maintainer) tellHeld(c *conn, idle time.Duration) {
	what, stack := "a sql.Conn outside of a session", "set LeakAfter (pool_leak_after) to have it recorded"
	switch unit := c.transaction.unit; {
	case unit != nil:
		what = unit.name
	case c.transaction.open:
		what = "a sql.Tx outside of a session"
	}
	if h := c.held.Load(); h != nil {
		stack = stackOf(h.stack)
	}
	m.ctr.cfg.Log.LogAttrs(context.Background(), slog.LevelWarn,
		"livepool: a connection is held without a statement for longer than HoldLimit (pool_hold_limit) and is not kept alive any longer: "+
			"it is forgotten, or its holder takes long",
		slog.String("addr", m.ctr.addr), slog.Uint64("thread_id", uint64(c.threadID())), slog.String("unit", what),
		slog.Bool("in_transaction", c.transaction.open), slog.Duration("idle", idle), slog.String("stack", stack))
}

// lookAfter is how long an owner must have been elsewhere for a look at the
// socket before its next statement: nothing beside the pause, and it tells a
// connection that the pause has ended, on which nothing was sent.
const lookAfter = 100 * time.Millisecond

// lookBack looks at the socket after a pause, before anything else is done about
// the request.
func (c *conn) lookBack(ctx context.Context, query string) error {
	if c.unchecked || c.results > 0 || c.lent || !c.ctr.peeks || c.transaction.poison != nil {
		return nil
	}
	seen := c.wire.peek()
	switch {
	case seen == nil:
		return nil
	case !c.used: // and nothing of the owner's is on it
		c.ctr.mournIdle(&c.link, seen)
		c.ctr.discarded(&c.link, byPeek)
		return c.renew(ctx, byPeek)
	}
	return c.failed(ctx, c.lostAtRest(seen), query, c.written(), effectUnknown)
}

// lostAtRest notes a connection that a look at the socket found closed while its
// owner sent nothing, and tells of it.
func (c *conn) lostAtRest(seen error) error {
	c.dead = true
	c.ctr.mournIdle(&c.link, seen)
	if c.transaction.open {
		c.abandoned()
	}
	return c.ctr.idleLoss(&c.link, c.entered-c.proved, c.pause.told, seen)
}

// idleLossError is a connection that was lost while its owner sent nothing. The
// request that met it was not sent.
type idleLossError struct {
	addr     string
	threadID uint32
	idle     time.Duration // since its last answer
	byPause  bool          // it was idle for longer than it would be if it were kept alive
	story    string
	cause    error
}

// idleLoss tells how long a connection was idle, what may have cut it, and why it
// was not kept alive.
func (ctr *connector) idleLoss(l *link, idle time.Duration, pastLimit bool, cause error) error {
	timeout, bound := time.Duration(0), ctr.cfg.KeepAlive
	if l.facts != nil {
		timeout = l.facts.waitTimeout
	}
	if bound == 0 {
		bound = defaultKeepAlive
	}
	story := "as a server ends what is idle for its wait_timeout, and a firewall what is idle for its own"
	switch {
	case timeout == 0:
	case idle >= timeout:
		story = fmt.Sprintf("which is longer than the server's wait_timeout, %s", timeout)
	default:
		story = fmt.Sprintf("which is less than the server's wait_timeout, %s: a restart, a KILL, an idle_transaction_timeout or a firewall has ended it", timeout)
	}
	if timeout > 0 {
		bound = min(bound, timeout/3)
	}
	switch {
	case ctr.cfg.KeepAlive == 0:
		story += "; nothing kept it alive, because KeepAlive (pool_keepalive) is 0"
	case ctr.cfg.HoldLimit == 0:
		story += "; nothing kept it alive, because HoldLimit (pool_hold_limit) is 0"
	case !ctr.keepsHeld:
		story += "; nothing kept it alive, because there is no Pool with livepool's dialer"
	case pastLimit:
		story += fmt.Sprintf("; it was kept alive for no longer than HoldLimit (pool_hold_limit), %s", ctr.cfg.HoldLimit)
	}
	return &idleLossError{ctr.addr, l.threadID(), idle, idle > 2*bound, story, cause}
}

func (e *idleLossError) Error() string {
	return fmt.Sprintf("livepool: connection %d to %s was lost before the statement was sent: nothing had been sent on it for %s, %s: %v",
		e.threadID, e.addr, e.idle.Round(time.Millisecond), e.story, e.cause)
}
func (e *idleLossError) Is(target error) bool { return target == driver.ErrBadConn }
func (e *idleLossError) Unwrap() error        { return e.cause }

// diedOfPause says whether a unit's connection was lost because its function was
// elsewhere for too long: it would be so again.
func diedOfPause(err error) bool {
	var loss *idleLossError
	return errors.As(err, &loss) && loss.byPause
}
