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

// Verdict is the result of a check: keep, postponed, or the reason to discard the
// connection.
type Verdict int

const (
	keep      Verdict = iota
	postponed         // the caller's context had ended before: the first use is to check it
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

// check decides about a connection that nobody uses. The cheapest test comes first.
func (c *conn) check(ctx context.Context, mode PingMode) Verdict {
	now := c.ctr.clock.Latest() // cheap; near the age limit the exact time decides
	if now >= c.expires {
		now = c.ctr.clock.Now()
	}
	if v := c.retirement(now); v != keep {
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

// noRoundTripSince says whether the last round trip was before the news, or at the same
// time.
func (l *link) noRoundTripSince(at *atomic.Int64) bool { return int64(l.lastRoundTrip) <= at.Load() }

// isSuspect says whether another connection did not answer in time since this one's last
// round trip.
func (l *link) isSuspect(ctr *Connector) bool { return l.noRoundTripSince(&ctr.news.lastSilence) }

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

// isTrustExtended says whether the last round trip makes a ping unnecessary for longer
// than PingAfter: where answers are slow, pings would be half of the work.
func (c *conn) isTrustExtended(sinceRoundTrip time.Duration) bool {
	rtt := c.ctr.roundTrip.get()
	if 2*rtt <= c.ctr.Cfg.PingTimeout {
		return false
	}
	maxTrust := min(4*rtt, 10*c.pingAfter)
	if c.keepAlive > 0 {
		maxTrust = min(maxTrust, c.keepAlive)
	}
	return sinceRoundTrip <= maxTrust
}

// hasNoTimeForPing says whether the caller's deadline leaves no time for a ping and a
// statement, so that it could never succeed. The socket has been checked.
func (c *conn) hasNoTimeForPing(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	rtt := c.ctr.roundTrip.get()
	return ok && rtt > 0 && c.wire != nil && c.wire.Raw != nil && c.ctr.peekSockets && time.Until(deadline) < 4*rtt
}

// prePing pings within PingTimeout. Neither the timeout nor the end of the caller's context
// proves anything about the connection: the ping continues in the background, and its
// result counts for the others.
func (c *conn) prePing(ctx context.Context) Verdict {
	switch {
	case ctx.Err() != nil:
		return postponed
	case c.ctr.Tracer.HasEvents():
		return c.pingTraced(ctx)
	}
	return c.pingNow(ctx)
}

func (c *conn) pingNow(ctx context.Context) Verdict {
	if c.wire.CanPing() && !c.ctr.InCluster.Load() && c.ctr.Cfg.MySQL.ReadTimeout == 0 { // which would end the wait for an answer
		return c.pingInPlace(ctx)
	}
	return c.awaitPendingPing(ctx, c.ctr.newPendingPing(c.link))
}

// pingInPlace pings without a goroutine. Few answers take longer than a tick, after which
// it continues as a pendingPing.
func (c *conn) pingInPlace(ctx context.Context) Verdict {
	c.ctr.Stats.Pings.Add(1)
	interval := c.ctr.pingTick()
	sent, deadline := c.ctr.clock.Now(), time.Now().Add(interval)
	err, answered := c.wire.SendPing(deadline), true
	if err == nil {
		answered, err = c.wire.ReadPong(ctx, deadline)
	}
	switch {
	case !answered:
		q := c.ctr.newPendingPing(c.link)
		q.sentAlready(sent)
		return c.awaitPendingPing(ctx, q)
	case err == nil:
		c.ctr.noteAnswer(sent, min(c.ctr.clock.Now()-sent, interval), interval) // without the time of a suspension
	}
	return c.ctr.judgePing(&c.link, sent, err)
}

// awaitPendingPing waits for a ping in the background.
func (c *conn) awaitPendingPing(ctx context.Context, q *pendingPing) Verdict {
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
