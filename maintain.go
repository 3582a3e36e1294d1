// maintain.go looks after idle connections in the background, so that no caller
// pays for it: the maintainer, one goroutine per Pool. It never touches a
// connection in use and never takes one from the pool: it visits them where
// they lie, and a checkout that meets a visit waits for its end.

package livepool

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Who has a connection. Whoever changes it from idle owns the link until he
// changes it back. A connection is born in use.
const (
	inUse int32 = iota
	idle        // returned to the pool
	visited
)

// occupancy keeps the maintainer and the callers apart on one connection.
type occupancy struct {
	state atomic.Int32
	// visit is held for the length of a visit. Besides the maintainer it is
	// taken by those who touch an idle connection from outside a checkout:
	// database/sql closes idle connections, and the statements of a sql.Stmt
	// on them.
	visit sync.Mutex
	gone  bool // closed for good; guarded by visit
}

// claim makes the connection the caller's. It waits for a visit to end.
func (o *occupancy) claim() {
	if o.state.CompareAndSwap(idle, inUse) {
		return
	}
	o.visit.Lock()
	o.state.Store(inUse)
	o.visit.Unlock()
}

// maintainer is the goroutine behind a Pool.
type maintainer struct {
	ctr  *connector
	ctx  context.Context
	stop context.CancelFunc
	wake chan struct{}
	done chan struct{}
}

func (ctr *connector) startMaintainer() {
	ctx, cancel := context.WithCancel(context.Background())
	ctr.maintainer = &maintainer{
		ctr: ctr, ctx: ctx, stop: cancel,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go ctr.maintainer.run()
}

// close stops the maintainer and waits until it is gone.
func (m *maintainer) close() {
	m.stop()
	<-m.done
}

// nudge makes it look now.
func (m *maintainer) nudge() {
	select {
	case m.wake <- struct{}{}:
	default: // it has been told already
	}
}

func (m *maintainer) run() {
	defer close(m.done)
	timer := time.NewTimer(m.round())
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.wake:
		case <-timer.C:
		}
		timer.Reset(m.round())
	}
}

// round visits every connection once and returns how long nothing will be due.
// A connection that is born meanwhile lives at least as long as the shortest
// age limit, so that none needs to announce itself.
func (m *maintainer) round() time.Duration {
	cfg := m.ctr.cfg
	soon, wait := never, never
	if cfg.Recycle > 0 {
		soon = max(cfg.Recycle/20, time.Millisecond) // one in use may be past its limit when it is returned
		wait = max(cfg.Recycle-share(cfg.Recycle, cfg.RecycleJitter), soon)
	}
	for _, c := range m.ctr.residents() {
		if m.ctx.Err() != nil {
			return 0
		}
		wait = min(wait, m.look(c, soon))
	}
	return wait
}

// look replaces the link of an idle connection whose time is up, and returns
// when to look again. The link goes at once, for no connection outlives its
// limit idle; a checkout that comes before the new one is there discards the
// empty shell, and so does one that comes after a dial that failed.
func (m *maintainer) look(c *conn, soon time.Duration) time.Duration {
	due := soon
	var old link
	var v verdict
	emptied := c.visitIdle(func() bool {
		if c.shell {
			due = never
			return false
		}
		now := m.ctr.clock.now()
		if v = c.retired(m.ctr, now); v == keep {
			due = c.expires - now
			return false
		}
		old = c.detach()
		return true
	})
	if !emptied {
		return due
	}
	// Closing takes its time, and nobody who waits for the visit to end is to
	// wait for that.
	old.close()
	m.ctr.discarded(&old, v)
	l, err := m.ctr.dial(m.ctx)
	if err != nil {
		return never
	}
	filled := c.visitIdle(func() bool {
		if c.shell {
			c.fill(l)
		}
		return c.serial == l.serial
	})
	if !filled {
		l.close()
	}
	return soon
}

// visitIdle runs f on the connection if nobody uses it, and returns what f
// does.
func (c *conn) visitIdle(f func() bool) bool {
	c.visit.Lock()
	defer c.visit.Unlock()
	if c.gone || !c.state.CompareAndSwap(idle, visited) {
		return false
	}
	defer c.state.Store(idle)
	return f()
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
