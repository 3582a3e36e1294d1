// reaper.go decides when and in which order orphans are dealt with; orphans.go kills
// them.

package connector

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// reaper deals with orphans in a goroutine that runs only as long as there are any.
type reaper struct {
	mu      sync.Mutex    // guards what follows
	orphans []*orphan     // without the batch that is being dealt with
	running bool          // the goroutine runs
	done    chan struct{} // closed when nothing is left to do; nil at first
	wake    chan struct{} // an orphan was added

	unprovenWarn   warnLimiter // for orphans that are not killed for want of proof
	stallCheckWarn warnLimiter // for statements that cannot be looked up
}

// warnLimiter lets a warning through once a minute.
type warnLimiter struct{ last atomic.Int64 }

func (s *warnLimiter) allow(now time.Duration) bool {
	last := s.last.Load()
	return (last == 0 || int64(now)-last > int64(time.Minute)) && s.last.CompareAndSwap(last, max(int64(now), 1))
}

// add has an orphan dealt with at once, and starts the goroutine if it does not run.
// It returns false if that is not possible any more.
func (r *reaper) add(o *orphan, start func() bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done == nil || isClosed(r.done) {
		r.done = make(chan struct{})
	}
	r.orphans = append(r.orphans, o)
	if r.running {
		select {
		case r.wake <- struct{}{}:
		default: // it is awake already
		}
		return true
	}
	r.wake = make(chan struct{}, 1)
	if r.running = start(); !r.running {
		r.orphans = nil
		close(r.done)
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

// drain waits until nothing is left to do, for timeout at most.
func (r *reaper) drain(timeout time.Duration) {
	r.mu.Lock()
	done := r.done
	r.mu.Unlock()
	if done != nil {
		clock.Wait(context.Background(), done, timeout)
	}
}

// nextBatch takes out the orphans that are due, up to maxReapBatch: those with a
// transaction first, then the newest, since a unit most likely waits for those. If none
// is due it returns how long to wait, clock.Never if there are none.
func (r *reaper) nextBatch(now time.Duration) (batch []*orphan, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.orphans, func(a, b *orphan) int {
		if a.inTx != b.inTx {
			return map[bool]int{true: -1, false: 1}[a.inTx]
		}
		return cmp.Compare(b.since, a.since)
	})
	wait = clock.Never
	waiting := r.orphans[:0]
	for _, o := range r.orphans {
		if o.due <= now && len(batch) < maxReapBatch {
			batch = append(batch, o)
			continue
		}
		waiting = append(waiting, o)
		wait = min(wait, max(o.due-now, 0))
	}
	clear(r.orphans[len(waiting):])
	r.orphans = waiting
	return batch, wait
}

// putBack returns what is left of a batch, and closes done if nothing is left at all.
func (r *reaper) putBack(left []*orphan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.orphans = append(r.orphans, left...)
	if len(r.orphans) == 0 && !isClosed(r.done) {
		close(r.done)
	}
}

// retryNow makes all due: the server can be asked again.
func (r *reaper) retryNow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.orphans {
		if o.retryAfter > 0 {
			o.due, o.retryAfter = 0, 0
		}
	}
}

// tryExit says whether the goroutine may end: nothing was added meanwhile.
func (r *reaper) tryExit() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = len(r.orphans) > 0
	return !r.running
}

// How soon, and for how long, the server is asked again after it could not be.
const (
	maxWrongServerTries = 6  // of servers behind one address
	maxReapBatch        = 64 // that are dealt with at a time
	maxReapBorrowed     = 8  // with a connection of the pool's, which somebody may wait for
	reapLinger          = 20 * time.Millisecond
	reapRetryFirst      = 50 * time.Millisecond
	reapRetryLongest    = 2 * time.Second
	reapOutagePause     = time.Second
	poolReapLimit       = time.Hour   // of a Pool, which its owner closes
	bareReapLimit       = time.Minute // of a connector that may be wrapped by one that hides its Close
)

// reap deals with the orphans as soon as the server can be reached. It keeps its side
// connection as long as there is work and reapLinger more, so that it does not open
// one for each caller that gives up.
func (ctr *Connector) reap() {
	r := &ctr.reaper
	var s *side
	failedAt, lingered := -clock.Never, false // failedAt: when the server could last not be asked
	for ctr.Ctx.Err() == nil {
		now := ctr.clock.Now()
		if pause := failedAt + reapOutagePause - now; failedAt > 0 && pause > 0 && ctr.Outage.IsDown() {
			ctr.awaitOrphans(pause)
			continue
		}
		batch, wait := r.nextBatch(now)
		switch {
		case len(batch) > 0:
			var err error
			if s, err = ctr.reapBatch(s, batch); err != nil {
				failedAt = ctr.clock.Now()
				clock.Wait(ctr.Ctx, nil, reapRetryFirst)
			}
			lingered = false
		case s != nil && !lingered:
			lingered = true
			clock.Wait(ctr.Ctx, r.wake, min(wait, reapLinger))
		case s != nil:
			s.close(nil)
			s = nil
		case wait < clock.Never:
			ctr.awaitOrphans(wait)
		case r.tryExit():
			return
		}
	}
	s.close(nil)
	for batch, wait := r.nextBatch(clock.Never); wait < clock.Never || len(batch) > 0; batch, wait = r.nextBatch(clock.Never) {
		ctr.failOrphans(batch)
		r.putBack(nil)
	}
}

// awaitOrphans waits for d, for another orphan, or for the end of an outage, after
// which all are due.
func (ctr *Connector) awaitOrphans(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctr.reaper.wake:
	case <-ctr.Outage.End():
		ctr.reaper.retryNow()
	case <-timer.C:
	case <-ctr.Ctx.Done():
	}
}

// reapBatch deals with a batch and puts back what is left of it. It returns the side
// connection to go on with, nil if another one is needed, and the error if the server
// could not be asked.
func (ctr *Connector) reapBatch(s *side, batch []*orphan) (_ *side, err error) {
	r := &ctr.reaper
	if s == nil {
		if s, err = ctr.openOrBorrowSide(ctr.Ctx); err == nil {
			r.retryNow()
		}
	}
	var later []*orphan
	if err == nil && s.returnToPool != nil && len(batch) > maxReapBorrowed {
		batch, later = batch[:maxReapBorrowed], batch[maxReapBorrowed:]
	}
	left, otherServer := batch, false
	var tally [outcomes]int
	if err == nil {
		left, otherServer, err = s.killBatch(batch, &tally)
	}
	if err != nil {
		left = ctr.postpone(left, &tally)
		ctr.Cfg.Log.Debug("livepool: what abandoned connections left on the server cannot be ended yet",
			slog.String("addr", ctr.addr), slog.Int("connections", len(left)), slog.Any("cause", err))
	}
	r.putBack(append(later, left...))
	ctr.reportOrphans(tally)
	if err != nil || otherServer || s.returnToPool != nil {
		s.close(err)
		s = nil
	}
	return s, err
}

// reapLimit is how long an orphan is kept while the server cannot be asked.
func (ctr *Connector) reapLimit() time.Duration {
	if ctr.maintainer == nil {
		return bareReapLimit
	}
	return poolReapLimit
}

// postpone keeps orphans about which the server could not be asked. Each has a growing
// pause of its own.
func (ctr *Connector) postpone(orphans []*orphan, tally *[outcomes]int) (left []*orphan) {
	now := ctr.clock.Now()
	for _, o := range orphans {
		if now-o.since > ctr.reapLimit() {
			o.finish(outcomeFailed, tally)
			continue
		}
		o.retryAfter = min(max(2*o.retryAfter, reapRetryFirst), reapRetryLongest)
		o.due = now + o.retryAfter
		left = append(left, o)
	}
	return left
}
