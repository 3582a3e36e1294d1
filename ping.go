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

// spread notes a death, and says whether it is the first in a while. since is,
// of a silence, when it had begun at the latest; now is when it was found.
func (n *news) spread(how loss, since, now time.Duration) (first bool) {
	latest := max(n.hungUp.Load(), n.silent.Load())
	if how == wentSilent {
		raise(&n.silent, since)
	} else {
		raise(&n.hungUp, since)
	}
	return latest < 0 || int64(now)-latest > int64(time.Second)
}

// raise never moves a time back: two connections may die in either order.
func raise(at *atomic.Int64, t time.Duration) {
	for old := at.Load(); int64(t) > old && !at.CompareAndSwap(old, int64(t)); old = at.Load() {
	}
}

// check looks at a connection that nobody uses, cheapest look first. Whether it
// is trusted depends on the time: a reading from before the process was stopped
// (a suspended VM) would trust what has been cut meanwhile. Only where there is
// no network to be cut does a reading serve that may be old.
func (c *conn) check(ctx context.Context, mode PrePing) verdict {
	_, now := c.ctr.clock.bounds()
	if c.remote || now >= c.expires || now-c.proved > c.trust {
		now = c.ctr.clock.now()
	}
	if v := c.retired(c.ctr, now); v != keep {
		return v
	}
	if v, err := c.looksDead(); v != keep {
		c.ctr.mournIdle(&c.link, err)
		return v
	}
	if err := c.inner.ResetSession(ctx); err != nil {
		return byDriver
	}
	if !c.needsPing(mode, now) {
		return keep
	}
	return c.prePing(ctx)
}

// looksDead is what can be told of an idle connection without asking it, and
// what its socket says of that.
func (c *conn) looksDead() (verdict, error) {
	if c.unprovedSince(&c.ctr.news.silent) {
		return bySilence, nil
	}
	if c.wire != nil && c.ctr.peeks {
		if err := c.wire.peek(); err != nil {
			return byPeek, err
		}
	}
	return keep, nil
}

// unprovedSince says whether no round trip has completed since some news.
func (l *link) unprovedSince(at *atomic.Int64) bool { return int64(l.proved) <= at.Load() }

func (c *conn) needsPing(mode PrePing, now time.Duration) bool {
	switch mode {
	case PrePingOff:
		return false
	case PrePingAlways:
		return true
	default:
		return now-c.proved > c.trust ||
			c.unprovedSince(&c.ctr.news.hungUp) ||
			c.wire != nil && c.wire.raw == nil && c.ctr.peeks
	}
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
// leaves the check to the first use. One whose context ends meanwhile is no
// evidence against the connection, and need not wait for any: the ping goes on
// without him, so that the others learn what becomes of it.
func (c *conn) prePing(ctx context.Context) verdict {
	if ctx.Err() != nil {
		c.unchecked = true
		return keep
	}
	c.ctr.stats.pings.Add(1)
	if ctx.Done() != nil {
		return c.pingFor(ctx)
	}
	sent := c.ctr.clock.now()
	return c.ctr.pinged(&c.link, sent, c.ctr.ping(&c.inner))
}

// pingFor pings for a caller who may give up meanwhile.
func (c *conn) pingFor(ctx context.Context) verdict {
	sent := c.ctr.clock.now()
	l := c.link
	answer := make(chan error, 1)
	asked := make(chan bool, 1) // whether the caller still asks when the answer is there
	if !c.ctr.spawn(func() {
		err := c.ctr.ping(&l.inner)
		answer <- err
		if !<-asked {
			c.ctr.pinged(&l, sent, err)
			l.close()
		}
	}) {
		return byDriver // the pool is closed
	}
	select {
	case err := <-answer:
		asked <- true
		return c.ctr.pinged(&c.link, sent, err)
	case <-ctx.Done():
		c.ctr.discarded(&l, byCaller)
		c.detach()
		asked <- false
		return byCaller
	}
}

func (ctr *connector) ping(in *inner) error {
	ctx, cancel := context.WithTimeout(ctr.life, ctr.cfg.PingTimeout)
	defer cancel()
	return ctr.pingUnder(ctx, in)
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
