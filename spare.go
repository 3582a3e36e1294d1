// spare.go keeps connections ready that database/sql does not have yet: those
// that MinIdle asks for, and the one by which a server was found to be back.
// Whoever would open a connection takes one of them first.

package livepool

import (
	"context"
	"slices"
	"sync"
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
		ctr.makeRoom()
		ctr.tellReady()
	}
	ctr.mu.Unlock()
	if closed {
		l.close()
		return
	}
	ctr.maintainer.stir() // it may be surplus, and nothing else be due
}

// tellReady tells one of those who open a connection, if there is any spare.
// ctr.mu is held.
func (ctr *connector) tellReady() {
	if len(ctr.spares) == 0 {
		return
	}
	select {
	case ctr.ready <- struct{}{}:
	default:
	}
}

// obtain returns a connection that is ready, which may have died meanwhile, or
// opens one. While there are connections that are asked whether they are alive
// the first of both is taken: where it was the server that stood still, they
// answer before a new one is there.
func (ctr *connector) obtain(ctx context.Context) (l link, isNew bool, err error) {
	if l, ok := ctr.takeSpare(ctx); ok {
		return l, false, nil
	}
	if l, ok := ctr.awaitOpening(ctx); ok {
		return l, false, nil
	}
	ctr.mu.Lock()
	doubts := len(ctr.aside) > 0
	ctr.mu.Unlock()
	if doubts {
		return ctr.dialOrSpare(ctx)
	}
	l, err = ctr.dial(ctx)
	return l, true, err
}

// dialOrSpare is what obtain does then. An attempt that its caller leaves goes on
// for the pool.
func (ctr *connector) dialOrSpare(caller context.Context) (l link, isNew bool, err error) {
	ctx, cancel := context.WithCancel(caller)
	defer cancel()
	spare := make(chan link, 1)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-ctr.ready:
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
	watch.Wait()
	select {
	case ready := <-spare:
		if err == nil { // at the same moment
			ctr.keepOrClose(l)
		}
		return ready, false, nil
	default:
		return l, true, err
	}
}

// keepOrClose keeps a new link for the next who would open one, within PoolSize.
func (ctr *connector) keepOrClose(l link) {
	if ready, busy := ctr.count(); ready+busy >= ctr.limits.allowed(ctr.cfg.PoolSize) {
		l.close()
		return
	}
	ctr.addSpare(l)
}

// takeSpare returns a connection that is ready, if there is one. It may have
// died meanwhile. One that is being pinged is waited for, as at a checkout.
func (ctr *connector) takeSpare(ctx context.Context) (link, bool) {
	for {
		c := ctr.nextSpare()
		if c == nil {
			return link{}, false
		}
		c.claim(ctx)
		ctr.forget(c)
		if !c.shell {
			return c.detach(), true
		}
	}
}

// nextSpare reserves one for the caller. It counts until he has it.
func (ctr *connector) nextSpare() *conn {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	last := len(ctr.spares) - 1
	if last < 0 {
		return nil
	}
	c := ctr.spares[last]
	ctr.spares = ctr.spares[:last]
	ctr.tellReady() // another waits, perhaps
	return c
}

// keepsReady takes over a healthy idle link that database/sql closes, because it
// was idle for IdleTimeout, if MinIdle would be missed without it.
func (ctr *connector) keepsReady(l link, idleSince time.Duration) bool {
	now, timeout := ctr.clock.now(), ctr.cfg.IdleTimeout
	if ctr.maintainer == nil || ctr.cfg.MinIdle == 0 || timeout == 0 || now-idleSince < timeout-lease {
		return false
	}
	if l.inner.Conn == nil || l.retired(ctr, now) != keep {
		return false
	}
	if ready, _ := ctr.count(); ready >= ctr.cfg.MinIdle || ctr.isFull() {
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
		case held(c.state.Load()):
			busy++
		case c.linked.Load() && !c.suspected.Load():
			ready++
		}
	}
	return ready, busy - int(ctr.limits.waiting.Load()) // who take what is being opened
}

// keepReady opens what MinIdle lacks, within PoolSize and the limit, and closes
// what is ready for nothing. It returns when to look again: what is ready may be
// taken at any time.
func (m *maintainer) keepReady(all []*conn) time.Duration {
	cfg, now, coming := m.ctr.cfg, m.ctr.clock.now(), 0
	size := m.ctr.limits.allowed(cfg.PoolSize)
	if cfg.MinIdle > 0 {
		coming = int(m.opening.Load()) + replacements(all) // before those that are there, or one could be missed
	}
	ready, busy := m.ctr.count()
	surplus := m.trim(ready, busy, now)
	switch {
	case cfg.MinIdle == 0 && surplus && busy == 0 && ready <= size:
		return max(cfg.IdleTimeout/10, readyPause)
	case cfg.MinIdle == 0 && surplus:
		return readyPause
	case cfg.MinIdle == 0:
		return never
	}
	need := min(cfg.MinIdle-ready, size-ready-busy) - coming
	if wait := m.pausing(); need > 0 && wait > 0 {
		return wait
	}
	if m.ctr.outage.isDown() {
		need = min(need, 1-coming)
	}
	for range need {
		m.opening.Add(1)
		if !m.hand(m.openReady) {
			m.opening.Add(-1)
			m.short.Store(true)
		}
	}
	if busy == 0 && need <= 0 && ready <= size {
		return never // what changes that tells
	}
	return readyPause
}

// readyPause is between two looks at what is ready.
const readyPause = time.Second

func (m *maintainer) openReady() {
	defer m.opening.Add(-1)
	l, err := m.open()
	if err != nil {
		return
	}
	m.ctr.keepOrClose(l) // others may have been faster
}

// replacements are the connections that are on their way to an idle shell.
func replacements(all []*conn) (n int) {
	for _, c := range all {
		c.mu.Lock()
		if !c.gone && !c.linked.Load() && c.state.Load() == idle && (c.vacant || c.replacing) {
			n++
		}
		c.mu.Unlock()
	}
	return n
}

// trim drops the spares that are none any more, and closes those that are not
// needed. It says whether there are any left.
func (m *maintainer) trim(ready, busy int, now time.Duration) bool {
	ctr, cfg := m.ctr, m.ctr.cfg
	size := ctr.limits.allowed(cfg.PoolSize)
	strict := ctr.limitIsUsers() && int(ctr.limits.open.Load()) == size
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for i := len(ctr.spares) - 1; i >= 0; i-- {
		c := ctr.spares[i]
		old := cfg.IdleTimeout > 0 && now-c.since > cfg.IdleTimeout
		surplus := ready+busy > size && (strict || now-c.since > time.Second) || old && ready > cfg.MinIdle
		if c.linked.Load() && !surplus || !c.state.CompareAndSwap(idle, inUse) {
			continue
		}
		ctr.spares = slices.Delete(ctr.spares, i, i+1)
		delete(ctr.conns, c)
		if !c.shell {
			ready--
			l := c.detach()
			ctr.background.Go(func() { l.close() })
		}
	}
	return len(ctr.spares) > 0
}

// closeSpares is for a connector that is closed.
func (ctr *connector) closeSpares() {
	for l, ok := ctr.takeSpare(context.Background()); ok; l, ok = ctr.takeSpare(context.Background()) {
		l.close()
	}
}
