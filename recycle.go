// recycle.go is the policy of when a healthy connection has lived long enough. Each
// connection gets an age limit when it is opened: Recycle, less a random share of it of
// up to RecycleJitter, so that connections opened together do not expire together. The
// limit is drawn once: a new draw at each check would make every limit the shortest.
// internal/connector's recycle.go carries it out: a connection over its limit is closed
// when it is returned or at its next checkout; the maintainer replaces idle ones before
// that (replace.go).

package livepool

// Recycle replaces every connection that exists now: the idle ones in the
// background or at their next checkout, whichever comes first, those in use
// when they are returned; what is running on them is not disturbed. Use it
// after a failover or a change of grants. It is safe for concurrent use.
func (p *Pool) Recycle() {
	p.ctr.RecycleAll()
	if r := p.replicas.pool.Load(); r != nil {
		r.Recycle()
	}
}
