// Package clock tells the time: exactly where something depends on it, and cheaply, as a
// bound, where that is enough, as on every checkout. It counts from its own
// start, so a change of the wall clock does not matter. Each connector has one Clock.
package clock

import (
	"context"
	"math"
	"sync/atomic"
	"time"
)

// Clock counts the time since New.
type Clock struct {
	epoch time.Time
	// reading is a time that is at most Lease old; -1: none. Reading the clock would
	// otherwise be the most expensive step of a checkout. read sets it, and expiry
	// resets it.
	reading atomic.Int64
	expiry  *time.Timer
}

// Lease is how long a reading is used. It is short compared with any time for which a
// connection is trusted.
const Lease = 20 * time.Millisecond

// New starts a clock. Close releases it.
func New() *Clock {
	k := &Clock{epoch: time.Now()}
	k.reading.Store(-1)
	k.expiry = time.AfterFunc(Never, func() { k.reading.Store(-1) })
	return k
}

// Now is the exact time.
func (k *Clock) Now() time.Duration { return time.Since(k.epoch) }

// Earliest is a time that is not after the present, and at most Lease before it. Rely on
// it for all but a guess.
func (k *Clock) Earliest() time.Duration {
	if r := time.Duration(k.reading.Load()); r >= 0 {
		return r
	}
	return k.read()
}

// Latest is a time that is not before the present, and at most Lease after it; unless the
// runtime's timers are late, as after the process was suspended: then it may have passed.
func (k *Clock) Latest() time.Duration {
	if r := time.Duration(k.reading.Load()); r >= 0 {
		return r + Lease
	}
	return k.read()
}

// read is not part of them, so that they are small enough to be inlined.
func (k *Clock) read() time.Duration {
	now := k.Now()
	if k.reading.CompareAndSwap(-1, int64(now)) {
		k.expiry.Reset(Lease)
	}
	return now
}

// Wait waits for done, for d at most, or until ctx ends. A nil done never comes.
func Wait(ctx context.Context, done <-chan struct{}, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Add is a sum that does not exceed Never.
func Add(now, d, more time.Duration) time.Duration {
	if d > Never-now-more {
		return Never
	}
	return now + d + more
}

// Close stops the timer of the clock.
func (k *Clock) Close() { k.expiry.Stop() }

// Never is longer than any connection lives.
const Never = time.Duration(math.MaxInt64)
