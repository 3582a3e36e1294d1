// clock.go tells the time, exactly where something depends on it and cheaply
// where it does not.

package clock

import (
	"context"
	"math"
	"sync/atomic"
	"time"
)

// Clock counts from the opening of the connector; a change of the wall clock
// does not move it.
type Clock struct {
	epoch time.Time
	// reading is one that is at most lease old, or none, -1. Reading the clock
	// is the dearest thing that a checkout would do without it.
	reading atomic.Int64
	expiry  *time.Timer
}

// Lease is how long a reading serves. It is short beside any time that a
// connection is trusted for.
const Lease = 20 * time.Millisecond

func New() *Clock {
	k := &Clock{epoch: time.Now()}
	k.reading.Store(-1)
	k.expiry = time.AfterFunc(Never, func() { k.reading.Store(-1) })
	return k
}

// Now is exact.
func (k *Clock) Now() time.Duration { return time.Since(k.epoch) }

// Bounds are two times between which it is now. They are apart by a lease, but
// for how late the runtime is with its timers: after the process was stopped the
// later one may long be over, and only the earlier one is certain.
func (k *Clock) Bounds() (earliest, latest time.Duration) {
	if r := time.Duration(k.reading.Load()); r >= 0 {
		return r, r + Lease
	}
	now := k.Now()
	if k.reading.CompareAndSwap(-1, int64(now)) {
		k.expiry.Reset(Lease)
	}
	return now, now
}

// Wait waits for done, until d has passed or ctx ends. A nil done never comes.
func Wait(ctx context.Context, done <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (k *Clock) Close() { k.expiry.Stop() }

// Never is an age limit that no connection reaches.
const Never = time.Duration(math.MaxInt64)
