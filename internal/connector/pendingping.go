// pendingping.go is a ping under way. It may outlast its caller: a slow server is not a dead
// one. Whether a silent connection is dead is decided later, in the background, by
// whether the server answers on other connections.

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
	link   link // only run writes it, until the answer has been sent
	isSent bool // SendPing has sent it
	sentAt time.Duration
	answer chan Verdict  // for the caller that waits for it
	late   chan struct{} // closed when nobody is to wait any longer
	cancel context.CancelFunc
	ctx    context.Context

	waiter atomic.Int32 // who gets the link when the answer arrives: pingAwaited and so on
	reason Verdict      // why nobody waits; written before waiter becomes pingUnattended

	mu           sync.Mutex // guards what follows
	timer        *time.Timer
	interval     time.Duration // between two ticks; set at birth
	lastTick     time.Duration // when the last tick was
	ticks        int
	processStops int    // how often this process was suspended meanwhile
	markedLate   bool   // late is closed
	onLate       func() // called when late is closed, may be nil
	ticksHeard   int    // ticks since the server answered on some connection after this ping was sent
	timedOut     bool   // the ping was cancelled for want of an answer
	dropped      bool   // the ping was cancelled to make room for another connection
	done         bool
}

const (
	pingAwaited    int32 = iota // a caller waits
	pingAnswered                // the answer came while it waited
	pingUnattended              // nobody waits any more: the link becomes a spare or is closed
)

// A ping's time is divided into ticks. A tick that comes late shows that this process was
// suspended, and such a process cannot judge a silence.
const (
	ticksUntilLate = 4
	// While the server answers on no connection, the server itself may be suspended, and
	// these connections intact: so it gets more time.
	ticksUntilDead  = 10 * ticksUntilLate
	maxProcessStops = 2 * ticksUntilLate // more are not excused
)

func (ctr *Connector) newPendingPing(l link) *pendingPing {
	q := &pendingPing{ctr: ctr, link: l, answer: make(chan Verdict, 1), late: make(chan struct{})}
	q.ctx, q.cancel = context.WithCancel(ctr.Ctx)
	q.interval = ctr.pingTick()
	q.timer = time.AfterFunc(clock.Never, q.tick)
	return q
}

// pingTick is the time of a tick.
func (ctr *Connector) pingTick() time.Duration {
	return max(ctr.pingTimeout()/ticksUntilLate, 1)
}

// sentAlready makes it a ping that was sent at the given time, whose answer is awaited.
func (q *pendingPing) sentAlready(sent time.Duration) {
	q.isSent, q.sentAt, q.lastTick = true, sent, q.ctr.clock.Now()
	if q.lastTick-sent <= 2*q.interval {
		q.ticks = 1
	} else {
		q.processStops = 1
	}
}

// run pings, and gives the verdict to the caller that waits. If nobody waits it keeps or
// closes the link.
func (q *pendingPing) run() Verdict {
	ctr := q.ctr
	q.mu.Lock()
	if !q.isSent {
		ctr.Stats.Pings.Add(1)
		q.sentAt = ctr.clock.Now()
		q.lastTick = q.sentAt
	}
	q.timer.Reset(q.interval)
	q.mu.Unlock()

	err := q.ping()
	q.cancel()

	q.mu.Lock()
	q.done = true
	q.timer.Stop()
	took, wasDropped := ctr.clock.Now()-q.sentAt, q.dropped
	took = min(took, time.Duration(q.ticks+1)*q.interval) // without the time of a suspension
	if err != nil && q.timedOut {
		err = os.ErrDeadlineExceeded
	}
	q.mu.Unlock()

	v := BySilence
	if err == nil || !wasDropped {
		v = ctr.judgePing(&q.link, q.sentAt, err)
	}
	if v == keep {
		ctr.noteAnswer(q.sentAt, took, q.interval)
	}
	if q.waiter.CompareAndSwap(pingAwaited, pingAnswered) {
		q.answer <- v
	} else {
		ctr.finishRecheck(q, v)
	}
	return v
}

// ping waits for the answer, or for the end of q.ctx.
func (q *pendingPing) ping() error {
	watched := q.link.watch(q.ctx)
	if !q.isSent {
		return q.link.unwatch(watched, q.ctr.pingForWork(watched, &q.link.driverConn))
	}
	_, err := q.link.wire.ReadPong(context.Background(), time.Time{})
	return q.link.unwatch(watched, err)
}

// noteAnswer notes the answer to a ping. Pings that were sent at about the same time may
// still be delayed by a pause of the server.
func (ctr *Connector) noteAnswer(sent, took, interval time.Duration) {
	ctr.roundTrip.record(took)
	storeMax(&ctr.news.lastHeard, sent-interval)
}

// tick runs at each tick.
func (q *pendingPing) tick() {
	if l, isNews := q.judge(); isNews {
		q.ctr.reportSilence(&l, q.sentAt)
	}
}

// judge cancels the ping when its time is up, and says whether the answer is late, the
// first time that it is. l is a copy, for the report.
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
	if isLate && !q.markedLate { // before the waiter is released, or it would wait for the next suspect, too
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

// hasUnreadAnswer says whether the answer is in the socket's buffer and this process has
// had no time to read it.
func (q *pendingPing) hasUnreadAnswer() bool {
	return q.ticks+1 >= ticksUntilLate && q.link.wire != nil && q.ctr.peekSockets && q.link.wire.Peek() == wire.ErrUnsolicited
}

// markLate ends the wait for the answer.
func (q *pendingPing) markLate() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.markLateLocked()
}

// markLateLocked is markLate with q.mu held. It says whether it is the first call.
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

// whenLate has f called when the answer is late. f must not wait.
func (q *pendingPing) whenLate(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.onLate = f
	if q.markedLate {
		f()
	}
}

// drop cancels the ping, because there is no room for its connection.
func (q *pendingPing) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropped = true
	q.cancel()
}

// leaveUnattended is called by a caller that stops waiting. Unless the answer has
// arrived meanwhile, it loses the link: a link that answers becomes a spare.
func (q *pendingPing) leaveUnattended(reason Verdict) (v Verdict, unattended bool) {
	q.reason = reason
	q.ctr.addRecheck(q)
	if q.waiter.CompareAndSwap(pingAwaited, pingUnattended) {
		return reason, true
	}
	q.ctr.removeRecheck(q)
	return <-q.answer, false
}

// recheck pings a link that no caller waits for. It returns false if nothing could keep
// the link afterwards.
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

// addRecheck registers a link that is being pinged while database/sql does not have it.
// It counts as a connection of the pool.
func (ctr *Connector) addRecheck(q *pendingPing) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.rechecks[q] = struct{}{}
	ctr.makeRoom()
}

// removeRecheck says whether the link was still registered, and not dropped.
func (ctr *Connector) removeRecheck(q *pendingPing) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	_, was := ctr.rechecks[q]
	delete(ctr.rechecks, q)
	return was
}

// makeRoom keeps the connections within the pool's limit: links that are being rechecked
// are dropped in favour of new ones. ctr.mu is held.
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

// finishRecheck keeps or closes a link that nobody waited for: one that answers becomes
// a spare.
func (ctr *Connector) finishRecheck(q *pendingPing, v Verdict) {
	wanted := ctr.removeRecheck(q) && ctr.maintainer != nil && q.link.openStmts == 0 // its statements could not be used from another conn
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

// reportSilence reports a ping without an answer in time. Until they answer, this
// connection and the others are suspect: no caller gets one unchecked, or waits for one.
// Whether they are dead is decided later.
func (ctr *Connector) reportSilence(l *link, since time.Duration) {
	ctr.Outage.SlowDials()
	ctr.logNews(l, ctr.news.record(wire.WentSilent, since, ctr.clock.Now()),
		"livepool: a connection has not answered its ping in time (pool_ping_timeout); it and the others are asked in the background before they are handed out", nil)
	ctr.maintainer.wake()
}

// pingOneIdle is called when a caller gave up on a connection whose ping was skipped for
// want of time: one idle connection is pinged, so that the next caller knows. If no task
// is free, enough are being pinged.
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
