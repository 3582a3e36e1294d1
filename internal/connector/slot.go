// slot.go says who has a connection: its owner, the pool, or the maintainer, which
// visits it where it lies. It is the one place where they are kept apart.

package connector

import (
	"context"
	"database/sql/driver"
	"sync"
	"sync/atomic"
)

// Who has a connection. Whoever changes it from idle, or from atRest, owns the
// link until he changes it back. A connection is born in use.
const (
	inUse          int32 = iota // a request is under way, or a result is open
	parked                      // its owner is elsewhere
	parkedReserved              // by the maintainer
	parkedFailed                // which found that it, or its transaction, is gone
	idle                        // returned to the pool
	reserved
)

// slot keeps the maintainer and the callers apart on one connection.
type slot struct {
	state atomic.Int32
	// mu guards what follows. Besides the maintainer it is taken by those who
	// touch an idle connection from outside a checkout: database/sql closes idle
	// connections, and the statements of a sql.Stmt on them, the latter under the
	// lock of the whole pool. So nobody waits for an answer while he holds it.
	mu            sync.Mutex
	reservation   *reservation   // one that takes its time, nil if there is none
	needsLink     bool           // its time was up, and another link is to be opened for it
	replacing     bool           // which is being done
	closed        bool           // closed for good
	ownerPause    ownerPause     // since the owner's last request; the maintainer's own
	parkedFailure *parkedFailure // what the owner is to be told, from endedAtRest until he takes it
}

// reservation is one during which a connection waits for its server.
type reservation struct {
	done           chan struct{}
	ping           *pendingPing  // nil where it is no ping
	deferredCloses []driver.Stmt // what was to be closed meanwhile
}

// acquire makes the connection the caller's. It waits for a visit to end; a
// caller whose context ends first leaves the link to the visitor, and so does
// one who is not to wait because the answer is late.
func (c *conn) acquire(ctx context.Context) {
	if c.state.CompareAndSwap(idle, inUse) {
		c.ctr.noteActivity()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := c.reservation; v != nil; v = c.reservation {
		c.mu.Unlock()
		reason := BySilence
		var late <-chan struct{} // none of a connection that is lent for a look beside it: see borrowSide
		if v.ping != nil {
			late = v.ping.late
		}
		select {
		case <-v.done:
		case <-late:
		case <-ctx.Done():
			reason = ByCaller
		}
		c.mu.Lock()
		if c.reservation != v {
			continue
		}
		unattended := v.ping == nil
		if !unattended {
			_, unattended = v.ping.leaveUnattended(reason)
		}
		if unattended {
			c.reservation = nil
			c.rechecking.Store(false) // it was the link that was
			c.detach()
			continue
		}
		c.mu.Unlock()
		<-v.done // the answer has come
		c.mu.Lock()
	}
	c.state.Store(inUse)
	c.ctr.noteActivity()
}

// reserveIdle runs f on the connection, if nobody uses it. f does not wait for
// anything; it may begin a visit that does.
func (c *conn) reserveIdle(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !c.state.CompareAndSwap(idle, reserved) {
		return false
	}
	f()
	if c.reservation == nil {
		c.state.Store(idle)
	}
	return true
}

// releaseWaiters is for a visit to a connection that another one's silence has made
// suspect: who waits for it is not to wait for another ping's timeout.
func (c *conn) releaseWaiters() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reservation != nil && c.reservation.ping != nil && c.state.Load() == reserved && c.isSuspect(c.ctr) {
		c.rechecking.Store(true)
		c.reservation.ping.markLate()
	}
}

// endReservation lets the next user in. c.mu is held.
func (c *conn) endReservation() {
	close(c.reservation.done)
	c.reservation = nil
	c.rechecking.Store(false)
	c.state.Store(idle)
}

// release ends a visit and leaves l behind, or a shell if l is no good. It returns
// false if l is not wanted any more, and then it is the visitor's to close.
func (c *conn) release(v *reservation, l link, usable bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeDeferred(v, usable)
	if c.reservation != v {
		return false
	}
	if usable {
		l.openStmts = c.openStmts
		c.link = l
	} else {
		c.detach()
	}
	c.endReservation()
	return usable
}

// closeDeferred closes what was to be closed during a visit. c.mu is held, but for as
// long as that takes.
func (c *conn) closeDeferred(v *reservation, usable bool) {
	for c.reservation == v && usable && v.deferredCloses != nil {
		deferred := v.deferredCloses
		v.deferredCloses = nil
		c.mu.Unlock()
		for _, s := range deferred {
			s.Close()
		}
		c.mu.Lock()
	}
}
