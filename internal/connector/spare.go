// spare.go keeps connections ready that database/sql does not have yet: those that
// MinIdle asks for, and others without a caller, as the one by which a server was found
// to be back. A caller that would open a connection takes a spare first.

package connector

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// addSpare makes a spare of l.
func (ctr *Connector) addSpare(l link) {
	c := &conn{ctr: ctr, spare: true, idleSince: ctr.clock.Now()}
	c.attach(l)
	c.state.Store(idle)
	ctr.mu.Lock()
	closed := ctr.closed
	if !closed {
		ctr.conns[c] = struct{}{}
		ctr.spares = append(ctr.spares, c)
		ctr.makeRoom()
		ctr.signalSpare()
	}
	ctr.mu.Unlock()
	if closed {
		l.close()
		return
	}
	ctr.maintainer.noteActivity() // it may be one too many, and nothing else would wake the maintainer
}

// signalSpare wakes one caller that is opening a connection, if there is a spare. ctr.mu
// is held.
func (ctr *Connector) signalSpare() {
	if len(ctr.spares) == 0 {
		return
	}
	select {
	case ctr.spareReady <- struct{}{}:
	default:
	}
}

// takeOrDial returns a spare, which may have died meanwhile, or opens a connection.
// While links are being rechecked it takes the first of either kind: if only the server
// was suspended, they answer before a new connection is open.
func (ctr *Connector) takeOrDial(ctx context.Context) (l link, isNew bool, err error) {
	if l, ok := ctr.takeSpare(ctx); ok {
		return l, false, nil
	}
	return ctr.dialOrAwaitSpare(ctx)
}

// takeTrustedOrDial is takeOrDial for database/sql, which asks for a connection after two
// that it had were lost, and for no other after this one. What ends connections one after
// the other, such as a server that shuts down, may be about to end a spare: so after a loss
// the spare is closed, and one is opened that did not exist then.
func (ctr *Connector) takeTrustedOrDial(ctx context.Context) (l link, err error) {
	if l, ok := ctr.takeSpare(ctx); ok {
		if lost := time.Duration(ctr.news.lastHangup.Load()); lost < 0 || l.born > lost || ctr.clock.Now()-lost > lossesGoOnFor {
			return l, nil
		}
		l.close()
	}
	l, _, err = ctr.dialOrAwaitSpare(ctx)
	return l, err
}

// lossesGoOnFor is for how long after the loss of one connection others may be lost by the
// same event.
const lossesGoOnFor = time.Second

func (ctr *Connector) dialOrAwaitSpare(ctx context.Context) (l link, isNew bool, err error) {
	if l, ok := ctr.awaitOpeningSpare(ctx); ok {
		return l, false, nil
	}
	ctr.mu.Lock()
	rechecking := len(ctr.rechecks) > 0
	ctr.mu.Unlock()
	if rechecking {
		return ctr.raceDialAndSpare(ctx)
	}
	l, err = ctr.dial(ctx)
	return l, true, err
}

// raceDialAndSpare dials, and takes a spare if one comes first. The attempt that it
// leaves then continues for the pool.
func (ctr *Connector) raceDialAndSpare(caller context.Context) (l link, isNew bool, err error) {
	ctx, cancel := context.WithCancel(caller)
	defer cancel()
	spare := make(chan link, 1)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-ctr.spareReady:
			case <-ctx.Done():
				return
			}
			if l, ok := ctr.takeSpare(ctx); ok {
				spare <- l
				cancel()
				return
			}
		}
	})
	l, err = ctr.dial(ctx)
	cancel()
	watcher.Wait()
	select {
	case ready := <-spare:
		if err == nil { // both came at the same moment
			ctr.keepOrClose(l)
		}
		return ready, false, nil
	default:
		return l, true, err
	}
}

// keepOrClose makes a spare of a new link, within PoolSize, or closes it.
func (ctr *Connector) keepOrClose(l link) {
	if ready, busy := ctr.countConns(); ready+busy >= ctr.Limits.allowed(ctr.Cfg.PoolSize) {
		l.close()
		return
	}
	ctr.addSpare(l)
}

// takeSpare returns a spare, if there is one. It may have died meanwhile. If it is being
// pinged, the caller waits as at a checkout.
func (ctr *Connector) takeSpare(ctx context.Context) (link, bool) {
	for {
		c := ctr.popSpare()
		if c == nil {
			return link{}, false
		}
		c.acquire(ctx)
		ctr.forget(c)
		if !c.unconnected {
			return c.detach(), true
		}
	}
}

// popSpare takes a spare off the list for the caller. It counts as a connection until
// forget.
func (ctr *Connector) popSpare() *conn {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	last := len(ctr.spares) - 1
	if last < 0 {
		return nil
	}
	c := ctr.spares[last]
	ctr.spares = ctr.spares[:last]
	ctr.signalSpare() // there may be another caller and another spare
	return c
}

// keepForMinIdle keeps a healthy idle link that database/sql closes after IdleTimeout,
// if MinIdle would be missed without it.
func (ctr *Connector) keepForMinIdle(l link, idleSince time.Duration) bool {
	now, timeout := ctr.clock.Now(), ctr.Cfg.IdleTimeout
	if ctr.maintainer == nil || ctr.Cfg.MinIdle == 0 || timeout == 0 || now-idleSince < timeout-clock.Lease {
		return false
	}
	if l.driverConn.Conn == nil || l.retirement(now) != keep {
		return false
	}
	if ready, _ := ctr.countConns(); ready >= ctr.Cfg.MinIdle || ctr.isAtLimit() {
		return false
	}
	ctr.addSpare(l)
	return true
}

// countConns returns how many connections are idle and ready, and how many are in use by
// database/sql.
func (ctr *Connector) countConns() (ready, busy int) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for c := range ctr.conns {
		switch {
		case isCheckedOut(c.state.Load()):
			busy++
		case c.hasLink.Load() && !c.rechecking.Load():
			ready++
		}
	}
	return ready, busy - int(ctr.Limits.waiting.Load()) // those that wait take what is being opened
}

// keepMinIdle opens the connections that are missing to MinIdle, within PoolSize and the
// limit, and closes spares that are not needed. It returns how long until it must run
// again: spares may be taken at any time.
func (m *maintainer) keepMinIdle(all []*conn) time.Duration {
	cfg, now, opening := m.ctr.Cfg, m.ctr.clock.Now(), 0
	size := m.ctr.Limits.allowed(cfg.PoolSize)
	if cfg.MinIdle > 0 {
		opening = int(m.openingSpares.Load()) + countReplacements(all) // counted before those that exist, or one could be missed
	}
	ready, busy := m.ctr.countConns()
	surplus := m.trimSpares(ready, busy, now)
	switch {
	case cfg.MinIdle == 0 && surplus && busy == 0 && ready <= size:
		return max(cfg.IdleTimeout/10, minIdleInterval)
	case cfg.MinIdle == 0 && surplus:
		return minIdleInterval
	case cfg.MinIdle == 0:
		return clock.Never
	}
	need := min(cfg.MinIdle-ready, size-ready-busy) - opening
	if wait := m.openPauseLeft(); need > 0 && wait > 0 {
		return wait
	}
	if m.ctr.Outage.IsDown() {
		need = min(need, 1-opening)
	}
	for range need {
		m.openingSpares.Add(1)
		if !m.startTask(m.openSpare) {
			m.openingSpares.Add(-1)
			m.minIdleShort.Store(true)
		}
	}
	if busy == 0 && need <= 0 && ready <= size {
		return clock.Never // a change wakes the maintainer
	}
	return minIdleInterval
}

// minIdleInterval is the time between two checks of MinIdle.
const minIdleInterval = time.Second

func (m *maintainer) openSpare() {
	defer m.openingSpares.Add(-1)
	l, err := m.open()
	if err != nil {
		return
	}
	m.ctr.keepOrClose(l) // MinIdle may have been reached meanwhile
}

// takesPlaceOf says whether a spare is to be opened for a connection that is closed because
// of the state that its user left on it, so that the next user does not wait for a login. It
// has the place of c from now on: there are never more than the limit.
func (m *maintainer) takesPlaceOf(c *conn) bool {
	if m == nil || !c.dirty {
		return false
	}
	ctr := m.ctr
	ready, busy := ctr.countConns() // c is among them
	if ready+busy+int(m.openingSpares.Load()) > ctr.Limits.allowed(ctr.Cfg.PoolSize) ||
		ctr.exceedsLimit(0) || m.openPauseLeft() > 0 || ctr.Outage.IsDown() || ctr.Outage.WantsRoom() {
		return false
	}
	m.openingSpares.Add(1) // first, so that the place is nobody else's in between
	ctr.forget(c)
	return true
}

// openInPlace opens the spare, once the connection is closed.
func (m *maintainer) openInPlace() {
	if !m.startPing(func(func()) { m.openSpare() }) { // its end needs no round either
		m.openingSpares.Add(-1)
	}
}

// countReplacements counts the replacements under way for idle conns without a link.
func countReplacements(all []*conn) (n int) {
	for _, c := range all {
		c.mu.Lock()
		if !c.closed && !c.hasLink.Load() && c.state.Load() == idle && (c.needsLink || c.replacing) {
			n++
		}
		c.mu.Unlock()
	}
	return n
}

// trimSpares removes spares that have lost their link, and closes those that are not
// needed. It says whether any are left.
func (m *maintainer) trimSpares(ready, busy int, now time.Duration) bool {
	ctr, cfg := m.ctr, m.ctr.Cfg
	size := ctr.Limits.allowed(cfg.PoolSize)
	strict := ctr.isLimitOverridden() && int(ctr.Limits.Open.Load()) == size
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for i := len(ctr.spares) - 1; i >= 0; i-- {
		c := ctr.spares[i]
		old := cfg.IdleTimeout > 0 && now-c.idleSince > cfg.IdleTimeout
		surplus := ready+busy > size && (strict || now-c.idleSince > time.Second) || old && ready > cfg.MinIdle
		if c.hasLink.Load() && !surplus || !c.state.CompareAndSwap(idle, inUse) {
			continue
		}
		ctr.spares = slices.Delete(ctr.spares, i, i+1)
		delete(ctr.conns, c)
		if !c.unconnected {
			ready--
			l := c.detach()
			ctr.background.Go(func() { l.close() })
		}
	}
	return len(ctr.spares) > 0
}

// closeSpares closes all spares when the connector is closed.
func (ctr *Connector) closeSpares() {
	for l, ok := ctr.takeSpare(context.Background()); ok; l, ok = ctr.takeSpare(context.Background()) {
		l.close()
	}
}
