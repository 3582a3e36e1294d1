package outage

import (
	"math/rand/v2"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// Server is what one run of the prober asks. The connector implements it.
type Server interface {
	// Connect tries once to open a connection, and calls Failed or Connected.
	Connect()
	// AskForWrites asks once whether writes are taken, and calls WritesTaken if they are;
	// cause is the refusal of one.
	AskForWrites(cause error)
	// Release closes the connection on which it asked.
	Release()
}

// How often the prober asks: often enough that nobody waits for long once the server
// is back, and less often the longer it has been away. A full server is busy and is
// asked less often (a side connection asks at its own pace, see openSide). A silent one
// may still answer the attempts under way; new ones are made in case a proxy in between
// lost those.
const (
	probeShortest   = 21 * time.Millisecond
	probeLongest    = 250 * time.Millisecond
	probeAnswerWait = 500 * time.Millisecond // for an answer, before the next attempt

	fullProbeShortest, fullProbeLongest = 100 * time.Millisecond, time.Second
	silentProbeLongest                  = 15 * time.Second

	// Every singleTryEvery one of those that wait for writes tries one by itself: a proxy
	// may send the prober's questions to another server than the writes.
	singleTryEvery = 2 * time.Second
)

// prober is the state of one run. Only its goroutine uses it.
type prober struct {
	*Gate
	server        Server
	lastSingleTry time.Duration // when a waiting unit was last let try by itself
}

// probe is the one goroutine of a pool that asks, for all that wait. It ends when nobody
// waits any more.
func (g *Gate) probe() {
	p := &prober{Gate: g, server: g.cfg.NewServer()}
	defer p.server.Release() // the next run may have begun by then
	for {
		g.mu.Lock()
		connections, writes := g.connections, g.writes
		isWanted := connections.shortage != None && (g.probeRequested || connections.waiting > 0) || writes.shortage != None && writes.waiting > 0
		if !isWanted || g.cfg.Closed.Err() != nil {
			g.probing = false
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		if connections.shortage == None {
			p.askForWrites(&writes)
		} else {
			p.connect(&connections)
		}
	}
}

// connect tries to connect, if it is time. Of attempts without an answer a few may be
// under way at the same time.
func (p *prober) connect(r *resource) {
	if wait := p.untilNext(r); wait > 0 {
		clock.Wait(p.cfg.Closed, r.ended, wait)
		return
	}
	p.lastProbe = p.cfg.Clock.Now()
	done := make(chan struct{})
	if !p.cfg.Spawn(func() { defer close(done); p.server.Connect() }) {
		return
	}
	p.unanswered = true
	timer := time.NewTimer(p.untilNext(r))
	defer timer.Stop()
	select {
	case <-done:
		p.unanswered = false
	case <-r.ended:
	case <-timer.C:
	case <-p.cfg.Closed.Done():
	}
	p.mu.Lock()
	p.probeRequested = false // the attempt was made
	p.mu.Unlock()
}

// untilNext is how long to wait before the next attempt to connect.
func (p *prober) untilNext(r *resource) time.Duration {
	lasted := p.lastProbe - r.since // until the last attempt
	if lasted < 0 {
		return 0
	}
	pause := probePause(lasted)
	switch {
	case r.shortage == NoAnswer, p.unanswered:
		pause = max(probeAnswerWait, p.cfg.ConnectTimeout/8, min(lasted/2, silentProbeLongest))
	case r.shortage == NoRoom:
		pause = min(max(lasted/10, fullProbeShortest), fullProbeLongest)
	}
	pause = max(pause, p.cfg.ProbePause)
	return p.lastProbe + pause + rand.N(pause/5) - p.cfg.Clock.Now()
}

// probePause is the pause between two probes of an outage that has lasted that long.
func probePause(lasted time.Duration) time.Duration {
	return min(max(lasted/150, probeShortest), probeLongest)
}

// askForWrites asks once whether writes are taken, and waits for its next turn, or for the
// end that it has brought about.
func (p *prober) askForWrites(r *resource) {
	now := p.cfg.Clock.Now()
	p.server.AskForWrites(r.cause)
	if p.lastSingleTry = max(p.lastSingleTry, r.since); now-p.lastSingleTry > singleTryEvery {
		p.lastSingleTry = now
		select {
		case p.singleTries <- struct{}{}:
		default:
		}
	}
	pause := probePause(p.cfg.Clock.Now() - r.since)
	clock.Wait(p.cfg.Closed, r.ended, pause+rand.N(pause/5))
}
