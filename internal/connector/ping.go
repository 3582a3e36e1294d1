// ping.go decides whether a connection is alive, at checkout and before the
// first use of one that no checkout has seen, and spreads the news of a death
// to the others. It decides nothing about statements.

package connector

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/wire"
)

// Verdict is what a check says of a connection: keep, or why not.
type Verdict int

const (
	keep Verdict = iota
	ByRecycle
	ByAge
	BySilence // no answer since another connection fell silent
	ByPeek    // the socket shows that the server has hung up
	ByDriver  // the driver's own ResetSession refused it
	ByPing    // the ping failed
	ByTimeout // the ping was not answered in time
	ByCaller  // the caller's context ended in the middle of the ping
	verdicts  // how many there are
)

var verdictNames = [verdicts]string{
	ByRecycle: "Recycle was called",
	ByAge:     "it reached its age limit",
	BySilence: "it has not answered since another connection fell silent",
	ByPeek:    "the server has hung up",
	ByDriver:  "the driver says that it is closed, or refuses to reset it",
	ByPing:    "its ping failed",
	ByTimeout: "its ping was not answered in time",
	ByCaller:  "the caller gave up during the ping",
}

func (v Verdict) String() string { return verdictNames[v] }

// news is what one connection's death says of the others. Times are the
// connector's clock; before the first death both are before every birth.
type news struct {
	// lastHangup is when a connection was last found closed by the other end. A
	// connection that has completed no round trip since is pinged before it is
	// trusted.
	lastHangup atomic.Int64
	// lastSilence is when the last request was sent whose answer was late. A connection
	// that has completed no round trip since is suspect: nobody gets it unasked, or
	// waits for its answer, which would cost another caller a PingTimeout.
	lastSilence atomic.Int64
	// lastHeard is a time until which the server is known to have gone on: it has let a
	// connection in then, or answered a ping that was sent well after.
	lastHeard  atomic.Int64
	lastReport atomic.Int64 // when there was the last news
}

func (n *news) init() {
	n.lastHangup.Store(-1)
	n.lastSilence.Store(-1)
	n.lastHeard.Store(-1)
	n.lastReport.Store(-1)
}

// record notes a death or a silence, and says whether it is the first news in a
// while. since is, of a silence, when it had begun at the latest; now is when it
// was found.
func (n *news) record(kind wire.Loss, since, now time.Duration) (isFirst bool) {
	if kind == wire.WentSilent {
		storeMax(&n.lastSilence, since)
	} else {
		storeMax(&n.lastHangup, since)
	}
	latest := n.lastReport.Swap(int64(now))
	return latest < 0 || int64(now)-latest > int64(time.Second)
}

// storeMax never moves a time back: two connections may die in either order.
func storeMax(at *atomic.Int64, t time.Duration) {
	for old := at.Load(); int64(t) > old && !at.CompareAndSwap(old, int64(t)); old = at.Load() {
	}
}

// check looks at a connection that nobody uses, cheapest look first.
func (c *conn) check(ctx context.Context, mode PingMode) Verdict {
	_, now := c.ctr.clock.Bounds()
	if now >= c.expires {
		now = c.ctr.clock.Now()
	}
	if v := c.retirement(c.ctr, now); v != keep {
		return v
	}
	if c.isSuspect(c.ctr) {
		return BySilence
	}
	if err := c.peek(); err != nil {
		c.ctr.reportIdleLoss(&c.link, err)
		return ByPeek
	}
	if err := c.driverConn.ResetSession(ctx); err != nil {
		return ByDriver
	}
	if mode == pingIdle && c.canSkipPing(ctx, now) {
		mode = pingOff
	}
	if mode == pingOff {
		return keep
	}
	return c.prePing(ctx)
}

// peek is what the socket says of an idle connection, if it can be looked at.
func (c *conn) peek() error {
	if c.wire == nil || !c.ctr.peekSockets {
		return nil
	}
	return c.wire.Peek()
}

// noRoundTripSince says whether no round trip has completed since some news.
func (l *link) noRoundTripSince(at *atomic.Int64) bool { return int64(l.lastRoundTrip) <= at.Load() }

// canSkipPing says whether a connection that looks well is handed out without a
// ping: it has answered of late, or the caller has no time for one. Since a
// reading from before the process was stopped (a suspended VM) would trust what
// has been cut meanwhile, the clock is read now, when all looks are over. Of
// drivers other than MySQL's, which may work within the process, where that is
// not cheap beside the rest, an older reading serves.
func (c *conn) canSkipPing(ctx context.Context, latest time.Duration) bool {
	now := latest
	if c.wire != nil || c.ctr.IsMySQL || now-c.lastRoundTrip > c.pingAfter {
		now = c.ctr.clock.Now()
	}
	switch {
	case c.noRoundTripSince(&c.ctr.news.lastHangup), c.wire != nil && c.wire.Raw == nil && c.ctr.peekSockets:
		return false
	case now-c.lastRoundTrip <= c.pingAfter, c.isTrustExtended(now - c.lastRoundTrip):
		return true
	}
	c.pingSkipped = c.hasNoTimeForPing(ctx)
	return c.pingSkipped
}

// reportIdleLoss spreads the news of a loss that a look at the socket found. If the
// kernel gave the peer up it did so at some time since the last answer; what
// answered later may be well.
func (ctr *Connector) reportIdleLoss(l *link, err error) {
	switch wire.LossOf(err) {
	case wire.HungUp:
		ctr.recordDeath(l, wire.HungUp, ctr.clock.Now(), err)
	case wire.WentSilent:
		ctr.recordDeath(l, wire.WentSilent, l.lastRoundTrip, err)
	}
}

// prePing pings within PingTimeout. A caller whose context has ended already
// leaves the check to the first use. Neither the end of his patience nor of his
// context is evidence against the connection: the ping goes on without him, and
// the others learn what becomes of it.
func (c *conn) prePing(ctx context.Context) Verdict {
	if ctx.Err() != nil {
		c.needsCheck = true
		return keep
	}
	q := c.ctr.newPendingPing(c.link)
	if !c.ctr.spawn(func() { q.run() }) {
		q.cancel()
		return ByDriver // the pool is closed
	}
	var v Verdict
	unattended := false
	select {
	case v = <-q.answer:
	case <-q.late:
		v, unattended = q.leaveUnattended(ByTimeout)
	case <-ctx.Done():
		v, unattended = q.leaveUnattended(ByCaller)
	}
	if unattended {
		c.detach()
	} else {
		c.link = q.link
	}
	return v
}

// judgePing judges a ping that was sent at sent by what came of it.
func (ctr *Connector) judgePing(l *link, sent time.Duration, err error) Verdict {
	if err == nil {
		l.lastRoundTrip = max(ctr.clock.Now(), sent+1) // after whatever was news when it was sent
		return keep
	}
	err = l.ioCause(err)
	switch {
	case ctr.Ctx.Err() != nil:
		return ByCaller
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		ctr.recordDeath(l, wire.WentSilent, sent, err)
		return ByTimeout
	default:
		ctr.recordDeath(l, wire.HungUp, sent, err)
		return ByPing
	}
}
