// outage.go keeps those back who need what the server does not give: connections,
// while it cannot be reached, takes no more of them or says nothing, and writes,
// while it takes none. One prober asks for all of them, and lets them in when it
// gets through.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// shortage is what a server does not give.
type shortage int

const (
	NoShortage shortage = iota
	noServer
	noRoom
	noAnswer
	noWrites
)

// shortageTexts tells of each, in the words of an error and of the operator.
var shortageTexts = [...]struct{ is, begins, ends string }{
	noServer: {"the server cannot be reached",
		"livepool: the server cannot be reached; sessions and statements wait while one prober dials for all of them",
		"livepool: the server can be reached again"},
	noRoom: {"the server takes no more connections",
		"livepool: the server takes no more connections; those who need one wait while one prober asks for all of them",
		"livepool: the server takes connections again"},
	noAnswer: {"the server accepts connections and says nothing",
		"livepool: the server accepts connections and says nothing; sessions and statements wait while one prober asks for all of them",
		"livepool: the server answers again"},
	noWrites: {"the server takes no writes",
		"livepool: the server takes no writes; the units that were refused wait while one prober asks for all of them, and reads go on",
		"livepool: the server takes writes again"},
}

// ShortageOf is what an attempt to connect failed for want of: nothing, if the server
// is there and refuses, or if it is the caller who gave up.
func (ctr *Connector) ShortageOf(err error) shortage {
	var gateErr *gateError
	var connect *ConnectError
	var network net.Error
	switch {
	case errors.As(err, &gateErr):
		return gateErr.shortage
	case !errors.As(err, &connect), mysqlerr.CallerGaveUp(err), errors.Is(err, ErrPoolClosed), errors.Is(err, errConnectPanicked), mysqlerr.IsMisconfigured(err):
		return NoShortage
	case mysqlerr.IsTooManyConnections(err):
		return noRoom
	case mysqlerr.Number(err) != 0:
		if ctr.Classify(err)&mysqlerr.ConnDead != 0 || mysqlerr.IsNodeNotReady(err) { // it is shutting down, or does no work
			return noServer
		}
		return NoShortage
	case connect.noReply:
		return noAnswer
	case connect.notDialed, mysqlerr.IsNetworkLoss(err), errors.As(err, &network),
		errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn):
		return noServer
	}
	return NoShortage
}

// IsUnreachable says whether a connection could not be opened for want of a server
// that takes it.
func (ctr *Connector) IsUnreachable(err error) bool { return ctr.ShortageOf(err) != NoShortage }

// gate is shut while there is a lack. All is guarded by outage.mu.
type gate struct {
	shortage    shortage
	cause       error
	opened      chan struct{} // closed when the lack ends
	shutAt      time.Duration
	waiting     int // how many wait now
	waitedTotal int // how many have waited
}

// outage is what is known of what the server gives.
type outage struct {
	mu      sync.Mutex // guards what follows
	server  gate       // those who need a connection
	writes  gate       // those who were refused a write
	lastErr error      // of the last connect, nil if it succeeded
	// connectedAt is when a connection was last opened, told when one could not be.
	connectedAt, failedAt time.Duration
	probing               bool
	probeRequested        bool          // the prober is to ask once, though nobody waits
	changed               chan struct{} // closed when it is told next
	leftAttempts          map[*connectAttempt]struct{}
	dialLimit             dialLimiter

	down           atomic.Bool // the server's gate is shut; changed under mu
	fullAndAwaited atomic.Bool // for want of room, and somebody waits; changed under mu
	// handedOver has a token for each connection that was given up to those who wait
	// because the server is full.
	handedOver  chan struct{}
	singleTries chan struct{} // lets one of those who wait for writes try by himself

	lastProbe  time.Duration // when the prober last tried to connect; its own
	unanswered atomic.Bool   // and had no answer yet
}

func (o *outage) init(limit int) {
	o.dialLimit.init(limit)
	o.changed = make(chan struct{})
	o.leftAttempts = map[*connectAttempt]struct{}{}
	o.handedOver = make(chan struct{}, 64)
	o.singleTries = make(chan struct{})
}

func (o *outage) isDown() bool { return o.down.Load() }

// LastError is why the last connection could not be opened, nil if it could.
func (o *outage) LastError() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lastErr
}

// DialDeadlineKey is under what a context says that a session is dialling, and until
// when it may; a zero time is no limit.
type DialDeadlineKey struct{}

// gateError is for a caller who is not to dial by himself.
type gateError struct {
	shortage shortage
	cause    error
	waited   time.Duration
}

func (e *gateError) Error() string {
	text := "livepool: " + shortageTexts[e.shortage].is
	if e.waited > 0 {
		text += ", and was waited for in vain for " + e.waited.Round(time.Millisecond).String() + " (pool_outage_wait)"
	}
	return text + ": " + e.cause.Error()
}
func (e *gateError) Unwrap() error { return e.cause }

// gateErrLocked is why nobody is to dial by himself, nil if all may. o.mu is held.
func (o *outage) gateErrLocked() error {
	if o.server.shortage == NoShortage {
		return nil
	}
	return &gateError{shortage: o.server.shortage, cause: o.lastErr}
}

// gateErr is held for those who need no turn.
func (o *outage) gateErr() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gateErrLocked()
}

// latestError is what is known of an outage, for a caller who has waited in vain and
// whose own err is old by now.
func (o *outage) latestError(err error, waited time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var gateErr *gateError
	if errors.As(o.gateErrLocked(), &gateErr) && errors.As(err, new(*ConnectError)) {
		gateErr.waited = waited
		return gateErr
	}
	return err
}

// recordConnectFailure notes a connection that could not be opened, and tells of it.
func (ctr *Connector) recordConnectFailure(err error) { ctr.noteConnectFailure(err)() }

// noteConnectFailure leaves the telling to its caller.
func (ctr *Connector) noteConnectFailure(err error) (tell func()) {
	ctr.Stats.ConnectFailed.Add(1)
	if mysqlerr.CallerGaveUp(err) || ctr.Ctx.Err() != nil {
		return func() {}
	}
	lack := ctr.ShortageOf(err)
	begins, ends := ctr.Outage.recordFailure(ctr, err, lack, ctr.clock.Now())
	if begins {
		ctr.Stats.Outages.Add(1)
		ctr.Outage.addWaiters(ctr, 0)
	}
	return func() {
		if ends != nil {
			ctr.reportOutageEnd(ends, slog.Any("refusal", err))
		}
		if begins {
			ctr.reportOutageStart(lack, err)
		}
	}
}

func (ctr *Connector) reportOutageStart(short shortage, cause error) {
	ctr.Cfg.Log.Warn(shortageTexts[short].begins, slog.String("addr", ctr.addr), slog.Any("cause", cause))
}

// recordFailure says whether it is the beginning of an outage, or its end: a refusal is
// one. An attempt that began before the last one that succeeded tells nothing.
func (o *outage) recordFailure(ctr *Connector, err error, short shortage, now time.Duration) (isStart bool, ended *gate) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var connect *ConnectError
	if errors.As(err, &connect) && connect.startedAt < o.connectedAt {
		return false, nil
	}
	o.lastErr, o.failedAt = err, now
	close(o.changed)
	o.changed = make(chan struct{})
	o.dialLimit.reset()
	g := &o.server
	switch {
	case short == NoShortage:
		return false, o.openGate(ctr, g, now)
	case g.shortage == NoShortage:
		isStart = true
		g.shut(short, err, now)
		o.down.Store(true)
		o.dialLimit.rejectAll(o.gateErrLocked())
	default:
		g.shortage = short // and still the same outage
	}
	o.fullAndAwaited.Store(g.shortage == noRoom && g.waiting > 0)
	return isStart, nil
}

func (g *gate) shut(short shortage, cause error, now time.Duration) {
	g.shortage, g.cause, g.opened, g.shutAt, g.waitedTotal = short, cause, make(chan struct{}), now, g.waiting
}

// openGate opens a gate, and returns what there is to tell, nil if it was open. o.mu
// is held.
func (o *outage) openGate(ctr *Connector, g *gate, now time.Duration) *gate {
	if g.shortage == NoShortage {
		return nil
	}
	ended := *g
	ended.shutAt = now - g.shutAt // how long it was
	close(g.opened)
	g.shortage = NoShortage
	if g == &o.server {
		o.down.Store(false)
		o.fullAndAwaited.Store(false)
		o.abortLeftAttempts(ctr.Cfg.ConnectTimeout)
	}
	return &ended
}

func (ctr *Connector) reportOutageEnd(g *gate, attrs ...any) {
	if m := ctr.maintainer; m != nil {
		m.openPausedUntil.Store(0)
		m.wake()
	}
	ctr.Cfg.Log.Info(shortageTexts[g.shortage].ends, append([]any{
		slog.String("addr", ctr.addr), slog.Duration("after", g.shutAt), slog.Int("waited", g.waitedTotal)}, attrs...)...)
}

// recordConnected notes one that could.
func (ctr *Connector) recordConnected() {
	o := &ctr.Outage
	o.mu.Lock()
	o.lastErr, o.connectedAt = nil, ctr.clock.Now()
	ended := o.openGate(ctr, &o.server, o.connectedAt)
	if ended != nil {
		close(o.changed)
		o.changed = make(chan struct{})
	}
	o.mu.Unlock()
	if ended != nil {
		ctr.reportOutageEnd(ended)
	}
}

// abortLeftAttempts ends, after the wait, the attempts that go on now: the server
// answers again, and who has not been answered by then will not be. o.mu is held.
func (o *outage) abortLeftAttempts(wait time.Duration) {
	unanswered := slices.Collect(maps.Keys(o.leftAttempts))
	if len(unanswered) == 0 {
		return
	}
	time.AfterFunc(wait, func() {
		for _, a := range unanswered {
			if o.removeLeftAttempt(a) {
				a.abort(context.Canceled) // which notes nothing of the server
			}
		}
	})
}

// addLeftAttempt notes an attempt that goes on without its caller, unless there are
// enough.
func (o *outage) addLeftAttempt(a *connectAttempt, maxLeft int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.leftAttempts) >= maxLeft {
		return false
	}
	o.leftAttempts[a] = struct{}{}
	return true
}

func (o *outage) hasLeftAttempt(a *connectAttempt) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.leftAttempts[a]
	return ok
}

// removeLeftAttempt says whether the attempt was going on.
func (o *outage) removeLeftAttempt(a *connectAttempt) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.leftAttempts[a]
	delete(o.leftAttempts, a)
	return ok
}

// addWaiters notes that more wait for the server, or fewer, and has it probed if any
// do during an outage, whose end it returns.
func (o *outage) addWaiters(ctr *Connector, more int) (opened chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.addGateWaiters(ctr, &o.server, more)
}

// addGateWaiters is await at either gate. o.mu is held.
func (o *outage) addGateWaiters(ctr *Connector, g *gate, more int) (opened chan struct{}) {
	g.waiting += more
	g.waitedTotal += max(more, 0)
	o.fullAndAwaited.Store(o.server.shortage == noRoom && o.server.waiting > 0)
	if g.shortage == NoShortage {
		return nil
	}
	if (g.waiting > 0 || more > 0) && !o.probing {
		o.probeRequested = true
		o.probing = ctr.spawn(ctr.probe)
	}
	return g.opened
}

// requestProbe has the server probed for one who does not wait for the end of an
// outage. It returns what is closed when there is news, nil if there has just
// been some.
func (o *outage) requestProbe(ctr *Connector) (changed chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.server.shortage == NoShortage || ctr.clock.Now()-o.failedAt < time.Second {
		return nil
	}
	o.probeRequested = true
	if !o.probing {
		o.probing = ctr.spawn(ctr.probe)
	}
	return o.changed
}

// AwaitServer waits for the end of an outage, or for a connection that another
// caller gives up to a server that takes no more. It returns false if the deadline
// or the context ends first.
func (ctr *Connector) AwaitServer(ctx context.Context, deadline time.Time) bool {
	o := &ctr.Outage
	return ctr.awaitGate(ctx, &o.server, deadline, o.handedOver)
}

func (ctr *Connector) awaitGate(ctx context.Context, g *gate, deadline time.Time, handedOver chan struct{}) bool {
	o := &ctr.Outage
	await := func(more int) chan struct{} {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.addGateWaiters(ctr, g, more)
	}
	opened := await(1)
	defer await(-1)
	if opened == nil {
		return ctx.Err() == nil && time.Now().Before(deadline)
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-opened:
		return true
	case <-handedOver:
		return true
	case <-ctx.Done():
	case <-timer.C:
	case <-ctr.Ctx.Done():
	}
	return false
}

// quietLogger is the driver's logger. In an outage the driver would complain at every
// attempt to connect.
type quietLogger struct {
	mysql.Logger
	o   *outage
	cfg *Settings
}

func (h *quietLogger) Print(v ...any) {
	if !h.o.isDown() {
		h.cfg.catchPanic("Config.MySQL.Logger", func() { h.Logger.Print(v...) })
	}
}
