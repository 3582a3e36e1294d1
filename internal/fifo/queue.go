// Package fifo is the queue in which sessions wait for a connection: it has as many
// places as there may be connections, and grants them in the order of arrival, because
// database/sql serves its waiters in no order. It knows nothing of connections. The root
// takes a place before it begins a transaction, and gives it back after its end.
package fifo

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// Queue grants the places of a pool. Init makes it ready for use.
type Queue struct {
	closed    <-chan struct{} // the pool's; Init sets it
	closedErr error           // what Take returns to a waiter then; Init sets it

	mu      sync.Mutex // guards the fields below
	limit   int        // how many places there are; 0: no limit
	holders Place      // the head of the ring of granted places, oldest first
	taken   int        // how many are granted
	waiters list.List  // of waiter, oldest first

	waitedCount int64         // sessions that had to wait
	waitedTotal time.Duration // how long they waited, together
	timeouts    int64         // sessions that waited in vain
}

// Stats returns how many sessions had to wait, for how long together, and how many waited
// in vain.
func (q *Queue) Stats() (waited int64, wait time.Duration, timeouts int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waitedCount, q.waitedTotal, q.timeouts
}

// Place is the place of one session. The granted ones form a ring in the order in which
// they were granted, whose head is Queue.holders. Queue.mu guards the fields, but for
// name, which its session sets before it takes the place.
type Place struct {
	name       string
	since      time.Time
	next, prev *Place
}

// Init is called once, before the first Take. When closed is closed, waiters get why.
func (q *Queue) Init(limit int, closed <-chan struct{}, why error) {
	q.limit, q.closed, q.closedErr = limit, closed, why
	q.holders.next, q.holders.prev = &q.holders, &q.holders
}

// Take takes a place. It waits for its turn until the deadline, and then returns ErrTimeout.
func (q *Queue) Take(ctx context.Context, pl *Place, name string, deadline time.Time) error {
	pl.name = name
	q.mu.Lock()
	if q.limit == 0 || q.taken < q.limit { // then there are no waiters
		q.grant(pl)
		q.mu.Unlock()
		return nil
	}
	granted := make(chan struct{})
	ticket := q.waiters.PushBack(waiter{pl, granted})
	q.waitedCount++
	q.mu.Unlock()
	start := time.Now()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.waitedTotal += time.Since(start)
	}()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var err error
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-q.closed:
		err = q.closedErr
	case <-timer.C:
		err = ErrTimeout
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-granted: // at the same moment
		if ctx.Err() == nil {
			return nil
		}
		q.giveLocked(pl)
	default:
		q.waiters.Remove(ticket)
	}
	return err
}

type waiter struct {
	place   *Place
	granted chan struct{}
}

// grant grants pl. q.mu is held.
func (q *Queue) grant(pl *Place) {
	q.taken++
	pl.since = time.Now()
	last := q.holders.prev
	pl.prev, pl.next = last, &q.holders
	last.next, q.holders.prev = pl, pl
}

// Give returns a place, which the first waiter gets. It is idempotent, and does nothing
// for a place that is not granted.
func (q *Queue) Give(pl *Place) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.giveLocked(pl)
}

func (q *Queue) giveLocked(pl *Place) {
	if pl.next == nil {
		return
	}
	pl.prev.next, pl.next.prev = pl.next, pl.prev
	pl.next, pl.prev = nil, nil
	q.taken--
	q.grantWaiters()
}

// SetLimit changes how many places there are. Granted ones stay granted.
func (q *Queue) SetLimit(limit int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit = limit
	q.grantWaiters()
}

// grantWaiters grants the free places to the first waiters. q.mu is held.
func (q *Queue) grantWaiters() {
	for first := q.waiters.Front(); first != nil && (q.limit == 0 || q.taken < q.limit); first = q.waiters.Front() {
		w := q.waiters.Remove(first).(waiter)
		q.grant(w.place)
		close(w.granted)
	}
}

// Longest is the session that has had its place longest, and for how long; "" for none.
func (q *Queue) Longest() (name string, held time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.longestLocked()
}

func (q *Queue) longestLocked() (name string, held time.Duration) {
	if oldest := q.holders.next; oldest != &q.holders {
		name, held = oldest.name, time.Since(oldest.since)
	}
	return name, held
}
