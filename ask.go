// ask.go is a ping under way. It may outlast the patience of who began it: a
// slow server is no dead one, and whether a connection that is silent is dead
// shows later, in the background, by whether the server speaks on others.

package livepool

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// pinging is a ping under way on a connection that nobody uses.
type pinging struct {
	ctr    *connector
	l      link // the goroutine's that asks, until it has answered
	sent   time.Duration
	answer chan verdict  // for who waits for it
	late   chan struct{} // closed when nobody is to wait any longer
	end    context.CancelFunc
	ctx    context.Context

	owner atomic.Int32 // whose the link is when the answer has come
	why   verdict      // it was left alone; written before owner says so

	mu      sync.Mutex // guards what follows
	timer   *time.Timer
	step    time.Duration // between two ticks
	ticked  time.Duration // when the last was
	ticks   int
	stood   int    // how often this process stood still
	doubted bool   // late is closed
	free    func() // to be called then, nil if there is nothing
	spoken  int    // ticks since the server was seen to speak, on some connection, after it was asked
	silent  bool   // it was given up
	dropped bool   // to make room
	done    bool
}

const (
	asked    int32 = iota // somebody waits
	answered              // it was there in time
	alone                 // nobody waits any more: it is kept for the next, or closed
)

// A ping's time is cut into ticks, by which it is known whether this process ran
// meanwhile: one that was stopped cannot judge a silence.
const (
	ticksToLate = 4
	// As long as the server says nothing on any connection, it may be the server
	// that stands still, and not these connections that are cut.
	ticksToDead = 10 * ticksToLate
	ticksStood  = 2 * ticksToLate // at most
)

func (ctr *connector) newPinging(l link) *pinging {
	q := &pinging{ctr: ctr, l: l, answer: make(chan verdict, 1), late: make(chan struct{})}
	q.ctx, q.end = context.WithCancel(ctr.life)
	q.step = max(ctr.pingTimeout()/ticksToLate, 1)
	q.timer = time.AfterFunc(never, q.tick)
	return q
}

// run asks and tells the one who waits, or keeps the link if nobody does. It
// returns what came of it.
func (q *pinging) run() verdict {
	ctr := q.ctr
	ctr.stats.pings.Add(1)
	q.mu.Lock()
	q.sent = ctr.clock.now()
	q.ticked = q.sent
	q.timer.Reset(q.step)
	q.mu.Unlock()

	err := ctr.pingUnder(q.ctx, &q.l.inner)
	q.end()

	q.mu.Lock()
	q.done = true
	q.timer.Stop()
	took, dropped := ctr.clock.now()-q.sent, q.dropped
	took = min(took, time.Duration(q.ticks+1)*q.step) // less the time that it stood still
	if err != nil && q.silent {
		err = os.ErrDeadlineExceeded
	}
	q.mu.Unlock()

	v := bySilence
	if err == nil || !dropped {
		v = ctr.pinged(&q.l, q.sent, err)
	}
	if v == keep {
		ctr.roundTrip.saw(took)
		// What was asked at the same time may have been overtaken by a stand-still.
		raise(&ctr.news.heard, q.sent-q.step)
	}
	if q.owner.CompareAndSwap(asked, answered) {
		q.answer <- v
	} else {
		ctr.takeBack(q, v)
	}
	return v
}

// tick looks whether it is time to judge.
func (q *pinging) tick() {
	if l, isNews := q.judge(); isNews {
		q.ctr.fellSilent(&l, q.sent)
	}
}

// judge gives the ping up where it is time to, and says whether its answer is
// late, as nobody knew by now. l is a copy for who tells of it.
func (q *pinging) judge() (l link, isNews bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.done {
		return link{}, false
	}
	now := q.ctr.clock.now()
	stood := q.stood < ticksStood && (now-q.ticked > 2*q.step || q.lies())
	q.ticked = now
	if stood {
		q.stood++
		q.timer.Reset(q.step)
		return link{}, false
	}
	q.ticks++
	if q.ctr.news.heard.Load() >= int64(q.sent) {
		q.spoken++
	}
	isLate := q.ticks >= ticksToLate
	if isLate && !q.doubted { // before the one who waits goes on, or he would wait for the next one, too
		raise(&q.ctr.news.silent, q.sent)
	}
	if isLate && (q.spoken >= ticksToLate || q.ticks >= ticksToDead) {
		q.silent = true
		q.end()
	} else {
		q.timer.Reset(q.step)
	}
	return q.l, isLate && q.doubt()
}

// lies says whether an answer lies in the socket that this process, short of
// time, has not read yet.
func (q *pinging) lies() bool {
	return q.ticks+1 >= ticksToLate && q.l.wire != nil && q.ctr.peeks && q.l.wire.peek() == errUnasked
}

// nobodyWaits has nobody wait for the answer any longer.
func (q *pinging) nobodyWaits() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.doubt()
}

// doubt is nobodyWaits with q.mu held. It says whether it is the first.
func (q *pinging) doubt() bool {
	if q.doubted {
		return false
	}
	q.doubted = true
	close(q.late)
	if q.free != nil {
		q.free()
	}
	return true
}

// whenLate has f called, which does not wait, when nobody waits any longer.
func (q *pinging) whenLate(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free = f
	if q.doubted {
		f()
	}
}

// drop ends it: there is no room for the connection.
func (q *pinging) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropped = true
	q.end()
}

// leave is for the one who waits no longer. Unless the answer has come
// meanwhile, the connection is not his any more: the answer decides whether it
// is kept for the next who would open one.
func (q *pinging) leave(why verdict) (v verdict, left bool) {
	q.why = why
	q.ctr.setAside(q)
	if q.owner.CompareAndSwap(asked, alone) {
		return why, true
	}
	q.ctr.forgetAside(q)
	return <-q.answer, false
}

// ask has a link asked that nobody waits for. It returns false if there is
// nobody who would keep it.
func (ctr *connector) ask(l link) bool {
	if ctr.maintainer == nil || l.inner.Conn == nil {
		return false
	}
	q := ctr.newPinging(l)
	q.nobodyWaits()
	q.owner.Store(alone)
	q.why = bySilence
	ctr.setAside(q)
	if !ctr.spawn(func() { q.run() }) {
		ctr.forgetAside(q)
		q.end()
		return false
	}
	ctr.stats.keptAlive.Add(1)
	return true
}

// setAside notes a link that database/sql does not have while it is asked. It
// counts as a connection of the pool.
func (ctr *connector) setAside(q *pinging) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.aside[q] = struct{}{}
	ctr.makeRoom()
}

// forgetAside says whether it had not been dropped.
func (ctr *connector) forgetAside(q *pinging) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	_, was := ctr.aside[q]
	delete(ctr.aside, q)
	return was
}

// makeRoom keeps the connections within the pool's limit: those that are set
// aside make room for those that are opened. ctr.mu is held.
func (ctr *connector) makeRoom() {
	limit := int(ctr.limits.open.Load())
	if limit == 0 {
		return
	}
	for q := range ctr.aside {
		if len(ctr.conns)+len(ctr.aside) <= limit {
			return
		}
		delete(ctr.aside, q)
		q.drop()
	}
}

// takeBack deals with a link that nobody waited for any more: one that answers is
// kept for the next who would open one.
func (ctr *connector) takeBack(q *pinging, v verdict) {
	wanted := ctr.forgetAside(q) && ctr.maintainer != nil && q.l.prepared == 0 // those who have statements on it do not find it
	switch {
	case v == keep && wanted:
		ctr.addSpare(q.l)
		return
	case v == keep:
		v = q.why
	}
	ctr.discarded(&q.l, v)
	q.l.close()
}

// fellSilent tells of a ping without an answer in time. The others are suspect
// until they have answered, and so is the connection itself: no caller gets one
// unasked, or waits for one. Whether they are dead is another question.
func (ctr *connector) fellSilent(l *link, since time.Duration) {
	ctr.outage.trouble()
	ctr.tell(l, ctr.news.spread(wentSilent, since, ctr.clock.now()),
		"livepool: a connection has not answered its ping in time (pool_ping_timeout); it and the others are asked in the background before they are handed out", nil)
	ctr.maintainer.nudge()
}

// isSuspect says whether another connection fell silent since this one spoke.
func (l *link) isSuspect(ctr *connector) bool { return l.unprovedSince(&ctr.news.silent) }

// roundTrip is how long the server takes to answer, of late.
type roundTrip struct{ nanos atomic.Int64 }

// saw learns at once that the server is slow, and by and by that it is quick
// again. Two who learn at the same time may each be right.
func (r *roundTrip) saw(d time.Duration) {
	was := time.Duration(r.nanos.Load())
	if d < was {
		d = was - (was-d)/4
	}
	r.nanos.Store(int64(d))
}

func (r *roundTrip) get() time.Duration { return time.Duration(r.nanos.Load()) }

// pingTimeout is PingTimeout, and more where the server is slow, within bounds.
func (ctr *connector) pingTimeout() time.Duration {
	least := ctr.cfg.PingTimeout
	return max(least, min(2*ctr.roundTrip.get(), 5*least))
}

// trustsLonger says whether the last round trip, d ago, stands for a ping beyond
// the trust that there is anywhere: where answers are slow, pings would be half
// of the work.
func (c *conn) trustsLonger(d time.Duration) bool {
	rtt := c.ctr.roundTrip.get()
	if 2*rtt <= c.ctr.cfg.PingTimeout {
		return false
	}
	longest := min(4*rtt, 10*c.trust)
	if c.keepAlive > 0 {
		longest = min(longest, c.keepAlive)
	}
	return d <= longest
}

// bearsNoPing says whether the caller's deadline leaves no time for a ping and a
// statement, so that he could never succeed. The socket has been looked at.
func (c *conn) bearsNoPing(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	rtt := c.ctr.roundTrip.get()
	return ok && rtt > 0 && c.wire != nil && c.wire.raw != nil && c.ctr.peeks && time.Until(deadline) < 4*rtt
}

// askOne is for a caller who gave up on a connection that was not pinged for
// want of time: the next one had better know. Where no hand is free, enough are
// being asked already.
func (ctr *connector) askOne(sent time.Duration) {
	m := ctr.maintainer
	if m == nil {
		return
	}
	for _, c := range ctr.residents() {
		tried := false
		c.visitIdle(func() {
			if !c.shell && c.proved < sent {
				m.ping(c)
				tried = true
			}
		})
		if tried {
			return
		}
	}
}
