// visit.go says who has a connection: its owner, the pool, or the maintainer, which
// visits it where it lies. It is the one place where they are kept apart.

package livepool

import (
	"context"
	"database/sql/driver"
	"sync"
	"sync/atomic"
)

// Who has a connection. Whoever changes it from idle, or from atRest, owns the
// link until he changes it back. A connection is born in use.
const (
	inUse         int32 = iota // a request is under way, or a result is open
	atRest                     // its owner is elsewhere
	visitedAtRest              // by the maintainer
	endedAtRest                // which found that it, or its transaction, is gone
	idle                       // returned to the pool
	visited
)

// occupancy keeps the maintainer and the callers apart on one connection.
type occupancy struct {
	state atomic.Int32
	// mu guards what follows. Besides the maintainer it is taken by those who
	// touch an idle connection from outside a checkout: database/sql closes idle
	// connections, and the statements of a sql.Stmt on them, the latter under the
	// lock of the whole pool. So nobody waits for an answer while he holds it.
	mu        sync.Mutex
	visit     *visit   // one that takes its time, nil if there is none
	vacant    bool     // its time was up, and another link is to be opened for it
	replacing bool     // which is being done
	gone      bool     // closed for good
	pause     pause    // since the owner's last request; the maintainer's own
	restEnd   *restEnd // what the owner is to be told, from endedAtRest until he takes it
}

// visit is one during which a connection waits for its server.
type visit struct {
	over chan struct{}
	asks *pinging      // nil where it is no ping
	owed []driver.Stmt // what was to be closed meanwhile
}

// claim makes the connection the caller's. It waits for a visit to end; a
// caller whose context ends first leaves the link to the visitor, and so does
// one who is not to wait because the answer is late.
func (c *conn) claim(ctx context.Context) {
	if c.state.CompareAndSwap(idle, inUse) {
		c.ctr.wakes()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := c.visit; v != nil; v = c.visit {
		c.mu.Unlock()
		why := bySilence
		var late <-chan struct{} // none of a connection that is lent for a look beside it: see borrowSide
		if v.asks != nil {
			late = v.asks.late
		}
		select {
		case <-v.over:
		case <-late:
		case <-ctx.Done():
			why = byCaller
		}
		c.mu.Lock()
		if c.visit != v {
			continue
		}
		left := v.asks == nil
		if !left {
			_, left = v.asks.leave(why)
		}
		if left {
			c.visit = nil
			c.suspected.Store(false) // it was the link that was
			c.detach()
			continue
		}
		c.mu.Unlock()
		<-v.over // the answer has come
		c.mu.Lock()
	}
	c.state.Store(inUse)
	c.ctr.wakes()
}

// visitIdle runs f on the connection, if nobody uses it. f does not wait for
// anything; it may begin a visit that does.
func (c *conn) visitIdle(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone || !c.state.CompareAndSwap(idle, visited) {
		return false
	}
	f()
	if c.visit == nil {
		c.state.Store(idle)
	}
	return true
}

// doubtVisit is for a visit to a connection that another one's silence has made
// suspect: who waits for it is not to wait for another ping's timeout.
func (c *conn) doubtVisit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.visit != nil && c.visit.asks != nil && c.state.Load() == visited && c.isSuspect(c.ctr) {
		c.suspected.Store(true)
		c.visit.asks.nobodyWaits()
	}
}

// visitIsOver lets the next user in. c.mu is held.
func (c *conn) visitIsOver() {
	close(c.visit.over)
	c.visit = nil
	c.suspected.Store(false)
	c.state.Store(idle)
}

// leave ends a visit and leaves l behind, or a shell if l is no good. It returns
// false if l is not wanted any more, and then it is the visitor's to close.
func (c *conn) leave(v *visit, l link, good bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.payOwed(v, good)
	if c.visit != v {
		return false
	}
	if good {
		l.prepared = c.prepared
		c.link = l
	} else {
		c.detach()
	}
	c.visitIsOver()
	return good
}

// payOwed closes what was to be closed during a visit. c.mu is held, but for as
// long as that takes.
func (c *conn) payOwed(v *visit, good bool) {
	for c.visit == v && good && v.owed != nil {
		owed := v.owed
		v.owed = nil
		c.mu.Unlock()
		for _, s := range owed {
			s.Close()
		}
		c.mu.Lock()
	}
}
