// ping.go decides whether a connection is alive, at checkout and before the
// first use of one that no checkout has seen, and spreads the news of a death
// to the others. It decides nothing about statements.

package livepool

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"
)

// verdict is what a check says of a connection: keep, or why not.
type verdict int

const (
	keep verdict = iota
	byRecycle
	byAge
	bySilence // no answer since another connection fell silent
	byPeek    // the socket shows that the server has hung up
	byDriver  // the driver's own ResetSession refused it
	byPing    // the ping failed
	byTimeout // the ping was not answered in time
	byCaller  // the caller's context ended in the middle of the ping
	verdicts  // how many there are
)

var verdictNames = [verdicts]string{
	byRecycle: "Recycle was called",
	byAge:     "it reached its age limit",
	bySilence: "it has not answered since another connection fell silent",
	byPeek:    "the server has hung up",
	byDriver:  "the driver says that it is closed, or refuses to reset it",
	byPing:    "its ping failed",
	byTimeout: "its ping was not answered in time",
	byCaller:  "the caller gave up during the ping",
}

func (v verdict) String() string { return verdictNames[v] }

// news is what one connection's death says of the others. Times are the
// connector's clock; before the first death both are before every birth.
type news struct {
	// hungUp is when a connection was last found closed by the other end. A
	// connection that has completed no round trip since is pinged before it is
	// trusted.
	hungUp atomic.Int64
	// silent is when the last request was sent whose answer was late. A connection
	// that has completed no round trip since is suspect: nobody gets it unasked, or
	// waits for its answer, which would cost another caller a PingTimeout.
	silent atomic.Int64
	// heard is a time until which the server is known to have gone on: it has let a
	// connection in then, or answered a ping that was sent well after.
	heard atomic.Int64
	told  atomic.Int64 // when there was the last news
}

func (n *news) init() {
	n.hungUp.Store(-1)
	n.silent.Store(-1)
	n.heard.Store(-1)
	n.told.Store(-1)
}

// spread notes a death or a silence, and says whether it is the first news in a
// while. since is, of a silence, when it had begun at the latest; now is when it
// was found.
func (n *news) spread(how loss, since, now time.Duration) (first bool) {
	if how == wentSilent {
		raise(&n.silent, since)
	} else {
		raise(&n.hungUp, since)
	}
	latest := n.told.Swap(int64(now))
	return latest < 0 || int64(now)-latest > int64(time.Second)
}

// raise never moves a time back: two connections may die in either order.
func raise(at *atomic.Int64, t time.Duration) {
	for old := at.Load(); int64(t) > old && !at.CompareAndSwap(old, int64(t)); old = at.Load() {
	}
}

// check looks at a connection that nobody uses, cheapest look first.
func (c *conn) check(ctx context.Context, mode pingMode) verdict {
	_, now := c.ctr.clock.bounds()
	if now >= c.expires {
		now = c.ctr.clock.now()
	}
	if v := c.retired(c.ctr, now); v != keep {
		return v
	}
	if c.isSuspect(c.ctr) {
		return bySilence
	}
	if err := c.peek(); err != nil {
		c.ctr.mournIdle(&c.link, err)
		return byPeek
	}
	if err := c.inner.ResetSession(ctx); err != nil {
		return byDriver
	}
	if mode == pingIdle && c.needsNoPing(ctx, now) {
		mode = pingOff
	}
	if mode == pingOff {
		return keep
	}
	return c.prePing(ctx)
}

// peek is what the socket says of an idle connection, if it can be looked at.
func (c *conn) peek() error {
	if c.wire == nil || !c.ctr.peeks {
		return nil
	}
	return c.wire.peek()
}

// unprovedSince says whether no round trip has completed since some news.
func (l *link) unprovedSince(at *atomic.Int64) bool { return int64(l.proved) <= at.Load() }

// needsNoPing says whether a connection that looks well is handed out without a
// ping: it has answered of late, or the caller has no time for one. Since a
// reading from before the process was stopped (a suspended VM) would trust what
// has been cut meanwhile, the clock is read now, when all looks are over. Of
// drivers other than MySQL's, which may work within the process, where that is
// not cheap beside the rest, an older reading serves.
func (c *conn) needsNoPing(ctx context.Context, latest time.Duration) bool {
	now := latest
	if c.wire != nil || c.ctr.mysql || now-c.proved > c.trust {
		now = c.ctr.clock.now()
	}
	switch {
	case c.unprovedSince(&c.ctr.news.hungUp), c.wire != nil && c.wire.raw == nil && c.ctr.peeks:
		return false
	case now-c.proved <= c.trust, c.trustsLonger(now - c.proved):
		return true
	}
	c.hurried = c.bearsNoPing(ctx)
	return c.hurried
}

// mournIdle spreads the news of a loss that a look at the socket found. If the
// kernel gave the peer up it did so at some time since the last answer; what
// answered later may be well.
func (ctr *connector) mournIdle(l *link, err error) {
	switch howLost(err) {
	case hungUp:
		ctr.died(l, hungUp, ctr.clock.now(), err)
	case wentSilent:
		ctr.died(l, wentSilent, l.proved, err)
	}
}

// prePing pings within PingTimeout. A caller whose context has ended already
// leaves the check to the first use. Neither the end of his patience nor of his
// context is evidence against the connection: the ping goes on without him, and
// the others learn what becomes of it.
func (c *conn) prePing(ctx context.Context) verdict {
	if ctx.Err() != nil {
		c.unchecked = true
		return keep
	}
	q := c.ctr.newPinging(c.link)
	if !c.ctr.spawn(func() { q.run() }) {
		q.end()
		return byDriver // the pool is closed
	}
	var v verdict
	left := false
	select {
	case v = <-q.answer:
	case <-q.late:
		v, left = q.leave(byTimeout)
	case <-ctx.Done():
		v, left = q.leave(byCaller)
	}
	if left {
		c.detach()
	} else {
		c.link = q.l
	}
	return v
}

// pinged judges a ping that was sent at sent by what came of it.
func (ctr *connector) pinged(l *link, sent time.Duration, err error) verdict {
	if err == nil {
		l.proved = max(ctr.clock.now(), sent+1) // after whatever was news when it was sent
		return keep
	}
	err = l.cause(err)
	switch {
	case ctr.life.Err() != nil:
		return byCaller
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		ctr.died(l, wentSilent, sent, err)
		return byTimeout
	default:
		ctr.died(l, hungUp, sent, err)
		return byPing
	}
}
