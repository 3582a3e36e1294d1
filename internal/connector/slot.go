// slot.go decides who has a connection: its owner, the pool, or the maintainer, which
// reserves an idle one in place. Nothing else keeps them apart.

package connector

import (
	"context"
	"database/sql/driver"
	"sync"
	"sync/atomic"
)

// The states of a connection. The goroutine that changes the state from idle or parked
// owns the link until it changes it back. A connection is born in use.
const (
	inUse          int32 = iota // a request is under way, or a result is open
	parked                      // checked out, and no request is under way
	parkedReserved              // checked out, and the maintainer pings it
	parkedFailed                // checked out, and a ping found that the connection or its transaction is lost
	idle                        // returned to the pool
	reserved                    // idle, and the maintainer or a side connection uses it
)

// slot keeps the maintainer and the callers apart on one connection.
type slot struct {
	state atomic.Int32
	// mu guards what follows. The maintainer takes it, and those who touch an idle
	// connection without a checkout: database/sql closes idle connections, and the
	// statements of a sql.Stmt on them, the latter under the lock of the whole pool. So
	// nobody waits for an answer while holding mu.
	mu            sync.Mutex
	reservation   *reservation   // one that waits for the server, nil if none; set in reserveIdle and reserveParked
	needsLink     bool           // its link was retired and a new one must be opened; the maintainer and swapLink write it
	replacing     bool           // that link is being opened; the same write it
	closed        bool           // Close was called, and sets it
	ownerPause    ownerPause     // since the owner's last request; the maintainer writes it in state parkedReserved
	parkedFailure *parkedFailure // what the owner's next request returns; set with parkedFailed, and cleared by the owner
}

// reservation is a use of a connection that waits for its server, while its owner or the
// pool still has the conn.
type reservation struct {
	done           chan struct{} // closed at its end
	ping           *pendingPing  // nil if it is not a ping
	deferredCloses []driver.Stmt // statements that were closed meanwhile; guarded by the slot's mu
}

// acquire takes the connection for the caller. It waits for a reservation to end. If the
// context ends first, or the ping is late, the link stays with the reservation, and the
// conn is left unconnected.
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
		var late <-chan struct{} // nil for a side connection that was borrowed (see borrowSide): it cannot be late
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
			c.rechecking.Store(false) // only the link is being pinged, and it is no longer here
			c.detach()
			continue
		}
		c.mu.Unlock()
		<-v.done // the answer has arrived
		c.mu.Lock()
	}
	c.state.Store(inUse)
	c.ctr.noteActivity()
}

// reserveIdle runs f on the connection if it is idle. f does not wait for anything, but
// it may set a reservation, which then lasts until release.
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

// releaseWaiters ends the wait for a reserved suspect, so that its caller does not wait
// for another PingTimeout.
func (c *conn) releaseWaiters() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reservation != nil && c.reservation.ping != nil && c.state.Load() == reserved && c.isSuspect(c.ctr) {
		c.rechecking.Store(true)
		c.reservation.ping.markLate()
	}
}

// endReservation makes a reserved connection idle. c.mu is held.
func (c *conn) endReservation() {
	close(c.reservation.done)
	c.reservation = nil
	c.rechecking.Store(false)
	c.state.Store(idle)
}

// release ends a reservation and puts l back, or leaves the conn unconnected if l is not
// usable. If it returns false l is not wanted any more, and the caller closes it.
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

// closeDeferred closes the statements whose Close a reservation has deferred. c.mu is
// held, but not during the closing.
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
