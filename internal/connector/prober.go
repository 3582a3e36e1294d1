// prober.go is the prober: the one goroutine of a pool that asks a server, on behalf
// of all who wait, for what it does not give. Who waits is outage.go's affair.

package connector

import (
	"math/rand/v2"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// How often the prober asks: often enough that nobody waits for long once the
// server is back, and less often the longer it has been away. A server that takes
// no more connections is at work and is asked less often; one that says nothing
// answers the attempts that go on, and others are for what is in between, such as
// a proxy that lost them.
const (
	probeMin        = 21 * time.Millisecond
	probeMax        = 250 * time.Millisecond
	probeAnswerWait = 500 * time.Millisecond // with an attempt that gets no answer, before the next

	fullProbeMin, fullProbeMax = 100 * time.Millisecond, time.Second
	silentProbeMax             = 15 * time.Second
	beforeConnectInterval      = time.Second // between two calls of BeforeConnect
)

// probe asks as long as there are those who wait.
func (ctr *Connector) probe() {
	o := &ctr.Outage
	p := &prober{ctr: ctr}
	defer p.close()
	for {
		o.mu.Lock()
		server, writes := o.server, o.writes
		isWanted := o.probeRequested || server.waiting+writes.waiting > 0
		if !isWanted || ctr.Ctx.Err() != nil || server.shortage == NoShortage && writes.shortage == NoShortage {
			o.probing = false
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		if server.shortage == NoShortage {
			p.probeWrites(&writes)
		} else if p.dial(&server) {
			o.clearProbeRequest()
		}
	}
}

// clearProbeRequest notes that one attempt was made for those who do not wait.
func (o *outage) clearProbeRequest() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.probeRequested = false
}

// prober is what the prober has between two looks.
type prober struct {
	ctr           *Connector
	link          link // on which it asks for writes
	openedAt      time.Duration
	lastSingleTry time.Duration // when somebody was last let try by himself
}

func (p *prober) close() { p.link.close() }

// dial tries to connect, if it is time. Where the attempts get no answer a few may
// be under way at the same time. The connection that gets through is that of the
// first who waits.
func (p *prober) dial(g *gate) (dialed bool) {
	ctr, o := p.ctr, &p.ctr.Outage
	if wait := p.untilNextDial(g); wait > 0 {
		clock.Wait(ctr.Ctx, g.opened, wait)
		return false
	}
	o.lastProbe = ctr.clock.Now()
	done := make(chan struct{})
	if !ctr.spawn(func() {
		defer close(done)
		switch l, err := ctr.open(ctr.Ctx, false, maxUnansweredProbes, noDialLimit); {
		case err != nil:
			ctr.recordConnectFailure(err)
		case !o.isDown():
			l.close() // another attempt got through before
		default:
			ctr.addSpare(l)
			ctr.recordConnected()
		}
	}) {
		return true
	}
	o.unanswered.Store(true)
	timer := time.NewTimer(p.untilNextDial(g))
	defer timer.Stop()
	select {
	case <-done:
		o.unanswered.Store(false)
	case <-g.opened:
	case <-timer.C:
	case <-ctr.Ctx.Done():
	}
	return true
}

// untilNextDial is for how long there is to be no other attempt.
func (p *prober) untilNextDial(g *gate) time.Duration {
	ctr, o := p.ctr, &p.ctr.Outage
	lasted := o.lastProbe - g.shutAt // until the last attempt
	if lasted < 0 {
		return 0
	}
	pause := min(max(lasted/150, probeMin), probeMax)
	switch {
	case g.shortage == noAnswer, o.unanswered.Load():
		pause = max(probeAnswerWait, ctr.Cfg.ConnectTimeout/8, min(lasted/2, silentProbeMax))
	case g.shortage == noRoom:
		pause = min(max(lasted/10, fullProbeMin), fullProbeMax)
	}
	if ctr.callsBeforeConnect {
		pause = max(pause, beforeConnectInterval)
	}
	return o.lastProbe + pause + rand.N(pause/5) - ctr.clock.Now()
}
