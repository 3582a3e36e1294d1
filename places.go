// places.go is the queue of the sessions: as many places as there may be
// connections, given out first come, first served. database/sql has no order
// among its waiters.

package livepool

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// ErrPoolTimeout is what errors.Is finds in the error of a session that waited
// for a connection longer than PoolTimeout.
var ErrPoolTimeout = errors.New("livepool: no connection within PoolTimeout")

// poolTimeoutError is ErrPoolTimeout with its story: is the pool exhausted, or
// the database down?
type poolTimeoutError struct {
	waited  time.Duration
	inUse   int // sessions that have a place
	waiting int // sessions that wait for one, this one included
	open    int // connections in use, by sessions and others
	longest string
	held    time.Duration // by longest
	limit   int           // of SetMaxOpenConns, if the user has called it
	last    error         // of the last connection that could not be opened, if none could since
}

func (e *poolTimeoutError) Error() string {
	text := fmt.Sprintf("livepool: no connection within PoolTimeout (pool_timeout): waited %s; ", e.waited.Round(time.Millisecond))
	if e.last != nil {
		text += fmt.Sprintf("the database cannot be reached: %v; ", e.last)
	} else {
		text += "the pool is exhausted: "
	}
	text += fmt.Sprintf("%d sessions in use, %d waiting, %d connections in use", e.inUse, e.waiting, e.open)
	if e.held > 0 {
		text += fmt.Sprintf("; %s has held its connection longest, for %s", e.longest, e.held.Round(time.Millisecond))
	}
	switch {
	case e.last != nil:
	case e.limit > 0:
		text += fmt.Sprintf("; the limit is that of SetMaxOpenConns(%d), which was called on the sql.DB: leave the call out and set pool_size and pool_max_overflow, or look for what holds connections", e.limit)
	default:
		text += "; raise pool_size, or look for what holds connections"
	}
	return text
}
func (e *poolTimeoutError) Is(target error) bool { return target == ErrPoolTimeout }
func (e *poolTimeoutError) Unwrap() error        { return e.last }

// places are the places of a pool.
type places struct {
	mu      sync.Mutex
	limit   int             // 0: no limit; guarded by mu
	closed  <-chan struct{} // when the pool is
	holders place
	held    int
	queue   list.List // of waiters

	waited   int64         // sessions that had to wait
	wait     time.Duration // how long, together
	timeouts int64         // in vain

	beginning atomic.Int32 // sessions that have a place and take a connection
	unbounded atomic.Int32 // of those, the ones that need not wait for it
}

// count adds what is known of the queue.
func (ps *places) count(stats *Stats) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	stats.SessionsWaited, stats.SessionWait, stats.SessionsTimedOut = ps.waited, ps.wait, ps.timeouts
}

// place is one session's. Those that are held form a ring in the order in which
// they were taken, with places.holders as its head.
type place struct {
	name       string
	since      time.Time
	next, prev *place
}

func (ps *places) init(limit int, closed <-chan struct{}) {
	ps.limit, ps.closed = limit, closed
	ps.holders.next, ps.holders.prev = &ps.holders, &ps.holders
}

// acquire takes a place, waiting in line until the deadline.
func (ps *places) acquire(ctx context.Context, pl *place, name string, deadline time.Time) error {
	pl.name = name
	ps.mu.Lock()
	if ps.limit == 0 || ps.held < ps.limit { // then nobody waits
		ps.take(pl)
		ps.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	ticket := ps.queue.PushBack(waiter{pl, turn})
	ps.waited++
	ps.mu.Unlock()
	asked := time.Now()
	defer func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		ps.wait += time.Since(asked)
	}()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var err error
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-ps.closed:
		err = errPoolClosed
	case <-timer.C:
		err = errWaitedTooLong
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	select {
	case <-turn: // in the nick of time
		if ctx.Err() == nil {
			return nil
		}
		ps.drop(pl)
	default:
		ps.queue.Remove(ticket)
	}
	return err
}

// errWaitedTooLong is made into a poolTimeoutError by those who know the pool.
var errWaitedTooLong = errors.New("livepool: waited too long")

type waiter struct {
	place *place
	turn  chan struct{}
}

// take adds a holder. ps.mu is held.
func (ps *places) take(pl *place) {
	ps.held++
	pl.since = time.Now()
	last := ps.holders.prev
	pl.prev, pl.next = last, &ps.holders
	last.next, ps.holders.prev = pl, pl
}

// release gives a place back, to the first in line. It is idempotent, and
// harmless for a session that has none.
func (ps *places) release(pl *place) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.drop(pl)
}

func (ps *places) drop(pl *place) {
	if pl.next == nil {
		return
	}
	pl.prev.next, pl.next.prev = pl.next, pl.prev
	pl.next, pl.prev = nil, nil
	ps.held--
	ps.serve()
}

// setLimit changes how many places there are. Those who have one keep it.
func (ps *places) setLimit(limit int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.limit = limit
	ps.serve()
}

// serve gives free places to the first in line. ps.mu is held.
func (ps *places) serve() {
	for first := ps.queue.Front(); first != nil && (ps.limit == 0 || ps.held < ps.limit); first = ps.queue.Front() {
		w := ps.queue.Remove(first).(waiter)
		ps.take(w.place)
		close(w.turn)
	}
}

// timeout tells what a session waited for in vain.
func (ps *places) timeout(p *Pool, waited time.Duration) error {
	st := p.DB.Stats()
	e := &poolTimeoutError{waited: waited, open: st.InUse, last: p.ctr.outage.cause()}
	if st.MaxOpenConnections != p.ctr.cfg.limit() {
		e.limit = st.MaxOpenConnections
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.timeouts++
	e.inUse, e.waiting = ps.held, ps.queue.Len()+1
	if oldest := ps.holders.next; oldest != &ps.holders {
		e.longest, e.held = oldest.name, time.Since(oldest.since)
	}
	return e
}
