// queue.go is the queue of the sessions: as many places as there may be
// connections, given out first come, first served. database/sql has no order
// among its waiters.

package fifo

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// Queue are the places of a pool.
type Queue struct {
	mu        sync.Mutex
	limit     int             // 0: no limit; guarded by mu
	closed    <-chan struct{} // when the pool is
	closedErr error           // what those are told who wait then
	holders   Place
	taken     int
	waiters   list.List // of waiters

	waitedCount int64         // sessions that had to wait
	waitedTotal time.Duration // how long, together
	timeouts    int64         // in vain
}

// AddStats says how many had to wait, for how long together, and how many in vain.
func (ps *Queue) AddStats() (waited int64, wait time.Duration, timeouts int64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.waitedCount, ps.waitedTotal, ps.timeouts
}

// Place is one session's. Those that are held form a ring in the order in which
// they were taken, with places.holders as its head.
type Place struct {
	name       string
	since      time.Time
	next, prev *Place
}

func (ps *Queue) Init(limit int, closed <-chan struct{}, why error) {
	ps.limit, ps.closed, ps.closedErr = limit, closed, why
	ps.holders.next, ps.holders.prev = &ps.holders, &ps.holders
}

// Take takes a place, waiting in line until the deadline.
func (ps *Queue) Take(ctx context.Context, pl *Place, name string, deadline time.Time) error {
	pl.name = name
	ps.mu.Lock()
	if ps.limit == 0 || ps.taken < ps.limit { // then nobody waits
		ps.grant(pl)
		ps.mu.Unlock()
		return nil
	}
	granted := make(chan struct{})
	ticket := ps.waiters.PushBack(waiter{pl, granted})
	ps.waitedCount++
	ps.mu.Unlock()
	start := time.Now()
	defer func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		ps.waitedTotal += time.Since(start)
	}()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var err error
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-ps.closed:
		err = ps.closedErr
	case <-timer.C:
		err = ErrQueueTimeout
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	select {
	case <-granted: // in the nick of time
		if ctx.Err() == nil {
			return nil
		}
		ps.giveLocked(pl)
	default:
		ps.waiters.Remove(ticket)
	}
	return err
}

// ErrQueueTimeout: the deadline has passed.
var ErrQueueTimeout = errors.New("livepool: waited too long")

type waiter struct {
	place   *Place
	granted chan struct{}
}

// grant adds a holder. ps.mu is held.
func (ps *Queue) grant(pl *Place) {
	ps.taken++
	pl.since = time.Now()
	last := ps.holders.prev
	pl.prev, pl.next = last, &ps.holders
	last.next, ps.holders.prev = pl, pl
}

// Give gives a place back, to the first in line. It is idempotent, and
// harmless for a session that has none.
func (ps *Queue) Give(pl *Place) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.giveLocked(pl)
}

func (ps *Queue) giveLocked(pl *Place) {
	if pl.next == nil {
		return
	}
	pl.prev.next, pl.next.prev = pl.next, pl.prev
	pl.next, pl.prev = nil, nil
	ps.taken--
	ps.grantWaiters()
}

// SetLimit changes how many places there are. Those who have one keep it.
func (ps *Queue) SetLimit(limit int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.limit = limit
	ps.grantWaiters()
}

// grantWaiters gives free places to the first in line. ps.mu is held.
func (ps *Queue) grantWaiters() {
	for first := ps.waiters.Front(); first != nil && (ps.limit == 0 || ps.taken < ps.limit); first = ps.waiters.Front() {
		w := ps.waiters.Remove(first).(waiter)
		ps.grant(w.place)
		close(w.granted)
	}
}

// RecordTimeout counts one who waited in vain, and says how it stands: how many have a
// place, how many wait, the one who gave up included, and who has had a place for
// longest.
func (ps *Queue) RecordTimeout() (inUse, waiting int, longest string, held time.Duration) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.timeouts++
	if oldest := ps.holders.next; oldest != &ps.holders {
		longest, held = oldest.name, time.Since(oldest.since)
	}
	return ps.taken, ps.waiters.Len() + 1, longest, held
}
