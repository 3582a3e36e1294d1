// Package outage makes callers wait while the server does not give what they need:
// connections, while it cannot be reached, is full or does not answer; or writes, while
// it is read-only. One prober (prober.go) asks for all of them, and lets them go on when
// it succeeds. Only a few connections are opened at a time (diallimit.go).
//
// The connector opens connections, says what an error means, and reports to the Gate each
// connect that failed or succeeded.
package outage

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/trace"
)

// Settings are what a Gate needs of the connector.
type Settings struct {
	Clock  *clock.Clock
	Closed context.Context // ends when the pool is closed
	Log    *slog.Logger
	Addr   string // of the server, for the log
	// Spawn runs f in the background, or returns false once the pool is closed. It is
	// called under the Gate's lock: whoever holds a lock that Spawn takes must not call the
	// Gate.
	Spawn     func(f func()) bool
	NewServer func() Server     // what the prober asks, new each time that it starts
	Ended     func()            // is called when an outage has ended
	Trace     func(trace.Event) // is told of each outage

	ConnectLimit   int           // how many connections are opened at a time, at most
	ConnectTimeout time.Duration // how long one may take
	ProbePause     time.Duration // between two probes, at least
}

// resource is one thing that a server gives, and may be short of. It is guarded by
// Gate.mu.
type resource struct {
	shortage    Shortage
	cause       error         // for which the outage began
	ended       chan struct{} // closed when it ends
	since       time.Duration // when it began
	tellBegun   func()        // tells that to the tracer, once
	waiting     int           // how many wait now
	waitedTotal int           // how many have waited in this outage
}

// Gate is what is known of what the server gives, and who waits for it.
type Gate struct {
	cfg     Settings     // never changed
	Outages atomic.Int64 // how many have begun

	mu          sync.Mutex // guards what follows, up to the blank line
	connections resource
	writes      resource
	lastErr     error // of the last connect, nil if it succeeded
	// connectedAt and failedAt are when a connect last succeeded, and last failed.
	connectedAt, failedAt time.Duration
	changed               chan struct{} // closed at the next success or failure
	probing               bool          // the prober runs
	probeRequested        bool          // it is to connect once, even if nobody waits
	dials                 dialLimiter

	wantsRoom atomic.Bool // the server is full, and somebody waits; written under mu
	// offered has a token for each connection that was returned for the callers that
	// wait because the server is full.
	offered     chan struct{}
	singleTries chan struct{} // lets one of those that wait for writes try one by itself

	// These outlive a run of the prober, which alone uses them.
	lastProbe  time.Duration // when it last dialled
	unanswered bool          // that dial has no result yet
}

// New returns a Gate that lets all callers in.
func New(s Settings) *Gate {
	g := &Gate{cfg: s, changed: make(chan struct{}),
		offered: make(chan struct{}, 64), singleTries: make(chan struct{})}
	g.dials.init(s.ConnectLimit)
	return g
}

// IsDown says whether connections are short.
func (g *Gate) IsDown() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.connections.shortage != None
}

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
	return g.error(&g.connections, g.lastErr)
}

// error is that of an outage. g.mu is held.
func (g *Gate) error(r *resource, cause error) *Error {
	return &Error{Shortage: r.shortage, Cause: cause, Lasted: g.cfg.Clock.Now() - r.since}
}

// Current returns the outages of connections and of writes, nil for each that there is not.
func (g *Gate) Current() (connections, writes *Error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.connections.shortage != None {
		connections = g.error(&g.connections, g.lastErr)
	}
	if g.writes.shortage != None {
		writes = g.error(&g.writes, g.writes.cause)
	}
	return connections, writes
}

// Failed records a connect that began at startedAt and failed with err. That may begin an
// outage, or end one: a server that refuses the login (None) is back. An attempt that
// began before the last success says nothing, and is ignored. Failed returns the function
// that logs it, to be called after Leave: the user's logger may be slow.
func (g *Gate) Failed(err error, startedAt time.Duration, short Shortage) (log func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	log = func() {}
	if startedAt < g.connectedAt {
		return log
	}
	g.lastErr, g.failedAt = err, g.cfg.Clock.Now()
	g.signalChange()
	g.dials.reset()
	r := &g.connections
	switch {
	case short == None:
		return g.end(r, slog.Any("refusal", err))
	case r.shortage == None:
		log = g.begin(r, short, err)
		g.dials.rejectAll(g.causeLocked())
	default:
		r.shortage = short // the same outage goes on
	}
	g.addWaitersLocked(r, 0)
	return log
}

// Connected records a connect that succeeded, which ends an outage of connections; to is
// logged with that.
func (g *Gate) Connected(to ...any) {
	g.mu.Lock()
	g.lastErr, g.connectedAt = nil, g.cfg.Clock.Now()
	g.signalChange()
	log := g.end(&g.connections, to...)
	g.mu.Unlock()
	log()
}

// WritesTaken ends an outage of writes.
func (g *Gate) WritesTaken() {
	g.mu.Lock()
	log := g.end(&g.writes)
	g.mu.Unlock()
	log()
}

// signalChange wakes those who wait for news. g.mu is held.
func (g *Gate) signalChange() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// begin begins an outage, and returns what logs it. g.mu is held.
func (g *Gate) begin(r *resource, short Shortage, cause error) (log func()) {
	r.shortage, r.cause, r.ended, r.since, r.waitedTotal = short, cause, make(chan struct{}), g.cfg.Clock.Now(), r.waiting
	g.Outages.Add(1)
	tell := sync.OnceFunc(func() { g.cfg.Trace(trace.OutageStart{Addr: g.cfg.Addr, What: shortageTexts[short].is, Cause: cause}) })
	r.tellBegun = tell
	return func() {
		g.cfg.Log.Warn(shortageTexts[short].begins, slog.String("addr", g.cfg.Addr), slog.Any("cause", cause))
		tell()
	}
}

// end ends the outage that there may be, and returns what logs it. g.mu is held.
func (g *Gate) end(r *resource, attrs ...any) (log func()) {
	if r.shortage == None {
		return func() {}
	}
	text, tellBegun, lasted := shortageTexts[r.shortage], r.tellBegun, g.cfg.Clock.Now()-r.since
	attrs = append([]any{slog.String("addr", g.cfg.Addr), slog.Duration("after", lasted), slog.Int("waited", r.waitedTotal)}, attrs...)
	close(r.ended)
	r.shortage = None
	g.addWaitersLocked(r, 0)
	return func() {
		g.cfg.Ended()
		g.cfg.Log.Info(text.ends, attrs...)
		tellBegun() // whoever logs the beginning may be slower
		g.cfg.Trace(trace.OutageEnd{Addr: g.cfg.Addr, What: text.is, Lasted: lasted})
	}
}

// Join counts the caller among those that wait for connections until it calls leave:
// during an outage the prober runs for it.
func (g *Gate) Join() (leave func()) {
	g.addWaiters(&g.connections, 1)
	return func() { g.addWaiters(&g.connections, -1) }
}

// addWaiters counts callers that wait. It returns what is closed at the end of the outage,
// nil if there is none.
func (g *Gate) addWaiters(r *resource, more int) (ended chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.addWaitersLocked(r, more)
	if r.shortage == None {
		return nil
	}
	return r.ended
}

// addWaitersLocked also starts the prober if any wait during an outage. g.mu is held.
func (g *Gate) addWaitersLocked(r *resource, more int) {
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
func (g *Gate) End() <-chan struct{} { return g.addWaiters(&g.connections, 0) }

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

// AwaitWrites waits until writes are taken, or until it is the caller's turn to try one;
// cause is the refusal of one, which may begin an outage. It returns false if the deadline
// or the context ends first.
func (g *Gate) AwaitWrites(ctx context.Context, deadline time.Time, cause error) bool {
	g.mu.Lock()
	log := func() {}
	if g.writes.shortage == None {
		log = g.begin(&g.writes, NoWrites, cause)
	}
	g.mu.Unlock()
	log()
	return g.await(ctx, &g.writes, deadline, g.singleTries)
}

// StillRefused has the prober ask once more where writes were refused, and waits for its
// answer until the deadline. It returns nil if there is no such outage, or it has ended.
func (g *Gate) StillRefused(ctx context.Context, deadline time.Time) error {
	if g.await(ctx, &g.writes, deadline, nil) {
		return nil
	}
	if _, refused := g.Current(); refused != nil {
		return refused
	}
	return nil
}

func (g *Gate) await(ctx context.Context, r *resource, deadline time.Time, early <-chan struct{}) bool {
	ended := g.addWaiters(r, 1)
	defer g.addWaiters(r, -1)
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
