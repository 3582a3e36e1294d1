// Package outage makes callers wait while the server does not give what they need:
// connections, while it cannot be reached, is full or does not answer; or writes, while
// it is read-only. One prober (prober.go) asks for all of them, and lets them go on when
// it succeeds. Only a few connections are opened at a time (diallimit.go).
//
// The connector reports to the Gate each connect that failed or succeeded. It also
// opens connections, says what an error means, counts and logs: the Gate does none of
// that.
package outage

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// Settings are what a Gate needs of the connector.
type Settings struct {
	Clock  *clock.Clock
	Closed context.Context // ends when the pool is closed
	// Spawn runs f in the background, or returns false once the pool is closed. It is
	// called under the lock of the Gate: no method of the Gate may be called under a
	// lock that it takes.
	Spawn     func(f func()) bool
	NewServer func() Server // what the prober asks, new each time that it starts

	ConnectLimit   int           // how many connections are opened at a time, at most
	ConnectTimeout time.Duration // how long one may take
	ProbePause     time.Duration // between two probes, at least
}

// Attempt is an attempt to connect that goes on without its caller.
type Attempt interface {
	Abort(cause error)
}

// resource is one thing that a server gives, and may be short of. It is guarded by
// Gate.mu.
type resource struct {
	shortage    Shortage
	cause       error         // for which the outage began
	ended       chan struct{} // closed when it ends
	since       time.Duration // when it began
	waiting     int           // how many wait now
	waitedTotal int           // how many have waited in this outage
}

// Gate is what is known of what the server gives, and who waits for it.
type Gate struct {
	cfg Settings // never changed

	mu          sync.Mutex // guards what follows, up to the blank line
	connections resource
	writes      resource
	lastErr     error // of the last connect, nil if it succeeded
	// connectedAt and failedAt are when a connect last succeeded, and last failed.
	connectedAt, failedAt time.Duration
	changed               chan struct{} // closed at each failure and at the end of an outage of connections
	probing               bool          // the prober runs
	probeRequested        bool          // it is to connect once, even if nobody waits
	kept                  map[Attempt]struct{}
	dials                 dialLimiter

	down      atomic.Bool // connections are short; written under mu
	wantsRoom atomic.Bool // the server is full, and somebody waits; written under mu
	// offered has a token for each connection that was returned for the callers that
	// wait because the server is full.
	offered     chan struct{}
	singleTries chan struct{} // lets one of those that wait for writes try one by itself

	lastProbe  time.Duration // when the prober last dialled; only the prober uses it
	unanswered bool          // that dial has no result yet; only the prober uses it
}

// New returns a Gate that lets all callers in.
func New(s Settings) *Gate {
	g := &Gate{cfg: s, changed: make(chan struct{}), kept: map[Attempt]struct{}{},
		offered: make(chan struct{}, 64), singleTries: make(chan struct{})}
	g.dials.init(s.ConnectLimit)
	return g
}

// IsDown says whether connections are short.
func (g *Gate) IsDown() bool { return g.down.Load() }

// LastError is why the last connect failed, nil if it succeeded.
func (g *Gate) LastError() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lastErr
}

// Cause is an *Error that says why no caller may dial, nil if all may.
func (g *Gate) Cause() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.causeLocked()
}

// causeLocked is Cause. g.mu is held.
func (g *Gate) causeLocked() error {
	if g.connections.shortage == None {
		return nil
	}
	return &Error{Shortage: g.connections.shortage, Cause: g.lastErr}
}

// Failed records a connect that began at startedAt and failed with err. It says whether
// that begins an outage, or ends one: a server that refuses the login (None) is back. An
// attempt that began before the last success says nothing, and is ignored.
func (g *Gate) Failed(err error, startedAt time.Duration, short Shortage) (begins bool, ended *Ended) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if startedAt < g.connectedAt {
		return false, nil
	}
	g.lastErr, g.failedAt = err, g.cfg.Clock.Now()
	g.signalChange()
	g.dials.reset()
	r := &g.connections
	switch {
	case short == None:
		return false, g.end(r)
	case r.shortage == None:
		begins = true
		g.begin(r, short, err)
		g.down.Store(true)
		g.dials.rejectAll(g.causeLocked())
	default:
		r.shortage = short // the same outage goes on
	}
	g.addWaiters(r, 0)
	return begins, nil
}

// Connected records a connect that succeeded, and returns the outage that it ends.
func (g *Gate) Connected() *Ended {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lastErr, g.connectedAt = nil, g.cfg.Clock.Now()
	ended := g.end(&g.connections)
	if ended != nil {
		g.signalChange()
	}
	return ended
}

// WritesRefused records that a write was refused, and says whether an outage begins.
func (g *Gate) WritesRefused(cause error) (begins bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.writes.shortage != None {
		return false
	}
	g.begin(&g.writes, NoWrites, cause)
	return true
}

// WritesTaken records that writes are taken, and returns the outage that it ends.
func (g *Gate) WritesTaken() *Ended {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.end(&g.writes)
}

// signalChange wakes those who wait for news. g.mu is held.
func (g *Gate) signalChange() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// begin begins an outage. g.mu is held.
func (g *Gate) begin(r *resource, short Shortage, cause error) {
	r.shortage, r.cause, r.ended, r.since, r.waitedTotal = short, cause, make(chan struct{}), g.cfg.Clock.Now(), r.waiting
}

// end ends an outage and returns it, nil if there is none. g.mu is held.
func (g *Gate) end(r *resource) *Ended {
	if r.shortage == None {
		return nil
	}
	ended := &Ended{r.shortage, g.cfg.Clock.Now() - r.since, r.waitedTotal}
	close(r.ended)
	r.shortage = None
	if r == &g.connections {
		g.down.Store(false)
		g.wantsRoom.Store(false)
		g.abortKept()
	}
	return ended
}

// abortKept aborts, after ConnectTimeout, the attempts whose callers have left: the
// server answers again, so one without an answer by then will get none. g.mu is held.
func (g *Gate) abortKept() {
	if len(g.kept) == 0 {
		return
	}
	attempts := slices.Collect(maps.Keys(g.kept))
	time.AfterFunc(g.cfg.ConnectTimeout, func() {
		for _, a := range attempts {
			if g.Drop(a) {
				a.Abort(context.Canceled) // which says nothing about the server
			}
		}
	})
}

// Keep records an attempt that goes on without its caller, unless there are limit
// already.
func (g *Gate) Keep(a Attempt, limit int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.kept) >= limit {
		return false
	}
	g.kept[a] = struct{}{}
	return true
}

// IsKept says whether the attempt is recorded.
func (g *Gate) IsKept(a Attempt) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.kept[a]
	return ok
}

// Drop removes an attempt, and says whether it was recorded.
func (g *Gate) Drop(a Attempt) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.kept[a]
	delete(g.kept, a)
	return ok
}

// Join counts the caller among those that wait for connections until it calls leave:
// during an outage the prober runs for it.
func (g *Gate) Join() (leave func()) {
	_, leave = g.join(&g.connections)
	return leave
}

// join also returns the end of an outage that there is, nil if there is none.
func (g *Gate) join(r *resource) (ended chan struct{}, leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.addWaiters(r, 1)
	if r.shortage != None {
		ended = r.ended
	}
	return ended, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.addWaiters(r, -1)
	}
}

// addWaiters counts callers that wait, and starts the prober if any do during an outage.
// g.mu is held.
func (g *Gate) addWaiters(r *resource, more int) {
	r.waiting += more
	r.waitedTotal += max(more, 0)
	g.wantsRoom.Store(g.connections.shortage == NoRoom && g.connections.waiting > 0)
	if r.shortage != None && r.waiting > 0 && !g.probing {
		g.startProber()
	}
}

// startProber starts the prober, which connects at least once. g.mu is held.
func (g *Gate) startProber() {
	g.probeRequested = true
	g.probing = g.cfg.Spawn(g.probe)
}

// RequestProbe has the prober dial once for a caller that does not wait for the end of an
// outage. It returns what is closed at the result, nil if there is no outage or the last
// result is fresh.
func (g *Gate) RequestProbe() (changed <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.connections.shortage == None || g.cfg.Clock.Now()-g.failedAt < time.Second {
		return nil
	}
	g.probeRequested = true
	if !g.probing {
		g.startProber()
	}
	return g.changed
}

// End is closed when the outage of connections ends. It is nil if there is none.
func (g *Gate) End() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.connections.shortage == None {
		return nil
	}
	return g.connections.ended
}

// WantsRoom says whether the server takes no more connections, and somebody waits
// for one: a connection that is not needed should be offered.
func (g *Gate) WantsRoom() bool { return g.wantsRoom.Load() }

// Offer lets one of those that wait take a connection that was returned for them.
func (g *Gate) Offer() {
	select {
	case g.offered <- struct{}{}:
	default: // more are offered than are taken
	}
}

// AwaitServer waits for the end of an outage, or for a connection that is offered
// because the server is full. It returns false if the deadline or the context ends
// first.
func (g *Gate) AwaitServer(ctx context.Context, deadline time.Time) bool {
	return g.await(ctx, &g.connections, deadline, g.offered)
}

// AwaitWrites waits until writes are taken, or until it is the caller's turn to try
// one. It returns false if the deadline or the context ends first.
func (g *Gate) AwaitWrites(ctx context.Context, deadline time.Time) bool {
	return g.await(ctx, &g.writes, deadline, g.singleTries)
}

func (g *Gate) await(ctx context.Context, r *resource, deadline time.Time, early <-chan struct{}) bool {
	ended, leave := g.join(r)
	defer leave()
	if ended == nil {
		return ctx.Err() == nil && time.Now().Before(deadline)
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-early:
		return true
	case <-ctx.Done():
	case <-timer.C:
	case <-g.cfg.Closed.Done():
	}
	return false
}
