// maintain.go looks after connections in the background, so that no caller has to wait
// for that: the maintainer, one goroutine per Pool. It never touches a connection on
// which a request is under way, and takes none from the pool: it reserves an idle one in
// place, and a checkout waits for the end of the reservation. What it does for
// connections that are checked out is in parked.go.

package connector

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/proclist"
)

// maintainer is the goroutine behind a Pool.
type maintainer struct {
	ctr      *Connector
	ctx      context.Context
	stop     context.CancelFunc
	wakeups  chan struct{}
	done     chan struct{}
	tasks    chan struct{} // one element for each task under way
	pingDone chan struct{} // a ping's task is free again
	activity chan struct{} // a connection was taken while it slept, or there is a new spare

	// Only the maintainer's goroutine reads and writes these.
	nextDue time.Duration // when the next round is due
	pending []*conn       // connections that wait for a free task
	// lastWaits are those of all connections at the last look for a silent host.
	lastWaits   map[*proclist.Thread]lastWait
	pingEarlyBy time.Duration // how much sooner than necessary a ping may be sent

	// Any goroutine may read and write the following.
	rounds atomic.Int64 // passes over all connections; the maintainer counts them

	suspectPings atomic.Int32 // pings of suspect connections that are under way

	// minIdleShort: fewer than MinIdle connections may be ready, because one died or no
	// task was free to open it. The maintainer clears it and looks when a task ends.
	minIdleShort    atomic.Bool
	openingSpares   atomic.Int32 // connections that are being opened to keep MinIdle
	openPausedUntil atomic.Int64 // no connection is opened in the background before this time, because the last attempt failed
}

// maxTasks is how many connections are pinged or opened in the background at a time:
// enough for a slow network, and few compared with what a server accepts.
const maxTasks = 4

// ServePool makes the connector serve a Pool: its limits are those of db, and it calls
// resize when they change. Once the maintainer is started it looks after the
// connections. It is called before any connection is opened. The channel that it returns
// is closed when the connector is closed.
func (ctr *Connector) ServePool(db *sql.DB, resize func(places int)) (closed <-chan struct{}) {
	ctr.Limits.db, ctr.Limits.resize = db, resize
	for _, h := range ctr.hosts() {
		h.reaper.KeepFor = poolReapLimit
	}
	ctr.keepParkedAlive = ctr.ownDialer && ctr.Cfg.KeepAlive > 0 && ctr.Cfg.HoldLimit > 0
	ctx, cancel := context.WithCancel(context.Background())
	ctr.maintainer = &maintainer{
		ctr: ctr, ctx: ctx, stop: cancel,
		wakeups: make(chan struct{}, 1), done: make(chan struct{}),
		tasks: make(chan struct{}, maxTasks), pingDone: make(chan struct{}, 1), activity: make(chan struct{}, 1),
	}
	return ctx.Done()
}

// StartMaintainer starts the maintainer, and what asks the hosts in use.
func (ctr *Connector) StartMaintainer() {
	go ctr.maintainer.run()
	for _, h := range ctr.hosts() {
		ctr.startAsking(h)
	}
}

// wake makes the maintainer start a round now. A connector without a Pool has no
// maintainer.
func (m *maintainer) wake() {
	if m == nil {
		return
	}
	select {
	case m.wakeups <- struct{}{}:
	default: // one is pending
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
			m.nextDue = min(m.nextDue, clock.Add(m.ctr.clock.Now(), m.firstRoundAfterUse(), 0))
		case <-m.wakeups:
			m.round()
		case <-timer.C:
			m.round()
		}
		timer.Reset(m.timeUntilDue())
	}
}

// timeUntilDue is how long the maintainer can sleep.
func (m *maintainer) timeUntilDue() time.Duration {
	if m.nextDue == clock.Never {
		return clock.Never
	}
	return max(m.nextDue-m.ctr.clock.Now(), time.Millisecond)
}

// noteActivity wakes the maintainer, if it sleeps until there is activity: a connection
// was taken, opened or closed.
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

// noteActivity makes the maintainer plan a round soon. A connector without a Pool has no
// maintainer.
func (m *maintainer) noteActivity() {
	if m == nil {
		return
	}
	select {
	case m.activity <- struct{}{}:
	default: // one is pending
	}
}

// startTask runs f in the background. It returns false if maxTasks are under way; the
// maintainer then starts another round when one ends.
func (m *maintainer) startTask(f func()) bool {
	return m.startTaskThen(func(func()) { f() }, m.wake)
}

// startPing is startTask for a ping, whose end needs no round over all connections. The
// ping may go on without its task: it calls release to let another one start.
func (m *maintainer) startPing(f func(release func())) bool {
	return m.startTaskThen(f, func() {
		select {
		case m.pingDone <- struct{}{}:
		default: // one is pending
		}
	})
}

// startTaskThen runs f in the background, and onDone when f ends or calls release.
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

// round looks at every connection, and plans the next round. While connections are in
// use the next one comes soon, because what happens to them cannot be foreseen;
// otherwise the first connection that is taken wakes the maintainer. In a large pool
// what is due soon is done now, so that a round is worth its cost.
func (m *maintainer) round() {
	m.rounds.Add(1)
	m.ctr.SyncLimits()
	m.ctr.lookUpNames(lookUpAnyway)
	m.ctr.maintainerAsleep.Store(true) // before it checks whether one is in use
	all := m.ctr.snapshot()
	m.pending, m.pingEarlyBy = m.pending[:0], 0
	if len(all) > largePool {
		m.pingEarlyBy = min(4*time.Duration(len(all))*time.Millisecond, m.ctr.minKeepAlive()/4)
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
		wait = min(wait, m.nextRegularRound(), m.findStalls(all), m.findSilence(all), m.findLeaks(all))
	}
	m.nextDue = clock.Add(m.ctr.clock.Now(), wait, 0)
}

// largePool is the number of connections from which on pings are sent early, so that one
// round serves several.
const largePool = 16

// resumeRound continues where the last round ran out of tasks.
func (m *maintainer) resumeRound() {
	for len(m.pending) > 0 {
		last := len(m.pending) - 1
		c := m.pending[last]
		m.pending = m.pending[:last]
		due := m.inspect(c)
		m.nextDue = min(m.nextDue, clock.Add(m.ctr.clock.Now(), due, 0))
		if len(m.pending) > last {
			return // no task is free
		}
	}
}

// nextRegularRound is how long until the next round while a connection is in use: it may
// be due as soon as it is returned.
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

// firstRoundAfterUse is how long until the first round after a connection was taken.
func (m *maintainer) firstRoundAfterUse() time.Duration {
	cfg, wait := m.ctr.Cfg, min(m.nextRegularRound(), minIdleInterval)
	for _, d := range []time.Duration{cfg.StallAfter / 4, cfg.LeakAfter} {
		if d > 0 {
			wait = min(wait, d)
		}
	}
	if m.ctr.findsSilence() {
		wait = min(wait, silenceRound)
	}
	return wait
}

// inspect does what a connection needs, and returns how long until it needs something
// again. An idle one is discarded if it is dead or too old, replaced a little before it
// is too old, and pinged if it had no round trip for KeepAlive or since another
// connection died. A checkout before the replacement is ready discards the unconnected
// conn.
func (m *maintainer) inspect(c *conn) (due time.Duration) {
	due = clock.Never // a conn without a link
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

// maintainIdle is inspect for an idle connection. c is reserved, and c.mu held.
func (m *maintainer) maintainIdle(c *conn) (due time.Duration) {
	now := m.ctr.clock.Now()
	if !c.unconnected {
		if v := c.retirement(now); v != keep {
			m.discard(c.detach(), v, nil)
			c.needsLink = !c.spare
			if m.ctr.isAtLimit() {
				return clock.Lease // so that it is closed before another one is opened
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

// discard closes a link that was taken from an idle connection, and reports its loss.
// Both may take time, and so happen outside the reservation.
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

// ping pings an idle connection. It is called under a reservation, which then lasts
// until the answer. Suspects are pinged many at a time, because callers get none of them
// before its answer. It returns false if no task is free. Callers use it too, so it
// touches nothing that is the maintainer's alone.
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
			return // the caller did not wait: finishRecheck has dealt with the link
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

// startSuspectPing is startPing for suspects, which have a limit of their own.
func (m *maintainer) startSuspectPing(f func(release func())) bool {
	const maxPings = 100
	if m.suspectPings.Add(1) > maxPings {
		m.suspectPings.Add(-1)
		return false
	}
	if m.ctr.spawn(func() {
		f(func() {})
		if left := m.suspectPings.Add(-1); left == 0 || left == maxPings/2 { // not after each ping: a wake looks at all connections
			m.wake()
		}
	}) {
		return true
	}
	m.suspectPings.Add(-1)
	return false
}

// snapshot returns the connections that exist.
func (ctr *Connector) snapshot() []*conn {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	all := make([]*conn, 0, len(ctr.conns))
	for c := range ctr.conns {
		all = append(all, c)
	}
	return all
}
