// connect.go opens connections, each in a goroutine of its own, so that neither a server
// nor a dialer delays a caller beyond ConnectTimeout or its context. An attempt whose
// caller gave up may continue for the pool. internal/outage limits how many there are at
// a time; outage.go decides what a failure means.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/internal/wire"
)

// connectAttempt is an attempt to open a connection.
type connectAttempt struct {
	ctr       *Connector
	startedAt time.Duration
	side      *host                     // for a side connection to this host: only the login; nil for one of the pool's
	wire      atomic.Pointer[wire.Conn] // its network connection, as soon as it has one; the dialer stores it
	// loggedIn: the handshake is over; its goroutine writes it.
	loggedIn atomic.Bool
	inHook   atomic.Bool // the user's AfterConnect is at work
	cancel   context.CancelFunc
	kept     atomic.Bool // it continues without its caller
	// releaseDial releases its place among the dials, once, and says whether that recorded a
	// failure.
	releaseDial func(took time.Duration, err error) (noted bool)

	// state changes once, by whoever is first: the attempt finishes, or its caller gives up.
	state atomic.Int32
	done  chan struct{} // closed when it finished in time; then link and err are the caller's
	link  link
	err   error
}

const (
	attemptRunning int32 = iota
	attemptFinished
	attemptLeft
)

// maxUnansweredProbes is how many attempts of the prober may wait for a server that says
// nothing.
const maxUnansweredProbes = 2

// connect opens a connection, within ConnectTimeout once it may dial.
func (ctr *Connector) connect(caller context.Context) (link, error) {
	return ctr.openQueued(caller, nil)
}

// openQueued waits until it may dial. A side connection does not wait: there are few of
// them, and a caller may wait for the end of the thread that they kill.
func (ctr *Connector) openQueued(caller context.Context, side *host) (link, error) {
	start := ctr.clock.Now()
	if side != nil {
		if err := ctr.Outage.Cause(); err != nil && ctr.hostSet == nil {
			return link{}, err
		}
		return ctr.open(caller, side, ctr.Cfg.ConnectLimit, noTurn)
	}
	if err := ctr.Outage.Enter(caller); err != nil {
		if !mysqlerr.CallerGaveUp(err) {
			return link{}, err
		}
		waited := (ctr.clock.Now() - start).Round(time.Millisecond)
		err = &ConnectError{startedAt: start, Cause: err, notDialed: true, Text: fmt.Sprintf(
			"livepool: no connection to %s was opened: its caller gave up after %s of waiting for others to be opened (pool_connect_limit)", ctr.addr, waited)}
		ctr.recordConnectFailure(err)
		return link{}, err
	}
	return ctr.open(caller, side, ctr.Cfg.ConnectLimit, ctr.leaveGate)
}

// open opens a connection at once. If its caller gives up, the attempt continues for the
// pool, unless maxLeft attempts do so already.
func (ctr *Connector) open(caller context.Context, side *host, maxLeft int, releaseDial func(time.Duration, error) bool) (link, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(caller))
	o := &connectAttempt{ctr: ctr, startedAt: ctr.clock.Now(), side: side, cancel: cancel, done: make(chan struct{})}
	var once sync.Once
	o.releaseDial = func(took time.Duration, err error) (noted bool) {
		once.Do(func() { noted = releaseDial(took, err) })
		return noted
	}
	if !ctr.startAttempt(func() { o.run(ctx) }) {
		cancel()
		err := ctr.newConnectError(o, ErrPoolClosed, true)
		o.releaseDial(0, err)
		return link{}, err
	}
	timer := time.NewTimer(ctr.Cfg.ConnectTimeout)
	defer timer.Stop()
	var err error
	select {
	case <-o.done:
		return o.link, o.err
	case <-timer.C:
		err = &connectTimeoutError{}
	case <-caller.Done():
		err = caller.Err()
	}
	isUnderWay := o.wire.Load() != nil || ctr.hostSet != nil && o.side == nil // or a silent host would hide the others from all callers in a hurry
	continues := isUnderWay && !o.loggedIn.Load() && o.keep(maxLeft)
	if !o.state.CompareAndSwap(attemptRunning, attemptLeft) { // it has just finished
		o.drop()
		<-o.done
		return o.link, o.err
	}
	err = ctr.newConnectError(o, err, false)
	if continues {
		o.continueForPool(ctx, err)
	} else {
		o.abort(err)
	}
	return link{}, err
}

// startAttempt starts an attempt, unless the connector is closed. Close does not wait
// forever for a dialer that ignores its context.
func (ctr *Connector) startAttempt(run func()) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.closed || ctr.Ctx.Err() != nil {
		return false
	}
	ctr.connectAttempts.Go(run)
	return true
}

// awaitAttempts waits for the attempts under way, whose contexts have ended; for
// PingTimeout at most, because a dialer may ignore its context.
func (ctr *Connector) awaitAttempts() {
	done := make(chan struct{})
	go func() { ctr.connectAttempts.Wait(); close(done) }()
	clock.Wait(context.Background(), done, ctr.Cfg.PingTimeout)
}

// run is the attempt. It calls finish whatever the user's dialer, BeforeConnect or driver
// does.
func (o *connectAttempt) run(ctx context.Context) {
	stop := context.AfterFunc(o.ctr.Ctx, o.cancel)
	defer stop()
	o.err = errConnectPanicked // also if the code does not return (runtime.Goexit)
	defer o.finish()
	switch {
	case o.side != nil:
		o.link, o.err = o.ctr.login(ctx, o.side, o.side.side, &o.wire)
	case o.ctr.hostSet != nil:
		o.link, o.err = o.ctr.loginToAny(ctx)
		o.wire.Store(o.link.wire)
	default:
		h := o.ctr.hosts()[0]
		o.link, o.err = o.ctr.login(ctx, h, h.connector, &o.wire)
	}
	o.loggedIn.Store(true)
	if o.err == nil && o.side == nil {
		o.err = o.setUpSession(ctx)
	}
	if o.err == nil && o.side == nil {
		o.err = o.ctr.initLink(ctx, &o.link)
	}
}

// finish gives the result to the caller, or to the pool if the caller gave up.
func (o *connectAttempt) finish() {
	ctr := o.ctr
	if o.err != nil {
		o.link.close()
		o.link, o.err = link{}, ctr.newConnectError(o, o.err, true)
	}
	o.cancel()
	noted := o.releaseDial(ctr.clock.Now()-o.startedAt, o.err)
	if o.state.CompareAndSwap(attemptRunning, attemptFinished) {
		close(o.done)
		return
	}
	switch wasLeft := o.drop(); {
	case o.err == nil:
		ctr.keepLateLink(o)
	case wasLeft && !noted && (o.side == nil || ctr.tellsOfPool(o.side, o.err)): // it was not aborted
		ctr.recordConnectFailure(o.err)
	}
}

// login makes a connection to a host and logs in. Its network connection is in w as soon as
// there is one.
func (ctr *Connector) login(ctx context.Context, h *host, by driver.Connector, w *atomic.Pointer[wire.Conn]) (link, error) {
	if ctr.ownDialer {
		ctx = context.WithValue(ctx, wire.ContextKey{}, w)
		ctx = context.WithValue(ctx, wire.AddressKey{}, h.at) // also if it is "": the hooks of another pool may be under way
	}
	generation, start := h.generation.Load(), ctr.clock.Now()
	dc, err := ctr.connectWithCredentials(ctx, by)
	if err != nil {
		return link{}, err
	}
	h.noteLogin(ctr.clock.Now() - start)
	return link{host: h, driverConn: driverconn.New(dc), wire: w.Load(), refusalTrustedAt: -1, generation: generation}, nil
}

// initLink makes a connection that has logged in ready for the pool.
func (ctr *Connector) initLink(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, ctr.Cfg.ConnectTimeout)
	defer cancel()
	if err := ctr.afterLogin(ctx, l); err != nil {
		return err
	}
	if ctr.InCluster.Load() && ctr.hostSet == nil {
		if err := ctr.pingForWork(ctx, &l.driverConn); err != nil {
			return err
		}
	}
	now := ctr.clock.Now()
	l.born, l.lastRoundTrip, l.expires = now, now, ctr.Cfg.ageLimit()
	if l.isStopgap {
		l.expires = min(l.expires, stopgapAge)
	}
	if l.expires < clock.Never-now {
		l.expires += now
	}
	storeMax(&ctr.news.lastHeard, now)
	if l.wire != nil {
		ctr.roundTrip.record(l.wire.FastestReply)
	}
	l.serial = ctr.Stats.Opened.Add(1)
	return nil
}

// stopgapAge is the age limit of a connection to the primary where a replica is preferred.
const stopgapAge = 30 * time.Second

// keep lets an attempt continue without its caller, unless maxLeft do so already.
func (o *connectAttempt) keep(maxLeft int) bool {
	if o.ctr.keptAttempts.Add(1) > int64(maxLeft) {
		o.ctr.keptAttempts.Add(-1)
		return false
	}
	o.kept.Store(true)
	return true
}

// drop says whether the attempt was kept until now.
func (o *connectAttempt) drop() bool {
	wasKept := o.kept.Swap(false)
	if wasKept {
		o.ctr.keptAttempts.Add(-1)
	}
	return wasKept
}

// continueForPool lets an attempt continue whose caller gave up. A server that was
// stopped answers it when it continues; and abandoning many handshakes makes a server
// block this host (error 1129, max_connect_errors). The attempt is aborted if others
// connect meanwhile. ctx ends with the attempt.
func (o *connectAttempt) continueForPool(ctx context.Context, err error) {
	ctr := o.ctr
	wait := ctr.Cfg.ConnectTimeout - (ctr.clock.Now() - o.startedAt)
	beforeTimeout := wait > 0 // so the lack of an answer was not reported yet
	if !beforeTimeout {
		o.releaseDial(0, err)
		wait = ctr.Cfg.ConnectTimeout
	}
	ctr.spawn(func() {
		if clock.Wait(ctx, nil, wait); ctx.Err() != nil {
			return
		}
		if beforeTimeout {
			err := ctr.newConnectError(o, &connectTimeoutError{}, false)
			if !o.releaseDial(0, err) {
				ctr.recordConnectFailure(err)
			}
		}
		if ended := ctr.Outage.End(); ended != nil {
			// The server answers again then, and an attempt that has no answer after
			// ConnectTimeout more will get none.
			clock.Wait(ctx, ended, clock.Never)
			clock.Wait(ctx, nil, ctr.Cfg.ConnectTimeout)
		}
		if ctx.Err() == nil && o.drop() {
			o.abort(err)
		}
	})
}

// abort ends an attempt whose caller gave up.
func (o *connectAttempt) abort(err error) {
	o.releaseDial(0, err)
	o.cancel()
}

// keepLateLink keeps a connection whose caller gave up as a spare. If there is no room
// for it, it is closed itself, and not an older one in its place.
func (ctr *Connector) keepLateLink(o *connectAttempt) {
	l := o.link
	if o.side != nil { // it allows several statements in one request, which the pool must not
		l.close()
		if ctr.tellsOfPool(o.side, nil) {
			ctr.reached(&l)
		}
		return
	}
	limit := int(ctr.Limits.Open.Load())
	ready, inUse := ctr.countConns()
	isFull := limit > 0 && ready+inUse >= limit
	isSurplus := ready > 0 && ready+inUse >= ctr.Limits.allowed(ctr.Cfg.PoolSize)
	if !ctr.Outage.IsDown() && (isFull || isSurplus) {
		l.close()
	} else {
		ctr.addSpare(l)
	}
	ctr.reached(&l)
}

// dial opens a connection for a caller. For a session it returns at once when none can be
// opened: the session itself waits. Other callers wait here, within OutageWait.
func (ctr *Connector) dial(caller context.Context) (link, error) {
	deadline, session := caller.Value(DialDeadlineKey{}).(time.Time)
	if !session {
		return ctr.dialAndWait(caller)
	}
	if !deadline.IsZero() {
		bounded, cancel := context.WithDeadline(caller, deadline)
		defer cancel()
		caller = bounded
	}
	return ctr.dialOnce(caller)
}

// acquire takes a place of a semaphore.
func acquire(ctx context.Context, sem chan struct{}) (release func(), err error) {
	select {
	case sem <- struct{}{}:
		return func() { <-sem }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dialOnce tries to open a connection. Its success or failure is recorded for the callers
// that wait.
func (ctr *Connector) dialOnce(caller context.Context) (link, error) {
	if ctr.Ctx.Err() != nil {
		return link{}, ErrPoolClosed // a sql.Conn may be kept after Close
	}
	l, err := ctr.connectTraced(caller)
	if err != nil {
		return link{}, err
	}
	ctr.reached(&l)
	return l, nil
}

// dialAndWait opens a connection for a statement outside sessions, and waits for a
// server that cannot be reached. If the caller's context ends meanwhile, the error is
// only the context's, as without livepool.
func (ctr *Connector) dialAndWait(caller context.Context) (link, error) {
	started := time.Now()
	for {
		l, err := ctr.dialOnce(caller)
		if err == nil {
			return l, nil
		}
		available := caller.Err() == nil && ctr.IsUnreachable(err) && ctr.awaitOutageEnd(caller, started, err)
		switch {
		case caller.Err() != nil:
			ctr.Cfg.Log.Debug("livepool: a statement's context ended before it had a connection", slog.String("addr", ctr.addr), slog.Any("cause", err))
			return link{}, caller.Err()
		case !available:
			return link{}, ctr.latestError(err, time.Since(started))
		}
		if l, ok := ctr.takeSpare(caller); ok {
			return l, nil
		}
	}
}

// awaitOutageEnd waits for the end of an outage, and says whether it has come. A ping
// does not wait, because it asks whether the server can be reached now; neither does a
// statement with an OutageWait of 0. They get the last known error, or the prober's next
// result if that error is old.
func (ctr *Connector) awaitOutageEnd(caller context.Context, started time.Time, err error) bool {
	if wait := ctr.Cfg.OutageWait; wait > 0 && !isCalledByPing() {
		return ctr.Outage.AwaitServer(caller, started.Add(wait))
	}
	if !errors.As(err, new(*outage.Error)) {
		return false // it has dialed itself
	}
	if changed := ctr.Outage.RequestProbe(); changed != nil {
		clock.Wait(caller, changed, ctr.Cfg.ConnectTimeout)
	}
	return !ctr.Outage.IsDown()
}

// isCalledByPing says whether the connection is opened for a ping. Only the stack shows
// that.
func isCalledByPing() bool {
	return innermostFunc(func(name string) bool {
		return strings.HasSuffix(name, ".PingContext") && strings.HasPrefix(name, "database/sql.") || strings.HasSuffix(name, ".(*conn).Ping")
	}) != ""
}
