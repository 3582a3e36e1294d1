// probe.go is the prober: the one goroutine of a pool that asks a server, on behalf
// of all who wait, for what it does not give. Who waits is outage.go's affair.

package livepool

import (
	"math/rand/v2"
	"time"
)

// How often the prober asks: often enough that nobody waits for long once the
// server is back, and less often the longer it has been away. A server that takes
// no more connections is at work and is asked less often; one that says nothing
// answers the attempts that go on, and others are for what is in between, such as
// a proxy that lost them.
const (
	probeShortest = 21 * time.Millisecond
	probeLongest  = 250 * time.Millisecond
	probePatience = 500 * time.Millisecond // with an attempt that gets no answer, before the next

	roomShortest, roomLongest = 100 * time.Millisecond, time.Second
	silenceLongest            = 15 * time.Second
	tokenInterval             = time.Second // between two calls of BeforeConnect
)

// probe asks as long as there are those who wait.
func (ctr *connector) probe() {
	o := &ctr.outage
	p := &prober{ctr: ctr}
	defer p.close()
	for {
		o.mu.Lock()
		server, writes := o.server, o.writes
		wanted := o.asked || server.waiting+writes.waiting > 0
		if !wanted || ctr.life.Err() != nil || server.lack == nothing && writes.lack == nothing {
			o.probing = false
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		if server.lack == nothing {
			p.askForWrites(&writes)
		} else if p.dial(&server) {
			o.answerAsked()
		}
	}
}

// answerAsked notes that one attempt was made for those who do not wait.
func (o *outage) answerAsked() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = false
}

// prober is what the prober has between two looks.
type prober struct {
	ctr    *connector
	link   link // on which it asks for writes
	opened time.Duration
	tried  time.Duration // when somebody was last let try by himself
}

func (p *prober) close() { p.link.close() }

// dial tries to connect, if it is time. Where the attempts get no answer a few may
// be under way at the same time. The connection that gets through is that of the
// first who waits.
func (p *prober) dial(g *gate) (tried bool) {
	ctr, o := p.ctr, &p.ctr.outage
	if wait := p.next(g); wait > 0 {
		waitFor(ctr.life, g.over, wait)
		return false
	}
	o.probed = ctr.clock.now()
	done := make(chan struct{})
	if !ctr.spawn(func() {
		defer close(done)
		switch l, err := ctr.open(ctr.life, false, maxProbesLeft, noTurn); {
		case err != nil:
			ctr.failedToConnect(err)
		case !o.isDown():
			l.close() // another attempt got through before
		default:
			ctr.addSpare(l)
			ctr.connected()
		}
	}) {
		return true
	}
	o.unanswered.Store(true)
	timer := time.NewTimer(p.next(g))
	defer timer.Stop()
	select {
	case <-done:
		o.unanswered.Store(false)
	case <-g.over:
	case <-timer.C:
	case <-ctr.life.Done():
	}
	return true
}

// next is for how long there is to be no other attempt.
func (p *prober) next(g *gate) time.Duration {
	ctr, o := p.ctr, &p.ctr.outage
	lasts := o.probed - g.began // until the last attempt
	if lasts < 0 {
		return 0
	}
	pause := min(max(lasts/150, probeShortest), probeLongest)
	switch {
	case g.lack == noAnswer, o.unanswered.Load():
		pause = max(probePatience, ctr.cfg.ConnectTimeout/8, min(lasts/2, silenceLongest))
	case g.lack == noRoom:
		pause = min(max(lasts/10, roomShortest), roomLongest)
	}
	if ctr.asksForToken {
		pause = max(pause, tokenInterval)
	}
	return o.probed + pause + rand.N(pause/5) - ctr.clock.now()
}
