// reaper.go says when, and in which order, what abandoned connections left on the
// server is dealt with; how, kill.go.

package livepool

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// reaper deals with the ghosts, in a goroutine that is there only as long as
// there are any.
type reaper struct {
	mu      sync.Mutex    // guards what follows
	ghosts  []*ghost      // less those that are being dealt with
	running bool          // the goroutine is there
	idle    chan struct{} // closed when nothing is left to do; nil at first
	wake    chan struct{} // there are more

	unproved seldom // that nothing can be proved is said
	blind    seldom // that statements without a reply cannot be looked up is said
}

// seldom lets a warning through once a minute.
type seldom struct{ last atomic.Int64 }

func (s *seldom) may(now time.Duration) bool {
	last := s.last.Load()
	return (last == 0 || int64(now)-last > int64(time.Minute)) && s.last.CompareAndSwap(last, max(int64(now), 1))
}

// takes has the goroutine see to a ghost at once, and starts it if it is not
// there.
func (r *reaper) takes(g *ghost, start func() bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.idle == nil || isClosed(r.idle) {
		r.idle = make(chan struct{})
	}
	r.ghosts = append(r.ghosts, g)
	if r.running {
		select {
		case r.wake <- struct{}{}:
		default: // it has been told already
		}
		return true
	}
	r.wake = make(chan struct{}, 1)
	if r.running = start(); !r.running {
		r.ghosts = nil
		close(r.idle)
	}
	return r.running
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// finish waits for the reaper's work to be done, for a while.
func (r *reaper) finish(patience time.Duration) {
	r.mu.Lock()
	idle := r.idle
	r.mu.Unlock()
	if idle != nil {
		waitFor(context.Background(), idle, patience)
	}
}

// next takes out those that are due, as many as are dealt with at a time: first
// those with a transaction, and the newest, who are the likeliest to be waited
// for. If none is due it returns how long not; never if there are none.
func (r *reaper) next(now time.Duration) (batch []*ghost, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.ghosts, func(a, b *ghost) int {
		if a.inTx != b.inTx {
			return map[bool]int{true: -1, false: 1}[a.inTx]
		}
		return cmp.Compare(b.since, a.since)
	})
	wait = never
	left := r.ghosts[:0]
	for _, g := range r.ghosts {
		if g.due <= now && len(batch) < maxReapBatch {
			batch = append(batch, g)
			continue
		}
		left = append(left, g)
		wait = min(wait, max(g.due-now, 0))
	}
	clear(r.ghosts[len(left):])
	r.ghosts = left
	return batch, wait
}

// returns puts back those that are left of a batch, and tells those who wait for
// the end of all work if nothing is.
func (r *reaper) returns(left []*ghost) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ghosts = append(r.ghosts, left...)
	if len(r.ghosts) == 0 && !isClosed(r.idle) {
		close(r.idle)
	}
}

// retryNow makes all due, since the server can be asked again.
func (r *reaper) retryNow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.ghosts {
		if g.pause > 0 {
			g.due, g.pause = 0, 0
		}
	}
}

// leaves ends the goroutine, unless there are more by now.
func (r *reaper) leaves() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = len(r.ghosts) > 0
	return !r.running
}

// How soon the server is asked again, and for how long, about ghosts that it
// could not be asked about.
const (
	maxReapTries = 6  // of servers behind one address
	maxReapBatch = 64 // that are dealt with at a time
	maxBorrowed  = 8  // with a connection of the pool's, which somebody may wait for
	reapSpacing  = 20 * time.Millisecond
	reapAtFirst  = 50 * time.Millisecond
	reapLongest  = 2 * time.Second
	outagePause  = time.Second
	poolPatience = time.Hour   // of a Pool, which its owner closes
	barePatience = time.Minute // of a connector that may be wrapped by one that hides its Close
)

// reap ends the ghosts, as soon as the server can be reached. The connection for
// it is kept as long as there is work, and a little longer: where callers give up
// all the time it is not opened for each.
func (ctr *connector) reap() {
	r := &ctr.reaper
	var s *side
	failed, lingered := -never, false // failed: when the server could last not be asked
	for ctr.life.Err() == nil {
		now := ctr.clock.now()
		if pause := failed + outagePause - now; failed > 0 && pause > 0 && ctr.outage.isDown() {
			ctr.awaitGhost(pause)
			continue
		}
		batch, wait := r.next(now)
		switch {
		case len(batch) > 0:
			var err error
			if s, err = ctr.reapBatch(s, batch); err != nil {
				failed = ctr.clock.now()
				waitFor(ctr.life, nil, reapAtFirst)
			}
			lingered = false
		case s != nil && !lingered:
			lingered = true
			waitFor(ctr.life, r.wake, min(wait, reapSpacing))
		case s != nil:
			s.close(nil)
			s = nil
		case wait < never:
			ctr.awaitGhost(wait)
		case r.leaves():
			return
		}
	}
	s.close(nil)
	for batch, wait := r.next(never); wait < never || len(batch) > 0; batch, wait = r.next(never) {
		ctr.giveUpGhosts(batch)
		r.returns(nil)
	}
}

// awaitGhost waits for d, for another ghost, or for the end of an outage, after
// which all are tried at once.
func (ctr *connector) awaitGhost(d time.Duration) {
	var over chan struct{}
	if o := &ctr.outage; o.isDown() {
		o.mu.Lock()
		over = o.server.over
		o.mu.Unlock()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctr.reaper.wake:
	case <-over:
		ctr.reaper.retryNow()
	case <-timer.C:
	case <-ctr.life.Done():
	}
}

// reapBatch deals with some ghosts, and puts back those that are left. It returns
// the connection to go on with, nil if there had better be another, and why the
// server could not be asked.
func (ctr *connector) reapBatch(s *side, batch []*ghost) (_ *side, err error) {
	r := &ctr.reaper
	if s == nil {
		if s, err = ctr.reachServer(ctr.life); err == nil {
			r.retryNow()
		}
	}
	var later []*ghost
	if err == nil && s.giveBack != nil && len(batch) > maxBorrowed {
		batch, later = batch[:maxBorrowed], batch[maxBorrowed:]
	}
	left, another := batch, false
	var tally [fates]int
	if err == nil {
		left, another, err = s.deal(batch, &tally)
	}
	if err != nil {
		left = ctr.postpone(left, &tally)
		ctr.cfg.Log.Debug("livepool: what abandoned connections left on the server cannot be ended yet",
			slog.String("addr", ctr.addr), slog.Int("connections", len(left)), slog.Any("cause", err))
	}
	r.returns(append(later, left...))
	ctr.tellOfGhosts(tally)
	if err != nil || another || s.giveBack != nil {
		s.close(err)
		s = nil
	}
	return s, err
}

// reapPatience is for how long a server is asked that cannot be.
func (ctr *connector) reapPatience() time.Duration {
	if ctr.maintainer == nil {
		return barePatience
	}
	return poolPatience
}

// postpone is for ghosts about which the server could not be asked: each has a
// pause of its own, which grows.
func (ctr *connector) postpone(ghosts []*ghost, tally *[fates]int) (left []*ghost) {
	now := ctr.clock.now()
	for _, g := range ghosts {
		if now-g.since > ctr.reapPatience() {
			g.ends(fateFailed, tally)
			continue
		}
		g.pause = min(max(2*g.pause, reapAtFirst), reapLongest)
		g.due = now + g.pause
		left = append(left, g)
	}
	return left
}
