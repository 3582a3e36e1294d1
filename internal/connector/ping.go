// ping.go decides whether a connection is alive, at a checkout and before the first use
// of one that was not checked, and records what the loss of one implies for the others.
// It decides nothing about statements.

package connector

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/wire"
)

// Verdict is the result of a check: keep, or the reason to discard the connection.
type Verdict int

const (
	keep Verdict = iota
	ByRecycle
	ByAge
	BySilence // no answer since another connection did not answer in time
	ByPeek    // the socket shows that the server has closed it
	ByDriver  // the driver's own ResetSession refused it
	ByPing    // the ping failed
	ByTimeout // the ping was not answered in time
	ByCaller  // the caller's context ended during the ping
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

// news is what the loss of one connection implies for the others. Times are the
// connector's clock, and -1 before the first loss. Any goroutine writes them, with
// storeMax or Swap.
type news struct {
	// lastHangup is when a connection was last found closed by the other end. A
	// connection without a round trip since then is pinged before it is handed out.
	lastHangup atomic.Int64
	// lastSilence is when the last request was sent whose answer was late. A connection
	// without a round trip since then is suspect: it is handed out only after it
	// answered a ping, and nobody waits for that ping, which would cost another caller a
	// PingTimeout.
	lastSilence atomic.Int64
	// lastHeard is a time at which the server is known to have worked: it accepted a
	// connection then, or answered a ping that was sent well after.
	lastHeard  atomic.Int64
	lastReport atomic.Int64 // when a loss was last recorded
}

func (n *news) init() {
	n.lastHangup.Store(-1)
	n.lastSilence.Store(-1)
	n.lastHeard.Store(-1)
	n.lastReport.Store(-1)
}

// record notes a loss, and says whether it is the first within a second. since is when a
// silence began, at the latest; now is when it was found.
func (n *news) record(kind wire.Loss, since, now time.Duration) (isFirst bool) {
	if kind == wire.WentSilent {
		storeMax(&n.lastSilence, since)
	} else {
		storeMax(&n.lastHangup, since)
	}
	latest := n.lastReport.Swap(int64(now))
	return latest < 0 || int64(now)-latest > int64(time.Second)
}

// storeMax never moves a time back, because losses may be recorded in any order.
func storeMax(at *atomic.Int64, t time.Duration) {
	for old := at.Load(); int64(t) > old && !at.CompareAndSwap(old, int64(t)); old = at.Load() {
	}
}

// check decides about a connection that nobody uses. The cheapest test comes first.
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

// peek checks the socket of an idle connection, if the platform allows it.
func (c *conn) peek() error {
	if c.wire == nil || !c.ctr.peekSockets {
		return nil
	}
	return c.wire.Peek()
}

// noRoundTripSince says whether the last round trip is not newer than some news.
func (l *link) noRoundTripSince(at *atomic.Int64) bool { return int64(l.lastRoundTrip) <= at.Load() }

// canSkipPing says whether a connection without a visible fault is handed out without a
// ping: it has answered recently, or the caller has no time for a ping. The clock is
// read only now, after all other tests: with an earlier reading a process that was
// suspended meanwhile would trust a connection that has been closed since. Other drivers
// may work within the process, where reading the clock is a large part of the cost;
// there an earlier reading is enough.
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

// reportIdleLoss reports a loss that was seen on the idle socket. If the kernel gave the
// peer up, that was at some time after the last answer; a connection that has answered
// later may be alive.
func (ctr *Connector) reportIdleLoss(l *link, err error) {
	switch wire.LossOf(err) {
	case wire.HungUp:
		ctr.recordDeath(l, wire.HungUp, ctr.clock.Now(), err)
	case wire.WentSilent:
		ctr.recordDeath(l, wire.WentSilent, l.lastRoundTrip, err)
	}
}

// prePing pings within PingTimeout. If the caller's context has ended already, the check
// is left to the first use. Neither the timeout nor the end of the caller's context
// proves anything about the connection: the ping continues in the background, and its
// result counts for the others.
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

// judgePing is the verdict of a ping that was sent at the given time and returned err.
func (ctr *Connector) judgePing(l *link, sent time.Duration, err error) Verdict {
	if err == nil {
		l.lastRoundTrip = max(ctr.clock.Now(), sent+1) // later than any news from before it was sent
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
