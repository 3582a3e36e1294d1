// prober.go is the one goroutine of a pool that asks the server, for all that wait, for
// what it does not give. outage.go has those that wait.

package connector

import (
	"math/rand/v2"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// How often the prober asks: often enough that nobody waits for long once the server is
// back, and less often the longer it has been away. A full server is busy and is asked
// less often. A silent one will answer the attempts that it has; new ones are for a
// proxy in between that may have lost them.
const (
	probeShortest   = 21 * time.Millisecond
	probeLongest    = 250 * time.Millisecond
	probeAnswerWait = 500 * time.Millisecond // for an answer, before the next attempt

	fullProbeShortest, fullProbeLongest = 100 * time.Millisecond, time.Second
	silentProbeLongest                  = 15 * time.Second
	beforeConnectInterval               = time.Second // between two calls of BeforeConnect
)

// probe asks as long as anybody waits.
func (ctr *Connector) probe() {
	o := &ctr.Outage
	p := &prober{ctr: ctr}
	defer p.close()
	for {
		o.mu.Lock()
		server, writes := o.server, o.writes
		isWanted := o.probeRequested || server.waiting+writes.waiting > 0
		if !isWanted || ctr.Ctx.Err() != nil || server.shortage == noShortage && writes.shortage == noShortage {
			o.probing = false
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		if server.shortage == noShortage {
			p.probeWrites(&writes)
		} else if p.dial(&server) {
			o.clearProbeRequest()
		}
	}
}

// clearProbeRequest: the requested attempt was made.
func (o *outage) clearProbeRequest() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.probeRequested = false
}

// prober is the state of the goroutine. Only it writes the fields.
type prober struct {
	ctr           *Connector
	link          link // on which it asks whether writes are taken
	openedAt      time.Duration
	lastSingleTry time.Duration // when a waiting unit was last let try by itself
}

func (p *prober) close() { p.link.close() }

// dial tries to connect, if it is time. Of attempts without an answer a few may be under
// way at the same time. The connection that succeeds becomes a spare.
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
			l.close() // another attempt succeeded before
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

// untilNextDial is how long to wait before the next attempt.
func (p *prober) untilNextDial(g *gate) time.Duration {
	ctr, o := p.ctr, &p.ctr.Outage
	lasted := o.lastProbe - g.shutAt // until the last attempt
	if lasted < 0 {
		return 0
	}
	pause := min(max(lasted/150, probeShortest), probeLongest)
	switch {
	case g.shortage == noAnswer, o.unanswered.Load():
		pause = max(probeAnswerWait, ctr.Cfg.ConnectTimeout/8, min(lasted/2, silentProbeLongest))
	case g.shortage == noRoom:
		pause = min(max(lasted/10, fullProbeShortest), fullProbeLongest)
	}
	if ctr.callsBeforeConnect {
		pause = max(pause, beforeConnectInterval)
	}
	return o.lastProbe + pause + rand.N(pause/5) - ctr.clock.Now()
}
