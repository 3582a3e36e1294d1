// maintain.go looks after connections in the background, so that no caller pays
// for it: the maintainer, one goroutine per Pool. It never touches a connection
// on which a request is under way and never takes one from the pool: it visits
// them where they lie, and a checkout that meets a visit waits for its end. What
// it does for those whose owners are elsewhere is in hold.go.

package livepool

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"time"
)

// maintainer is the goroutine behind a Pool.
type maintainer struct {
	ctr   *connector
	ctx   context.Context
	stop  context.CancelFunc
	wake  chan struct{}
	done  chan struct{}
	hands chan struct{} // one for each thing that is being done
	freed chan struct{} // a hand that has pinged is free
	stirs chan struct{} // a connection was taken while it slept, or is spare

	// What follows is the goroutine's own.
	next    time.Duration // when something is due
	pending []*conn       // that wait for a hand
	early   time.Duration // how much sooner than it must a ping may be sent

	rounds atomic.Int64 // looks at all connections

	suspects atomic.Int32 // suspect connections that are being asked

	// short: fewer than MinIdle may be ready, because one was found dead or no hand
	// was free to open it. It is looked at when a hand is free.
	short   atomic.Bool
	looking atomic.Bool  // stalled statements are being looked up
	opening atomic.Int32 // connections that are being opened to keep MinIdle
	refused atomic.Int64 // until when none is, because that failed
}

// maxHands is how many connections are pinged or opened in the background at a
// time: enough for a slow network, and few beside what a server takes.
const maxHands = 4

// serve has the connector serve a Pool: its limits are those of db, whose changes it
// tells to resize, and the maintainer, once it is started, looks after its
// connections. It is called before any is opened. What it returns is closed when the
// connector is.
func (ctr *connector) serve(db *sql.DB, resize func(places int)) (closed <-chan struct{}) {
	ctr.limits.db, ctr.limits.resize = db, resize
	ctr.keepsHeld = ctr.tapped && ctr.cfg.KeepAlive > 0 && ctr.cfg.HoldLimit > 0
	ctx, cancel := context.WithCancel(context.Background())
	ctr.maintainer = &maintainer{
		ctr: ctr, ctx: ctx, stop: cancel,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		hands: make(chan struct{}, maxHands), freed: make(chan struct{}, 1), stirs: make(chan struct{}, 1),
	}
	return ctx.Done()
}

// start starts the maintainer.
func (ctr *connector) start() { go ctr.maintainer.run() }

// nudge makes it look now. A connector without a Pool has none.
func (m *maintainer) nudge() {
	if m == nil {
		return
	}
	select {
	case m.wake <- struct{}{}:
	default: // it has been told already
	}
}

func (m *maintainer) run() {
	defer close(m.done)
	m.round()
	timer := time.NewTimer(m.due())
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.freed:
			if m.short.Swap(false) {
				m.round()
			} else {
				m.catchUp()
			}
		case <-m.stirs:
			m.next = min(m.next, later(m.ctr.clock.now(), m.soonest(), 0))
		case <-m.wake:
			m.round()
		case <-timer.C:
			m.round()
		}
		timer.Reset(m.due())
	}
}

// due is for how long nothing will be due.
func (m *maintainer) due() time.Duration {
	if m.next == never {
		return never
	}
	return max(m.next-m.ctr.clock.now(), time.Millisecond)
}

// wakes tells the maintainer that a connection was taken, opened or closed, if it
// sleeps until that happens.
func (ctr *connector) wakes() {
	if ctr.asleep.Load() {
		ctr.wake()
	}
}

func (ctr *connector) wake() {
	if ctr.asleep.Swap(false) {
		ctr.maintainer.stir()
	}
}

// stir has it look soon. A connector without a Pool has none.
func (m *maintainer) stir() {
	if m == nil {
		return
	}
	select {
	case m.stirs <- struct{}{}:
	default: // it has been told already
	}
}

// hand does f in the background. It returns false if enough is being done; the
// maintainer then looks again when something is finished.
func (m *maintainer) hand(f func()) bool {
	return m.handUntil(func(func()) { f() }, m.nudge)
}

// handPing is hand for a ping, of which nothing follows for the others, and which
// may be left to itself: others get its hand when it calls free.
func (m *maintainer) handPing(f func(free func())) bool {
	return m.handUntil(f, func() {
		select {
		case m.freed <- struct{}{}:
		default: // it has been told already
		}
	})
}

// handUntil does f in the background and tells of its end.
func (m *maintainer) handUntil(f func(free func()), tell func()) bool {
	select {
	case m.hands <- struct{}{}:
	default:
		return false
	}
	free := sync.OnceFunc(func() {
		<-m.hands
		tell()
	})
	if m.ctr.spawn(func() {
		defer free()
		f(free)
	}) {
		return true
	}
	<-m.hands
	return false
}

// round looks at every connection, and at when something will be due. As long as
// connections are used it looks again soon for what cannot be foreseen; if none
// is, the first that is taken wakes it. So that a round costs little beside what
// it does, what is due soon in a large pool is done now.
func (m *maintainer) round() {
	m.rounds.Add(1)
	m.ctr.follow()
	m.ctr.asleep.Store(true) // before it looks whether one is used
	all := m.ctr.residents()
	m.pending, m.early = m.pending[:0], 0
	if len(all) > largePool {
		m.early = min(time.Duration(len(all))*time.Millisecond, m.ctr.shortestKeepAlive()/16)
	}
	wait, used := never, false
	for _, c := range all {
		if held(c.state.Load()) && c.linked.Load() {
			used = true
		}
		wait = min(wait, m.look(c))
	}
	wait = min(wait, m.keepReady(all))
	if used {
		m.ctr.asleep.Store(false)
		wait = min(wait, m.soon(), m.lookForStalls(all), m.lookForLeaks(all))
	}
	m.next = later(m.ctr.clock.now(), wait, 0)
}

// largePool is how many connections can be looked at for each ping of one.
const largePool = 16

// catchUp goes on where the last round had no hand left.
func (m *maintainer) catchUp() {
	for len(m.pending) > 0 {
		last := len(m.pending) - 1
		c := m.pending[last]
		m.pending = m.pending[:last]
		due := m.look(c)
		m.next = min(m.next, later(m.ctr.clock.now(), due, 0))
		if len(m.pending) > last {
			return // no hand is free
		}
	}
}

// soon is when to look again for what cannot be foreseen, because a connection
// is in use: it may be due when it is returned.
func (m *maintainer) soon() time.Duration {
	soon := never
	if recycle := m.ctr.cfg.Recycle; recycle > 0 {
		soon = max(recycle/20, time.Millisecond)
	}
	if keepAlive := m.ctr.shortestKeepAlive(); keepAlive > 0 {
		soon = min(soon, max(keepAlive/4, time.Millisecond))
	}
	return soon
}

// soonest is when to look for the first time for what may come of a connection
// that was taken.
func (m *maintainer) soonest() time.Duration {
	cfg, wait := m.ctr.cfg, min(m.soon(), readyPause)
	for _, d := range []time.Duration{cfg.StallAfter / 4, cfg.LeakAfter} {
		if d > 0 {
			wait = min(wait, d)
		}
	}
	return wait
}

// look does what an idle connection needs, and returns when to look again: it
// is given up if it is too old or dead, replaced a little before it is too old,
// and pinged if it has not proved itself for KeepAlive, or since another one
// died. A checkout that comes before a replacement is there discards the shell.
func (m *maintainer) look(c *conn) (due time.Duration) {
	due = never // of one that has no link yet
	if c.linked.Load() {
		due = m.soon()
	}
	if c.visitIdle(func() { due = m.tend(c) }) {
		return due
	}
	c.visitAtRest(func() { due = m.tendHeld(c) })
	c.doubtVisit()
	return due
}

// tend is look on a connection that nobody uses.
func (m *maintainer) tend(c *conn) (due time.Duration) {
	now := m.ctr.clock.now()
	if !c.shell {
		if v := c.retired(m.ctr, now); v != keep {
			m.giveUp(c.detach(), v, nil)
			c.vacant = !c.spare
			if m.ctr.isFull() {
				return lease // so that it is closed before another is opened
			}
		}
	}
	if c.shell {
		if c.vacant && !c.replacing {
			m.replace(c, 0, now)
			return max(m.pausing(), readyPause)
		}
		return never
	}
	if err := c.peek(); err != nil {
		m.giveUp(c.detach(), byPeek, err)
		return never
	}
	due = c.expires - now
	if lead := m.lead(); due <= lead && c.expires < never {
		if !c.replacing && !c.spare && !m.ctr.isFull() {
			m.replace(c, c.serial, c.expires)
		}
	} else if c.expires < never {
		due -= lead
	}
	keepAlive := c.keepAlive
	switch next := c.proved + keepAlive - now; {
	case c.isSuspect(m.ctr), c.unprovedSince(&m.ctr.news.hungUp), keepAlive > 0 && next <= m.early:
		if !m.ping(c) {
			m.pending = append(m.pending, c)
		}
		if keepAlive > 0 {
			due = min(due, keepAlive)
		}
	case keepAlive > 0:
		due = min(due, next)
	}
	return due
}

// giveUp closes a link that was taken from an idle connection, and tells of its
// death. Both may take their time, and are no part of the visit.
func (m *maintainer) giveUp(l link, v verdict, cause error) {
	if v == byPeek {
		m.ctr.stats.swept.Add(1)
	}
	done := func() {
		m.ctr.mournIdle(&l, cause)
		m.ctr.discarded(&l, v)
		l.close()
	}
	if !m.ctr.spawn(done) {
		done()
	}
}

// ping pings an idle connection. It is called during a visit, which it prolongs.
// Those that are suspect are asked many at a time: nobody gets one before. It
// returns false if no hand is free. Callers ping too: it touches nothing of the
// maintainer's own.
func (m *maintainer) ping(c *conn) bool {
	q := m.ctr.newPinging(c.link)
	v := &visit{over: make(chan struct{}), asks: q}
	ask := func(late func()) {
		q.whenLate(late)
		m.ctr.stats.keptAlive.Add(1)
		verdict := q.run()
		if verdict != keep {
			m.ctr.stats.swept.Add(1)
		}
		if q.owner.Load() == alone {
			return // a caller did not wait
		}
		kept := c.leave(v, q.l, verdict == keep)
		if verdict != keep {
			m.ctr.discarded(&q.l, verdict)
			m.short.Store(true)
		}
		if !kept {
			q.l.close()
		}
	}
	hand := m.handPing
	if c.isSuspect(m.ctr) {
		q.nobodyWaits()
		c.suspected.Store(true)
		hand = m.handSuspect
	}
	if !hand(ask) {
		c.suspected.Store(false)
		q.end()
		return false
	}
	c.visit = v
	return true
}

// handSuspect is hand for connections that are suspect.
func (m *maintainer) handSuspect(f func(free func())) bool {
	const most = 100
	if m.suspects.Add(1) > most {
		m.suspects.Add(-1)
		return false
	}
	if m.ctr.spawn(func() {
		f(func() {})
		if left := m.suspects.Add(-1); left == 0 || left == most/2 { // and not for each, which would look at all of them
			m.nudge()
		}
	}) {
		return true
	}
	m.suspects.Add(-1)
	return false
}

// residents are the connections that exist.
func (ctr *connector) residents() []*conn {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	all := make([]*conn, 0, len(ctr.conns))
	for c := range ctr.conns {
		all = append(all, c)
	}
	return all
}
