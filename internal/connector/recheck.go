// recheck.go is a ping under way. It may outlast the patience of who began it: a
// slow server is no dead one, and whether a connection that is silent is dead
// shows later, in the background, by whether the server speaks on others.

package connector

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/wire"
)

// pendingPing is a ping under way on a connection that nobody uses.
type pendingPing struct {
	ctr    *Connector
	link   link // the goroutine's that asks, until it has answered
	sentAt time.Duration
	answer chan Verdict  // for who waits for it
	late   chan struct{} // closed when nobody is to wait any longer
	cancel context.CancelFunc
	ctx    context.Context

	waiter atomic.Int32 // whose the link is when the answer has come
	reason Verdict      // it was left alone; written before owner says so

	mu           sync.Mutex // guards what follows
	timer        *time.Timer
	interval     time.Duration // between two ticks
	lastTick     time.Duration // when the last was
	ticks        int
	processStops int    // how often this process stood still
	markedLate   bool   // late is closed
	onLate       func() // to be called then, nil if there is nothing
	ticksHeard   int    // ticks since the server was seen to speak, on some connection, after it was asked
	timedOut     bool   // it was given up
	dropped      bool   // to make room
	done         bool
}

const (
	pingAwaited    int32 = iota // somebody waits
	pingAnswered                // it was there in time
	pingUnattended              // nobody waits any more: it is kept for the next, or closed
)

// A ping's time is cut into ticks, by which it is known whether this process ran
// meanwhile: one that was stopped cannot judge a silence.
const (
	ticksUntilLate = 4
	// As long as the server says nothing on any connection, it may be the server
	// that stands still, and not these connections that are cut.
	ticksUntilDead  = 10 * ticksUntilLate
	maxProcessStops = 2 * ticksUntilLate // at most
)

func (ctr *Connector) newPendingPing(l link) *pendingPing {
	q := &pendingPing{ctr: ctr, link: l, answer: make(chan Verdict, 1), late: make(chan struct{})}
	q.ctx, q.cancel = context.WithCancel(ctr.Ctx)
	q.interval = max(ctr.pingTimeout()/ticksUntilLate, 1)
	q.timer = time.AfterFunc(clock.Never, q.tick)
	return q
}

// run asks and tells the one who waits, or keeps the link if nobody does. It
// returns what came of it.
func (q *pendingPing) run() Verdict {
	ctr := q.ctr
	ctr.Stats.Pings.Add(1)
	q.mu.Lock()
	q.sentAt = ctr.clock.Now()
	q.lastTick = q.sentAt
	q.timer.Reset(q.interval)
	q.mu.Unlock()

	err := ctr.pingForWork(q.ctx, &q.link.driverConn)
	q.cancel()

	q.mu.Lock()
	q.done = true
	q.timer.Stop()
	took, wasDropped := ctr.clock.Now()-q.sentAt, q.dropped
	took = min(took, time.Duration(q.ticks+1)*q.interval) // less the time that it stood still
	if err != nil && q.timedOut {
		err = os.ErrDeadlineExceeded
	}
	q.mu.Unlock()

	v := BySilence
	if err == nil || !wasDropped {
		v = ctr.judgePing(&q.link, q.sentAt, err)
	}
	if v == keep {
		ctr.roundTrip.record(took)
		// What was asked at the same time may have been overtaken by a stand-still.
		storeMax(&ctr.news.lastHeard, q.sentAt-q.interval)
	}
	if q.waiter.CompareAndSwap(pingAwaited, pingAnswered) {
		q.answer <- v
	} else {
		ctr.finishRecheck(q, v)
	}
	return v
}

// tick looks whether it is time to judge.
func (q *pendingPing) tick() {
	if l, isNews := q.judge(); isNews {
		q.ctr.reportSilence(&l, q.sentAt)
	}
}

// judge gives the ping up where it is time to, and says whether its answer is
// late, as nobody knew by now. l is a copy for who tells of it.
func (q *pendingPing) judge() (l link, isNews bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.done {
		return link{}, false
	}
	now := q.ctr.clock.Now()
	stopped := q.processStops < maxProcessStops && (now-q.lastTick > 2*q.interval || q.hasUnreadAnswer())
	q.lastTick = now
	if stopped {
		q.processStops++
		q.timer.Reset(q.interval)
		return link{}, false
	}
	q.ticks++
	if q.ctr.news.lastHeard.Load() >= int64(q.sentAt) {
		q.ticksHeard++
	}
	isLate := q.ticks >= ticksUntilLate
	if isLate && !q.markedLate { // before the one who waits goes on, or he would wait for the next one, too
		storeMax(&q.ctr.news.lastSilence, q.sentAt)
	}
	if isLate && (q.ticksHeard >= ticksUntilLate || q.ticks >= ticksUntilDead) {
		q.timedOut = true
		q.cancel()
	} else {
		q.timer.Reset(q.interval)
	}
	return q.link, isLate && q.markLateLocked()
}

// hasUnreadAnswer says whether an answer lies in the socket that this process, short of
// time, has not read yet.
func (q *pendingPing) hasUnreadAnswer() bool {
	return q.ticks+1 >= ticksUntilLate && q.link.wire != nil && q.ctr.peekSockets && q.link.wire.Peek() == wire.ErrUnsolicited
}

// markLate has nobody wait for the answer any longer.
func (q *pendingPing) markLate() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.markLateLocked()
}

// markLateLocked is nobodyWaits with q.mu held. It says whether it is the first.
func (q *pendingPing) markLateLocked() bool {
	if q.markedLate {
		return false
	}
	q.markedLate = true
	close(q.late)
	if q.onLate != nil {
		q.onLate()
	}
	return true
}

// whenLate has f called, which does not wait, when nobody waits any longer.
func (q *pendingPing) whenLate(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.onLate = f
	if q.markedLate {
		f()
	}
}

// drop ends it: there is no room for the connection.
func (q *pendingPing) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropped = true
	q.cancel()
}

// leaveUnattended is for the one who waits no longer. Unless the answer has come
// meanwhile, the connection is not his any more: the answer decides whether it
// is kept for the next who would open one.
func (q *pendingPing) leaveUnattended(reason Verdict) (v Verdict, unattended bool) {
	q.reason = reason
	q.ctr.addRecheck(q)
	if q.waiter.CompareAndSwap(pingAwaited, pingUnattended) {
		return reason, true
	}
	q.ctr.removeRecheck(q)
	return <-q.answer, false
}

// recheck has a link asked that nobody waits for. It returns false if there is
// nobody who would keep it.
func (ctr *Connector) recheck(l link) bool {
	if ctr.maintainer == nil || l.driverConn.Conn == nil {
		return false
	}
	q := ctr.newPendingPing(l)
	q.markLate()
	q.waiter.Store(pingUnattended)
	q.reason = BySilence
	ctr.addRecheck(q)
	if !ctr.spawn(func() { q.run() }) {
		ctr.removeRecheck(q)
		q.cancel()
		return false
	}
	ctr.Stats.KeptAlive.Add(1)
	return true
}

// addRecheck notes a link that database/sql does not have while it is asked. It
// counts as a connection of the pool.
func (ctr *Connector) addRecheck(q *pendingPing) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.rechecks[q] = struct{}{}
	ctr.makeRoom()
}

// removeRecheck says whether it had not been dropped.
func (ctr *Connector) removeRecheck(q *pendingPing) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	_, was := ctr.rechecks[q]
	delete(ctr.rechecks, q)
	return was
}

// makeRoom keeps the connections within the pool's limit: those that are set
// aside make room for those that are opened. ctr.mu is held.
func (ctr *Connector) makeRoom() {
	limit := int(ctr.Limits.Open.Load())
	if limit == 0 {
		return
	}
	for q := range ctr.rechecks {
		if len(ctr.conns)+len(ctr.rechecks) <= limit {
			return
		}
		delete(ctr.rechecks, q)
		q.drop()
	}
}

// finishRecheck deals with a link that nobody waited for any more: one that answers is
// kept for the next who would open one.
func (ctr *Connector) finishRecheck(q *pendingPing, v Verdict) {
	wanted := ctr.removeRecheck(q) && ctr.maintainer != nil && q.link.openStmts == 0 // those who have statements on it do not find it
	switch {
	case v == keep && wanted:
		ctr.addSpare(q.link)
		return
	case v == keep:
		v = q.reason
	}
	ctr.recordDiscard(&q.link, v)
	q.link.close()
}

// reportSilence tells of a ping without an answer in time. The others are suspect
// until they have answered, and so is the connection itself: no caller gets one
// unasked, or waits for one. Whether they are dead is another question.
func (ctr *Connector) reportSilence(l *link, since time.Duration) {
	ctr.Outage.slowDials()
	ctr.logNews(l, ctr.news.record(wire.WentSilent, since, ctr.clock.Now()),
		"livepool: a connection has not answered its ping in time (pool_ping_timeout); it and the others are asked in the background before they are handed out", nil)
	ctr.maintainer.wake()
}

// isSuspect says whether another connection fell silent since this one spoke.
func (l *link) isSuspect(ctr *Connector) bool { return l.noRoundTripSince(&ctr.news.lastSilence) }

// roundTrip is how long the server takes to answer, of late.
type roundTrip struct{ nanos atomic.Int64 }

// record learns at once that the server is slow, and by and by that it is quick
// again. Two who learn at the same time may each be right.
func (r *roundTrip) record(d time.Duration) {
	previous := time.Duration(r.nanos.Load())
	if d < previous {
		d = previous - (previous-d)/4
	}
	r.nanos.Store(int64(d))
}

func (r *roundTrip) get() time.Duration { return time.Duration(r.nanos.Load()) }

// pingTimeout is PingTimeout, and more where the server is slow, within bounds.
func (ctr *Connector) pingTimeout() time.Duration {
	least := ctr.Cfg.PingTimeout
	return max(least, min(2*ctr.roundTrip.get(), 5*least))
}

// isTrustExtended says whether the last round trip, d ago, stands for a ping beyond
// the trust that there is anywhere: where answers are slow, pings would be half
// of the work.
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
// statement, so that he could never succeed. The socket has been looked at.
func (c *conn) hasNoTimeForPing(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	rtt := c.ctr.roundTrip.get()
	return ok && rtt > 0 && c.wire != nil && c.wire.Raw != nil && c.ctr.peekSockets && time.Until(deadline) < 4*rtt
}

// pingOneIdle is for a caller who gave up on a connection that was not pinged for
// want of time: the next one had better know. Where no hand is free, enough are
// being asked already.
func (ctr *Connector) pingOneIdle(sent time.Duration) {
	m := ctr.maintainer
	if m == nil {
		return
	}
	for _, c := range ctr.snapshot() {
		tried := false
		c.reserveIdle(func() {
			if !c.unconnected && c.lastRoundTrip < sent {
				m.ping(c)
				tried = true
			}
		})
		if tried {
			return
		}
	}
}
