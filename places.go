// places.go is the queue of the sessions: as many places as there may be
// connections, given out first come, first served. database/sql has no order
// among its waiters.

package livepool

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// places are the places of a pool.
type places struct {
	mu      sync.Mutex
	limit   int             // 0: no limit; guarded by mu
	closed  <-chan struct{} // when the pool is
	why     error           // what those are told who wait then
	holders place
	held    int
	queue   list.List // of waiters

	waited   int64         // sessions that had to wait
	wait     time.Duration // how long, together
	timeouts int64         // in vain
}

// count says how many had to wait, for how long together, and how many in vain.
func (ps *places) count() (waited int64, wait time.Duration, timeouts int64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.waited, ps.wait, ps.timeouts
}

// place is one session's. Those that are held form a ring in the order in which
// they were taken, with places.holders as its head.
type place struct {
	name       string
	since      time.Time
	next, prev *place
}

func (ps *places) init(limit int, closed <-chan struct{}, why error) {
	ps.limit, ps.closed, ps.why = limit, closed, why
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
		err = ps.why
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

// errWaitedTooLong: the deadline has passed.
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

// gaveUp counts one who waited in vain, and says how it stands: how many have a
// place, how many wait, the one who gave up included, and who has had a place for
// longest.
func (ps *places) gaveUp() (inUse, waiting int, longest string, held time.Duration) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.timeouts++
	if oldest := ps.holders.next; oldest != &ps.holders {
		longest, held = oldest.name, time.Since(oldest.since)
	}
	return ps.held, ps.queue.Len() + 1, longest, held
}
