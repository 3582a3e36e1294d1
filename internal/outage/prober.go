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
	// AskForWrites asks whether writes are taken, and calls WritesTaken if they are; cause
	// is the refusal of one. err is why it could not connect.
	AskForWrites(cause error) (taken bool, err error)
	// Release closes the connection on which it asked.
	Release()
}

// How often the prober asks: often enough that nobody waits for long once the server
// is back, and less often the longer it has been away. A full server is busy and is
// asked less often. A silent one will answer the attempts that it has; new ones are for
// a proxy in between that may have lost them.
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
		isWanted := g.probeRequested || connections.waiting+writes.waiting > 0
		if !isWanted || g.cfg.Closed.Err() != nil || connections.shortage == None && writes.shortage == None {
			g.probing = false
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		if connections.shortage == None {
			p.askForWrites(&writes)
		} else if p.connect(&connections) {
			g.clearProbeRequest()
		}
	}
}

// clearProbeRequest: the requested attempt was made.
func (g *Gate) clearProbeRequest() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.probeRequested = false
}

// connect tries to connect, if it is time, and says whether it did. Of attempts without
// an answer a few may be under way at the same time.
func (p *prober) connect(r *resource) (tried bool) {
	if wait := p.untilNext(r); wait > 0 {
		clock.Wait(p.cfg.Closed, r.ended, wait)
		return false
	}
	p.lastProbe = p.cfg.Clock.Now()
	done := make(chan struct{})
	if !p.cfg.Spawn(func() { defer close(done); p.server.Connect() }) {
		return true
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
	return true
}

// untilNext is how long to wait before the next attempt to connect.
func (p *prober) untilNext(r *resource) time.Duration {
	lasted := p.lastProbe - r.since // until the last attempt
	if lasted < 0 {
		return 0
	}
	pause := min(max(lasted/150, probeShortest), probeLongest)
	switch {
	case r.shortage == NoAnswer, p.unanswered:
		pause = max(probeAnswerWait, p.cfg.ConnectTimeout/8, min(lasted/2, silentProbeLongest))
	case r.shortage == NoRoom:
		pause = min(max(lasted/10, fullProbeShortest), fullProbeLongest)
	}
	pause = max(pause, p.cfg.ProbePause)
	return p.lastProbe + pause + rand.N(pause/5) - p.cfg.Clock.Now()
}

// askForWrites asks once whether writes are taken, and waits for its next turn.
func (p *prober) askForWrites(r *resource) {
	now := p.cfg.Clock.Now()
	taken, err := p.server.AskForWrites(r.cause)
	if taken {
		return
	}
	if p.lastSingleTry = max(p.lastSingleTry, r.since); err == nil && now-p.lastSingleTry > singleTryEvery {
		p.lastSingleTry = now
		select {
		case p.singleTries <- struct{}{}:
		default:
		}
	}
	pause := min(max((p.cfg.Clock.Now()-r.since)/150, probeShortest), probeLongest)
	clock.Wait(p.cfg.Closed, r.ended, pause+rand.N(pause/5))
}
