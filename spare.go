// spare.go keeps connections ready that database/sql does not have yet: those
// that MinIdle asks for, and the one by which a server was found to be back.
// Whoever would open a connection takes one of them first.

package livepool

import (
	"slices"
	"time"
)

// addSpare keeps l ready.
func (ctr *connector) addSpare(l link) {
	c := &conn{ctr: ctr, spare: true, since: ctr.clock.now()}
	c.fill(l)
	c.state.Store(idle)
	ctr.mu.Lock()
	closed := ctr.closed
	if !closed {
		ctr.conns[c] = struct{}{}
		ctr.spares = append(ctr.spares, c)
	}
	ctr.mu.Unlock()
	if closed {
		l.close()
	}
}

// takeSpare returns a connection that is ready, if there is one. It may have
// died meanwhile.
func (ctr *connector) takeSpare() (link, bool) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for i := len(ctr.spares) - 1; i >= 0; i-- {
		c := ctr.spares[i]
		if !c.state.CompareAndSwap(idle, inUse) {
			continue // it is being visited
		}
		ctr.dropSpare(i)
		if !c.shell {
			return c.detach(), true
		}
	}
	return link{}, false
}

// dropSpare forgets one. ctr.mu is held.
func (ctr *connector) dropSpare(i int) {
	delete(ctr.conns, ctr.spares[i])
	ctr.spares = slices.Delete(ctr.spares, i, i+1)
}

// keepsReady takes over a healthy idle link that database/sql closes, because it
// was idle for IdleTimeout, if MinIdle would be missed without it.
func (ctr *connector) keepsReady(l link) bool {
	if ctr.cfg.MinIdle == 0 || l.inner.Conn == nil || l.retired(ctr, ctr.clock.now()) != keep {
		return false
	}
	if ready, _ := ctr.count(); ready >= ctr.cfg.MinIdle {
		return false
	}
	ctr.addSpare(l)
	return true
}

// count says how many connections are idle and ready, and how many database/sql
// has in use.
func (ctr *connector) count() (ready, busy int) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for c := range ctr.conns {
		switch {
		case c.state.Load() == inUse:
			busy++
		case c.linked.Load():
			ready++
		}
	}
	return ready, busy
}

// keepReady opens what MinIdle lacks, within PoolSize, and closes what is ready
// for nothing. It returns when to look again.
func (m *maintainer) keepReady() time.Duration {
	cfg, now := m.ctr.cfg, m.ctr.clock.now()
	ready, busy := m.ctr.count()
	m.trim(ready, busy, now)
	opening := int(m.opening.Load())
	need := min(cfg.MinIdle-ready, cfg.PoolSize-ready-busy) - opening
	if need <= 0 {
		return never
	}
	if wait := time.Duration(m.refused.Load()) - now; wait > 0 {
		return wait
	}
	if m.ctr.outage.isDown() {
		need = min(need, 1-opening)
	}
	for range need {
		m.opening.Add(1)
		if !m.hand(m.openReady) {
			m.opening.Add(-1)
		}
	}
	return refillPause
}

// refillPause is between attempts to keep MinIdle that fail.
const refillPause = time.Second

func (m *maintainer) openReady() {
	defer m.opening.Add(-1)
	l, err := m.ctr.dial(m.ctx)
	if err != nil {
		m.refused.Store(int64(m.ctr.clock.now() + refillPause))
		return
	}
	m.ctr.addSpare(l)
}

// trim drops the spares that are none any more, and closes those that are not
// needed.
func (m *maintainer) trim(ready, busy int, now time.Duration) {
	ctr, cfg := m.ctr, m.ctr.cfg
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for i := len(ctr.spares) - 1; i >= 0; i-- {
		c := ctr.spares[i]
		old := cfg.IdleTimeout > 0 && now-c.since > cfg.IdleTimeout
		surplus := ready+busy > cfg.PoolSize && now-c.since > time.Second || old && ready > cfg.MinIdle
		if c.linked.Load() && !surplus || !c.state.CompareAndSwap(idle, inUse) {
			continue
		}
		ctr.dropSpare(i)
		if !c.shell {
			ready--
			l := c.detach()
			ctr.background.Go(func() { l.close() })
		}
	}
}

// closeSpares is for a connector that is closed.
func (ctr *connector) closeSpares() {
	for l, ok := ctr.takeSpare(); ok; l, ok = ctr.takeSpare() {
		l.close()
	}
}
