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
	// silent is when the last request was sent that never got its answer. A
	// connection that has completed no round trip since is discarded without a
	// ping, which would cost another caller a PingTimeout.
	silent atomic.Int64
}

func (n *news) init() {
	n.hungUp.Store(-1)
	n.silent.Store(-1)
}

// spread notes a death at since, and says whether it is the first in a while.
func (n *news) spread(since time.Duration, how loss) (first bool) {
	latest := max(n.hungUp.Load(), n.silent.Load())
	if how == wentSilent {
		raise(&n.silent, since)
	} else {
		raise(&n.hungUp, since)
	}
	return latest < 0 || int64(since)-latest > int64(time.Second)
}

// raise never moves a time back: two connections may die in either order.
func raise(at *atomic.Int64, t time.Duration) {
	for old := at.Load(); int64(t) > old && !at.CompareAndSwap(old, int64(t)); old = at.Load() {
	}
}

// check looks at a connection that nobody uses, cheapest look first. It reads the
// clock only if what it decides could depend on it.
func (c *conn) check(ctx context.Context, mode PrePing) verdict {
	_, now := c.ctr.clock.bounds()
	if now >= c.expires || now-c.proved > c.ctr.cfg.PingAfter {
		now = c.ctr.clock.now()
	}
	if v := c.retired(c.ctr, now); v != keep {
		return v
	}
	if int64(c.proved) <= c.ctr.news.silent.Load() {
		return bySilence
	}
	if c.wire != nil && c.ctr.peeks {
		if err := c.wire.peek(); err != nil {
			c.ctr.died(c, c.ctr.clock.now(), howLost(err), err)
			return byPeek
		}
	}
	if err := c.inner.ResetSession(ctx); err != nil {
		return byDriver
	}
	if !c.needsPing(mode, now) {
		return keep
	}
	return c.prePing(ctx)
}

func (c *conn) needsPing(mode PrePing, now time.Duration) bool {
	switch mode {
	case PrePingOff:
		return false
	case PrePingAlways:
		return true
	default:
		return now-c.proved > c.ctr.cfg.PingAfter ||
			int64(c.proved) <= c.ctr.news.hungUp.Load() ||
			c.wire != nil && c.wire.raw == nil && c.ctr.peeks
	}
}

// prePing pings within PingTimeout. A caller whose own context ends meanwhile
// is not evidence against the connection, but the driver closes it all the
// same; and a caller whose context has ended already leaves the check to the
// first use.
func (c *conn) prePing(ctx context.Context) verdict {
	if ctx.Err() != nil {
		c.unchecked = true
		return keep
	}
	sent := c.ctr.clock.now()
	err := c.boundedPing(ctx)
	switch {
	case err == nil:
		c.proved = c.ctr.clock.now()
		return keep
	case ctx.Err() != nil:
		return byCaller
	case errors.Is(err, context.DeadlineExceeded), errors.Is(c.cause(err), os.ErrDeadlineExceeded):
		c.ctr.died(c, sent, wentSilent, err)
		return byTimeout
	default:
		c.ctr.died(c, sent, hungUp, c.cause(err))
		return byPing
	}
}

func (c *conn) boundedPing(ctx context.Context) error {
	c.ctr.stats.pings.Add(1)
	ctx, cancel := context.WithTimeout(ctx, c.ctr.cfg.PingTimeout)
	defer cancel()
	return c.inner.Ping(ctx)
}
