package livepool

// Recycle replaces every connection that exists now: the idle ones in the
// background or at their next checkout, whichever comes first, those in use
// when they are returned; what is running on them is not disturbed. Use it
// after a failover or a change of grants. It is safe for concurrent use.
func (p *Pool) Recycle() {
	p.ctr.RecycleAll()
}
