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
func (c *Config) ageLimit() time.Duration {
	if c.Recycle == 0 {
		return never
	}
	cut := c.RecycleJitter * rand.Float64()
	return time.Duration(float64(c.Recycle) * (1 - cut))
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

// Recycle replaces every connection that exists now, at its next checkout or
// when it is returned; what is running on it is not disturbed. Use it after a
// failover or a change of grants. It is safe for concurrent use.
func (p *Pool) Recycle() { p.ctr.generation.Add(1) }
