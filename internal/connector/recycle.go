// recycle.go decides when a healthy connection has lived long enough: its own
// jittered age limit, and Recycle for all of them at once. It sends nothing.

package connector

import (
	"math/rand/v2"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// ageLimit draws one connection's age limit. It is drawn once, at birth:
// drawing again at each look would make every limit the shortest.
func (c *Settings) ageLimit() time.Duration {
	if c.Recycle == 0 {
		return clock.Never
	}
	return c.Recycle - fraction(c.Recycle, c.RecycleJitter*rand.Float64())
}

// fraction is a part of d from 0 to 1, without the overflow that rounding the
// greatest duration up to a float64 and back would be.
func fraction(d time.Duration, part float64) time.Duration {
	if part >= 1 {
		return d
	}
	return time.Duration(float64(d) * part)
}

// retirement says whether the connection's time is up, by Recycle or by age, as
// of now; it is kept otherwise.
func (l *link) retirement(ctr *Connector, now time.Duration) Verdict {
	switch {
	case l.generation != ctr.generation.Load():
		return ByRecycle
	case now >= l.expires:
		return ByAge
	}
	return keep
}

// RecycleAll ends the time of every connection that exists now.
func (ctr *Connector) RecycleAll() {
	ctr.generation.Add(1)
	ctr.maintainer.wake()
}
