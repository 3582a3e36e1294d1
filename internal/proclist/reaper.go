// reaper.go decides when and in which order orphans are dealt with; orphans.go kills
// them.

package proclist

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// Reaper deals with orphans in a goroutine that runs only as long as there are any.
type Reaper struct {
	*Env
	// KeepFor is how long an orphan is kept while the server cannot be asked. It is set
	// before the first call of Abandon.
	KeepFor time.Duration
	// OutageEnd is closed when the server can be reached again; nil while it can be.
	OutageEnd func() <-chan struct{}

	mu      sync.Mutex    // guards what follows
	orphans []*Orphan     // without the batch that is being dealt with
	running bool          // the goroutine runs
	done    chan struct{} // closed when nothing is left to do; nil at first
	wake    chan struct{} // an orphan was added; made before the goroutine starts, which reads it without mu

	unprovenWarn warnLimiter // for orphans that are not killed for want of proof
}

// Abandon has the thread of a connection that was given up killed, in the background.
// inTx says that a transaction was open. It returns nil if the Reaper has had it before.
func (r *Reaper) Abandon(w *Thread, inTx bool) *Orphan {
	if w.abandoned.Swap(true) {
		return nil
	}
	o := &Orphan{thread: w, since: r.Clock.Now(), inTx: inTx, done: make(chan struct{})}
	if !r.add(o, func() bool { return r.Spawn(r.reap) }) {
		r.fail([]*Orphan{o})
	}
	return o
}

// add has an orphan dealt with at once, and starts the goroutine if it does not run.
// It returns false if that is not possible any more.
func (r *Reaper) add(o *Orphan, start func() bool) bool {
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

// Drain waits until nothing is left to do, for timeout at most.
func (r *Reaper) Drain(timeout time.Duration) {
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
func (r *Reaper) nextBatch(now time.Duration) (batch []*Orphan, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.orphans, func(a, b *Orphan) int {
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
func (r *Reaper) putBack(left []*Orphan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.orphans = append(r.orphans, left...)
	if len(r.orphans) == 0 && !isClosed(r.done) {
		close(r.done)
	}
}

// retryNow makes all due: the server can be asked again.
func (r *Reaper) retryNow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.orphans {
		if o.retryAfter > 0 {
			o.due, o.retryAfter = 0, 0
		}
	}
}

// tryExit says whether the goroutine may end: nothing was added meanwhile.
func (r *Reaper) tryExit() bool {
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
)

// reap deals with the orphans as soon as the server can be reached. It keeps its side
// connection as long as there is work and reapLinger more, so that it does not open
// one for each caller that gives up.
func (r *Reaper) reap() {
	var s *Side
	failedAt, lingered := -clock.Never, false // failedAt: when the server could last not be asked
	for r.Ctx.Err() == nil {
		now := r.Clock.Now()
		if pause := failedAt + reapOutagePause - now; failedAt > 0 && pause > 0 && r.OutageEnd() != nil {
			r.await(pause)
			continue
		}
		batch, wait := r.nextBatch(now)
		switch {
		case len(batch) > 0:
			var err error
			if s, err = r.reapBatch(s, batch); err != nil {
				failedAt = r.Clock.Now()
				clock.Wait(r.Ctx, nil, reapRetryFirst)
			}
			lingered = false
		case s != nil && !lingered:
			lingered = true
			clock.Wait(r.Ctx, r.wake, min(wait, reapLinger))
		case s != nil:
			s.Close(nil)
			s = nil
		case wait < clock.Never:
			r.await(wait)
		case r.tryExit():
			return
		}
	}
	if s != nil {
		s.Close(nil)
	}
	for !r.tryExit() {
		batch, _ := r.nextBatch(clock.Never)
		r.fail(batch)
		r.putBack(nil)
	}
}

// await waits for d, for another orphan, or for the end of an outage, after which all
// are due.
func (r *Reaper) await(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.wake:
	case <-r.OutageEnd():
		r.retryNow()
	case <-timer.C:
	case <-r.Ctx.Done():
	}
}

// reapBatch deals with a batch and puts back what is left of it. It returns the side
// connection to go on with, nil if another one is needed, and the error if the server
// could not be asked.
func (r *Reaper) reapBatch(s *Side, batch []*Orphan) (_ *Side, err error) {
	if s == nil {
		if s, err = r.OpenSide(r.Ctx); err == nil {
			r.retryNow()
		}
	}
	var later []*Orphan
	if err == nil && s.Borrowed && len(batch) > maxReapBorrowed {
		batch, later = batch[:maxReapBorrowed], batch[maxReapBorrowed:]
	}
	left, otherServer := batch, false
	var tally [outcomes]int
	if err == nil {
		left, otherServer, err = r.killBatch(s, batch, &tally)
	}
	if err != nil {
		left = r.postpone(left, &tally)
		r.Log.Debug("livepool: what abandoned connections left on the server cannot be ended yet",
			slog.String("addr", r.Addr), slog.Int("connections", len(left)), slog.Any("cause", err))
	}
	r.putBack(append(later, left...))
	r.report(tally)
	if s != nil && (err != nil || otherServer || s.Borrowed) {
		s.Close(err)
		s = nil
	}
	return s, err
}

// postpone keeps orphans about which the server could not be asked. Each has a growing
// pause of its own.
func (r *Reaper) postpone(orphans []*Orphan, tally *[outcomes]int) (left []*Orphan) {
	now := r.Clock.Now()
	for _, o := range orphans {
		if now-o.since > r.KeepFor {
			o.finish(outcomeFailed, tally)
			continue
		}
		o.pause(now)
		left = append(left, o)
	}
	return left
}
