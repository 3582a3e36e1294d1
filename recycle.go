// recycle.go decides when a healthy connection has lived long enough: its own
// jittered age limit, and Recycle for all of them at once. It sends nothing.

package livepool

import (
	"math"
	"math/rand/v2"
	"time"
)

// never is an age limit that no connection reaches.
const never = time.Duration(math.MaxInt64)

// ageLimit draws one connection's age limit. It is drawn once, at birth:
// drawing again at each look would make every limit the shortest.
func (c *settings) ageLimit() time.Duration {
	if c.Recycle == 0 {
		return never
	}
	return c.Recycle - share(c.Recycle, c.RecycleJitter*rand.Float64())
}

// share is a part of d from 0 to 1, without the overflow that rounding the
// greatest duration up to a float64 and back would be.
func share(d time.Duration, part float64) time.Duration {
	if part >= 1 {
		return d
	}
	return time.Duration(float64(d) * part)
}

// retired says whether the connection's time is up, by Recycle or by age, as
// of now; it is kept otherwise.
func (l *link) retired(ctr *connector, now time.Duration) verdict {
	switch {
	case l.generation != ctr.generation.Load():
		return byRecycle
	case now >= l.expires:
		return byAge
	}
	return keep
}

// recycle ends the time of every connection that exists now.
func (ctr *connector) recycle() {
	ctr.generation.Add(1)
	ctr.maintainer.nudge()
}

// Recycle replaces every connection that exists now: the idle ones in the
// background or at their next checkout, whichever comes first, those in use
// when they are returned; what is running on them is not disturbed. Use it
// after a failover or a change of grants. It is safe for concurrent use.
func (p *Pool) Recycle() {
	p.ctr.recycle()
}
