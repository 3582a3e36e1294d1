// recycle.go decides when a healthy connection has lived long enough: its own
// jittered age limit, and Recycle for all of them at once. It sends nothing.

package connector

import (
	"math/rand/v2"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// ageLimit draws one connection's age limit, once, at its birth: with a new draw at each
// check the shortest would win.
func (c *Settings) ageLimit() time.Duration {
	if c.Recycle == 0 {
		return clock.Never
	}
	return c.Recycle - fraction(c.Recycle, c.RecycleJitter*rand.Float64())
}

// fraction is a part of d, from 0 to 1. Rounding the greatest duration to a float64 and
// back would overflow.
func fraction(d time.Duration, part float64) time.Duration {
	if part >= 1 {
		return d
	}
	return time.Duration(float64(d) * part)
}

// retirement says whether the link must be discarded as of now, by Recycle or for its
// age; otherwise keep.
func (l *link) retirement(now time.Duration) Verdict {
	switch {
	case l.generation != l.host.generation.Load():
		return ByRecycle
	case now >= l.expires:
		return ByAge
	}
	return keep
}

// RecycleAll retires every connection that exists now.
func (ctr *Connector) RecycleAll() {
	for _, h := range ctr.hosts() {
		h.generation.Add(1)
	}
	ctr.maintainer.wake()
}
