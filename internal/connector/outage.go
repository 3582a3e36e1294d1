// outage.go makes callers wait while the server does not give what they need:
// connections, while it cannot be reached, is full or does not answer; or writes, while
// it is read-only. One prober (prober.go) asks for all of them, and lets them go on
// when it succeeds.

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
	noShortage shortage = iota
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

// shortageOf is why an attempt to connect failed: noShortage if the server is there and
// refuses the login, or if the caller gave up.
func (ctr *Connector) shortageOf(err error) shortage {
	var gateErr *gateError
	var connect *ConnectError
	var network net.Error
	switch {
	case errors.As(err, &gateErr):
		return gateErr.shortage
	case !errors.As(err, &connect), mysqlerr.CallerGaveUp(err), errors.Is(err, ErrPoolClosed), errors.Is(err, errConnectPanicked), mysqlerr.IsMisconfigured(err):
		return noShortage
	case mysqlerr.IsTooManyConnections(err):
		return noRoom
	case mysqlerr.Number(err) != 0:
		if ctr.Classify(err)&mysqlerr.ConnDead != 0 || mysqlerr.IsNodeNotReady(err) { // it is shutting down, or does no work
			return noServer
		}
		return noShortage
	case connect.noReply:
		return noAnswer
	case connect.notDialed, mysqlerr.IsNetworkLoss(err), errors.As(err, &network),
		errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn):
		return noServer
	}
	return noShortage
}

// IsUnreachable says whether a connection could not be opened for want of a server
// that takes it.
func (ctr *Connector) IsUnreachable(err error) bool { return ctr.shortageOf(err) != noShortage }

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
	// connectedAt is when a connection was last opened, failedAt when one could not be.
	connectedAt, failedAt time.Duration
	probing               bool
	probeRequested        bool          // the prober dials once, though nobody waits
	changed               chan struct{} // closed at the next success or failure
	leftAttempts          map[*connectAttempt]struct{}
	dialLimit             dialLimiter

	down           atomic.Bool // the server's gate is shut; changed under mu
	fullAndAwaited atomic.Bool // the server is full, and somebody waits; changed under mu
	// handedOver has a token for each connection that was returned for the callers that
	// wait because the server is full.
	handedOver  chan struct{}
	singleTries chan struct{} // lets one of the units that wait for writes try by itself

	lastProbe  time.Duration // when the prober last dialled; only the prober uses it
	unanswered atomic.Bool   // that dial has had no answer yet
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

// DialDeadlineKey is the context key by which a session says until when it may wait for a
// connection; a zero time is no limit.
type DialDeadlineKey struct{}

// gateError is why a caller must not dial by itself.
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
func (e *gateError) Is(target error) bool { return target == mysqlerr.ErrUnreachable }
func (e *gateError) Unwrap() error        { return e.cause }

// gateErrLocked is why nobody may dial by itself, nil if all may. o.mu is held.
func (o *outage) gateErrLocked() error {
	if o.server.shortage == noShortage {
		return nil
	}
	return &gateError{shortage: o.server.shortage, cause: o.lastErr}
}

// gateErr is gateErrLocked for those that do not hold o.mu.
func (o *outage) gateErr() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gateErrLocked()
}

// latestError is the last known error of the outage, for a caller that has waited in vain
// and whose own err is old by now.
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

// recordConnectFailure records a connection that could not be opened, and logs it.
func (ctr *Connector) recordConnectFailure(err error) { ctr.noteConnectFailure(err)() }

// noteConnectFailure is recordConnectFailure without the log line, which it returns.
func (ctr *Connector) noteConnectFailure(err error) (tell func()) {
	ctr.Stats.ConnectFailed.Add(1)
	if mysqlerr.CallerGaveUp(err) || ctr.Ctx.Err() != nil {
		return func() {}
	}
	lack := ctr.shortageOf(err)
	begins, ends := ctr.Outage.recordFailure(ctr, err, lack, ctr.clock.Now())
	if begins {
		ctr.Stats.Outages.Add(1)
		ctr.Outage.addWaiters(ctr, &ctr.Outage.server, 0)
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

// recordFailure says whether the failure begins an outage, or ends one: a server that
// refuses the login is back. An attempt that began before the last success says nothing.
func (o *outage) recordFailure(ctr *Connector, err error, short shortage, now time.Duration) (isStart bool, ended *gate) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var connect *ConnectError
	if errors.As(err, &connect) && connect.startedAt < o.connectedAt {
		return false, nil
	}
	o.lastErr, o.failedAt = err, now
	o.announce()
	o.dialLimit.reset()
	g := &o.server
	switch {
	case short == noShortage:
		return false, o.openGate(ctr, g, now)
	case g.shortage == noShortage:
		isStart = true
		g.shut(short, err, now)
		o.down.Store(true)
		o.dialLimit.rejectAll(o.gateErrLocked())
	default:
		g.shortage = short // the same outage goes on
	}
	o.fullAndAwaited.Store(g.shortage == noRoom && g.waiting > 0)
	return isStart, nil
}

// announce tells those that wait for the next success or failure. o.mu is held.
func (o *outage) announce() {
	close(o.changed)
	o.changed = make(chan struct{})
}

func (g *gate) shut(short shortage, cause error, now time.Duration) {
	g.shortage, g.cause, g.opened, g.shutAt, g.waitedTotal = short, cause, make(chan struct{}), now, g.waiting
}

// openGate opens a gate, and returns what to log, nil if it was open. o.mu is held.
func (o *outage) openGate(ctr *Connector, g *gate, now time.Duration) *gate {
	if g.shortage == noShortage {
		return nil
	}
	ended := *g
	ended.shutAt = now - g.shutAt // how long it was
	close(g.opened)
	g.shortage = noShortage
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

// recordConnected records a connection that was opened.
func (ctr *Connector) recordConnected() {
	o := &ctr.Outage
	o.mu.Lock()
	o.lastErr, o.connectedAt = nil, ctr.clock.Now()
	ended := o.openGate(ctr, &o.server, o.connectedAt)
	if ended != nil {
		o.announce()
	}
	o.mu.Unlock()
	if ended != nil {
		ctr.reportOutageEnd(ended)
	}
}

// abortLeftAttempts aborts, after wait, the attempts whose callers have left: the server
// answers again, so one without an answer by then will get none. o.mu is held.
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

// addLeftAttempt records an attempt that goes on without its caller, unless there are
// maxLeft already.
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

// removeLeftAttempt says whether the attempt was recorded.
func (o *outage) removeLeftAttempt(a *connectAttempt) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.leftAttempts[a]
	delete(o.leftAttempts, a)
	return ok
}

// addWaiters counts callers that wait at a gate, and starts the prober if any do during
// an outage. It returns what is closed at the end of the outage, nil if there is none.
func (o *outage) addWaiters(ctr *Connector, g *gate, more int) (opened chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	g.waiting += more
	g.waitedTotal += max(more, 0)
	o.fullAndAwaited.Store(o.server.shortage == noRoom && o.server.waiting > 0)
	if g.shortage == noShortage {
		return nil
	}
	if (g.waiting > 0 || more > 0) && !o.probing {
		o.probeRequested = true
		o.probing = ctr.spawn(ctr.probe)
	}
	return g.opened
}

// requestProbe has the prober dial once for a caller that does not wait for the end of an
// outage. It returns what is closed at the result, nil if the last one is fresh.
func (o *outage) requestProbe(ctr *Connector) (changed chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.server.shortage == noShortage || ctr.clock.Now()-o.failedAt < time.Second {
		return nil
	}
	o.probeRequested = true
	if !o.probing {
		o.probing = ctr.spawn(ctr.probe)
	}
	return o.changed
}

// AwaitServer waits for the end of an outage, or for a connection that is handed over
// because the server is full. It returns false if the deadline or the context ends
// first.
func (ctr *Connector) AwaitServer(ctx context.Context, deadline time.Time) bool {
	o := &ctr.Outage
	return ctr.awaitGate(ctx, &o.server, deadline, o.handedOver)
}

func (ctr *Connector) awaitGate(ctx context.Context, g *gate, deadline time.Time, handedOver chan struct{}) bool {
	opened := ctr.Outage.addWaiters(ctr, g, 1)
	defer ctr.Outage.addWaiters(ctr, g, -1)
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

// quietLogger is the driver's logger without what the driver would log at every attempt
// to connect during an outage.
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
