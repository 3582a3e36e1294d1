// maintain.go looks after connections in the background, so that no caller pays
// for it: the maintainer, one goroutine per Pool. It never touches a connection
// on which a request is under way and never takes one from the pool: it visits
// them where they lie, and a checkout that meets a visit waits for its end. What
// it does for those whose owners are elsewhere is in hold.go.

package connector

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// maintainer is the goroutine behind a Pool.
type maintainer struct {
	ctr      *Connector
	ctx      context.Context
	stop     context.CancelFunc
	wakeups  chan struct{}
	done     chan struct{}
	tasks    chan struct{} // one for each thing that is being done
	pingDone chan struct{} // a hand that has pinged is free
	activity chan struct{} // a connection was taken while it slept, or is spare

	// What follows is the goroutine's own.
	nextDue     time.Duration // when something is due
	pending     []*conn       // that wait for a hand
	pingEarlyBy time.Duration // how much sooner than it must a ping may be sent

	rounds atomic.Int64 // looks at all connections

	suspectPings atomic.Int32 // suspect connections that are being asked

	// minIdleShort: fewer than MinIdle may be ready, because one was found dead or no hand
	// was free to open it. It is looked at when a hand is free.
	minIdleShort    atomic.Bool
	checkingStalls  atomic.Bool  // stalled statements are being looked up
	openingSpares   atomic.Int32 // connections that are being opened to keep MinIdle
	openPausedUntil atomic.Int64 // until when none is, because that failed
}

// maxTasks is how many connections are pinged or opened in the background at a
// time: enough for a slow network, and few beside what a server takes.
const maxTasks = 4

// ServePool has the connector serve a Pool: its limits are those of db, whose changes it
// tells to resize, and the maintainer, once it is started, looks after its
// connections. It is called before any is opened. What it returns is closed when the
// connector is.
func (ctr *Connector) ServePool(db *sql.DB, resize func(places int)) (closed <-chan struct{}) {
	ctr.Limits.db, ctr.Limits.resize = db, resize
	ctr.keepParkedAlive = ctr.ownDialer && ctr.Cfg.KeepAlive > 0 && ctr.Cfg.HoldLimit > 0
	ctx, cancel := context.WithCancel(context.Background())
	ctr.maintainer = &maintainer{
		ctr: ctr, ctx: ctx, stop: cancel,
		wakeups: make(chan struct{}, 1), done: make(chan struct{}),
		tasks: make(chan struct{}, maxTasks), pingDone: make(chan struct{}, 1), activity: make(chan struct{}, 1),
	}
	return ctx.Done()
}

// StartMaintainer starts the maintainer.
func (ctr *Connector) StartMaintainer() { go ctr.maintainer.run() }

// wake makes it look now. A connector without a Pool has none.
func (m *maintainer) wake() {
	if m == nil {
		return
	}
	select {
	case m.wakeups <- struct{}{}:
	default: // it has been told already
	}
}

func (m *maintainer) run() {
	defer close(m.done)
	m.round()
	timer := time.NewTimer(m.timeUntilDue())
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.pingDone:
			if m.minIdleShort.Swap(false) {
				m.round()
			} else {
				m.resumeRound()
			}
		case <-m.activity:
			m.nextDue = min(m.nextDue, addClamped(m.ctr.clock.Now(), m.firstRoundAfterUse(), 0))
		case <-m.wakeups:
			m.round()
		case <-timer.C:
			m.round()
		}
		timer.Reset(m.timeUntilDue())
	}
}

// timeUntilDue is for how long nothing will be due.
func (m *maintainer) timeUntilDue() time.Duration {
	if m.nextDue == clock.Never {
		return clock.Never
	}
	return max(m.nextDue-m.ctr.clock.Now(), time.Millisecond)
}

// noteActivity tells the maintainer that a connection was taken, opened or closed, if it
// sleeps until that happens.
func (ctr *Connector) noteActivity() {
	if ctr.maintainerAsleep.Load() {
		ctr.wakeMaintainer()
	}
}

func (ctr *Connector) wakeMaintainer() {
	if ctr.maintainerAsleep.Swap(false) {
		ctr.maintainer.noteActivity()
	}
}

// noteActivity has it look soon. A connector without a Pool has none.
func (m *maintainer) noteActivity() {
	if m == nil {
		return
	}
	select {
	case m.activity <- struct{}{}:
	default: // it has been told already
	}
}

// startTask does f in the background. It returns false if enough is being done; the
// maintainer then looks again when something is finished.
func (m *maintainer) startTask(f func()) bool {
	return m.startTaskThen(func(func()) { f() }, m.wake)
}

// startPing is hand for a ping, of which nothing follows for the others, and which
// may be left to itself: others get its hand when it calls free.
func (m *maintainer) startPing(f func(release func())) bool {
	return m.startTaskThen(f, func() {
		select {
		case m.pingDone <- struct{}{}:
		default: // it has been told already
		}
	})
}

// startTaskThen does f in the background and tells of its end.
func (m *maintainer) startTaskThen(f func(release func()), onDone func()) bool {
	select {
	case m.tasks <- struct{}{}:
	default:
		return false
	}
	release := sync.OnceFunc(func() {
		<-m.tasks
		onDone()
	})
	if m.ctr.spawn(func() {
		defer release()
		f(release)
	}) {
		return true
	}
	<-m.tasks
	return false
}

// round looks at every connection, and at when something will be due. As long as
// connections are used it looks again soon for what cannot be foreseen; if none
// is, the first that is taken wakes it. So that a round costs little beside what
// it does, what is due soon in a large pool is done now.
func (m *maintainer) round() {
	m.rounds.Add(1)
	m.ctr.SyncLimits()
	m.ctr.maintainerAsleep.Store(true) // before it looks whether one is used
	all := m.ctr.snapshot()
	m.pending, m.pingEarlyBy = m.pending[:0], 0
	if len(all) > largePool {
		m.pingEarlyBy = min(time.Duration(len(all))*time.Millisecond, m.ctr.minKeepAlive()/16)
	}
	wait, used := clock.Never, false
	for _, c := range all {
		if isCheckedOut(c.state.Load()) && c.hasLink.Load() {
			used = true
		}
		wait = min(wait, m.inspect(c))
	}
	wait = min(wait, m.keepMinIdle(all))
	if used {
		m.ctr.maintainerAsleep.Store(false)
		wait = min(wait, m.nextRegularRound(), m.findStalls(all), m.findLeaks(all))
	}
	m.nextDue = addClamped(m.ctr.clock.Now(), wait, 0)
}

// largePool is how many connections can be looked at for each ping of one.
const largePool = 16

// resumeRound goes on where the last round had no hand left.
func (m *maintainer) resumeRound() {
	for len(m.pending) > 0 {
		last := len(m.pending) - 1
		c := m.pending[last]
		m.pending = m.pending[:last]
		due := m.inspect(c)
		m.nextDue = min(m.nextDue, addClamped(m.ctr.clock.Now(), due, 0))
		if len(m.pending) > last {
			return // no hand is free
		}
	}
}

// nextRegularRound is when to look again for what cannot be foreseen, because a connection
// is in use: it may be due when it is returned.
func (m *maintainer) nextRegularRound() time.Duration {
	next := clock.Never
	if recycle := m.ctr.Cfg.Recycle; recycle > 0 {
		next = max(recycle/20, time.Millisecond)
	}
	if keepAlive := m.ctr.minKeepAlive(); keepAlive > 0 {
		next = min(next, max(keepAlive/4, time.Millisecond))
	}
	return next
}

// firstRoundAfterUse is when to look for the first time for what may come of a connection
// that was taken.
func (m *maintainer) firstRoundAfterUse() time.Duration {
	cfg, wait := m.ctr.Cfg, min(m.nextRegularRound(), minIdleInterval)
	for _, d := range []time.Duration{cfg.StallAfter / 4, cfg.LeakAfter} {
		if d > 0 {
			wait = min(wait, d)
		}
	}
	return wait
}

// inspect does what an idle connection needs, and returns when to look again: it
// is given up if it is too old or dead, replaced a little before it is too old,
// and pinged if it has not proved itself for KeepAlive, or since another one
// died. A checkout that comes before a replacement is there discards the shell.
func (m *maintainer) inspect(c *conn) (due time.Duration) {
	due = clock.Never // of one that has no link yet
	if c.hasLink.Load() {
		due = m.nextRegularRound()
	}
	if c.reserveIdle(func() { due = m.maintainIdle(c) }) {
		return due
	}
	c.reserveParked(func() { due = m.maintainParked(c) })
	c.releaseWaiters()
	return due
}

// maintainIdle is look on a connection that nobody uses.
func (m *maintainer) maintainIdle(c *conn) (due time.Duration) {
	now := m.ctr.clock.Now()
	if !c.unconnected {
		if v := c.retirement(m.ctr, now); v != keep {
			m.discard(c.detach(), v, nil)
			c.needsLink = !c.spare
			if m.ctr.isAtLimit() {
				return clock.Lease // so that it is closed before another is opened
			}
		}
	}
	if c.unconnected {
		if c.needsLink && !c.replacing {
			m.replace(c, 0, now)
			return max(m.openPauseLeft(), minIdleInterval)
		}
		return clock.Never
	}
	if err := c.peek(); err != nil {
		m.discard(c.detach(), ByPeek, err)
		return clock.Never
	}
	due = c.expires - now
	if ahead := m.renewAhead(); due <= ahead && c.expires < clock.Never {
		if !c.replacing && !c.spare && !m.ctr.isAtLimit() {
			m.replace(c, c.serial, c.expires)
		}
	} else if c.expires < clock.Never {
		due -= ahead
	}
	keepAlive := c.keepAlive
	switch next := c.lastRoundTrip + keepAlive - now; {
	case c.isSuspect(m.ctr), c.noRoundTripSince(&m.ctr.news.lastHangup), keepAlive > 0 && next <= m.pingEarlyBy:
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

// discard closes a link that was taken from an idle connection, and tells of its
// death. Both may take their time, and are no part of the visit.
func (m *maintainer) discard(l link, v Verdict, cause error) {
	if v == ByPeek {
		m.ctr.Stats.Swept.Add(1)
	}
	done := func() {
		m.ctr.reportIdleLoss(&l, cause)
		m.ctr.recordDiscard(&l, v)
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
	q := m.ctr.newPendingPing(c.link)
	v := &reservation{done: make(chan struct{}), ping: q}
	ping := func(onLate func()) {
		q.whenLate(onLate)
		m.ctr.Stats.KeptAlive.Add(1)
		result := q.run()
		if result != keep {
			m.ctr.Stats.Swept.Add(1)
		}
		if q.waiter.Load() == pingUnattended {
			return // a caller did not wait
		}
		wanted := c.release(v, q.link, result == keep)
		if result != keep {
			m.ctr.recordDiscard(&q.link, result)
			m.minIdleShort.Store(true)
		}
		if !wanted {
			q.link.close()
		}
	}
	start := m.startPing
	if c.isSuspect(m.ctr) {
		q.markLate()
		c.rechecking.Store(true)
		start = m.startSuspectPing
	}
	if !start(ping) {
		c.rechecking.Store(false)
		q.cancel()
		return false
	}
	c.reservation = v
	return true
}

// startSuspectPing is hand for connections that are suspect.
func (m *maintainer) startSuspectPing(f func(release func())) bool {
	const maxPings = 100
	if m.suspectPings.Add(1) > maxPings {
		m.suspectPings.Add(-1)
		return false
	}
	if m.ctr.spawn(func() {
		f(func() {})
		if left := m.suspectPings.Add(-1); left == 0 || left == maxPings/2 { // and not for each, which would look at all of them
			m.wake()
		}
	}) {
		return true
	}
	m.suspectPings.Add(-1)
	return false
}

// snapshot are the connections that exist.
func (ctr *Connector) snapshot() []*conn {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	all := make([]*conn, 0, len(ctr.conns))
	for c := range ctr.conns {
		all = append(all, c)
	}
	return all
}
