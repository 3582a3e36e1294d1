// connect.go opens connections: each in a goroutine of its own, so that neither
// a server nor a dialer holds a caller for longer than ConnectTimeout, or than he
// likes. An attempt that its caller has left may go on for the pool. How many
// there are at a time, and what their failure tells, is outage.go's affair.

package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/wire"
)

// connectAttempt is an attempt to open a connection.
type connectAttempt struct {
	ctr       *Connector
	startedAt time.Duration
	side      bool                      // its caller wants no more than a login
	wire      atomic.Pointer[wire.Conn] // its network connection, as soon as it has one
	// loggedIn: what it does from here on is none of the handshake.
	loggedIn atomic.Bool
	cancel   context.CancelFunc
	// releaseDial gives its turn back, once, and says whether that noted a failure.
	releaseDial func(took time.Duration, err error) (noted bool)

	// state is decided once: either the attempt ends while its caller waits, or
	// the caller leaves.
	state atomic.Int32
	done  chan struct{} // closed in the first case; then link and err are the caller's
	link  link
	err   error
}

const (
	attemptRunning int32 = iota
	attemptFinished
	attemptLeft
)

// maxUnansweredProbes is how many attempts of the prober, to which the server says
// nothing, go on until it does.
const maxUnansweredProbes = 2

// connect opens a connection, within ConnectTimeout from when it is the caller's
// turn.
func (ctr *Connector) connect(caller context.Context) (link, error) {
	return ctr.openQueued(caller, false)
}

// openQueued waits for a turn, unless the connection is one beside the pool: of
// those there are few, and somebody may wait for the end of what they are to kill.
func (ctr *Connector) openQueued(caller context.Context, side bool) (link, error) {
	start := ctr.clock.Now()
	if side {
		if err := ctr.Outage.gateErr(); err != nil {
			return link{}, err
		}
		return ctr.open(caller, side, ctr.Cfg.ConnectLimit, noDialLimit)
	}
	if err := ctr.Outage.acquireDial(caller); err != nil {
		if !mysqlerr.CallerGaveUp(err) {
			return link{}, err
		}
		waited := (ctr.clock.Now() - start).Round(time.Millisecond)
		err = &ConnectError{startedAt: start, Cause: err, notDialed: true, Text: fmt.Sprintf(
			"livepool: no connection to %s was opened: its caller gave up after %s of waiting for others to be opened (pool_connect_limit)", ctr.addr, waited)}
		ctr.recordConnectFailure(err)
		return link{}, err
	}
	return ctr.open(caller, side, ctr.Cfg.ConnectLimit, ctr.finishDial)
}

// open opens a connection without waiting for a turn. If its caller leaves it
// goes on for the pool, unless as many as keep do so already.
func (ctr *Connector) open(caller context.Context, side bool, maxLeft int, releaseDial func(time.Duration, error) bool) (link, error) {
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
	continues := o.wire.Load() != nil && !o.loggedIn.Load() && ctr.Outage.addLeftAttempt(o, maxLeft)
	if !o.state.CompareAndSwap(attemptRunning, attemptLeft) { // it has just ended
		ctr.Outage.removeLeftAttempt(o)
		<-o.done
		return o.link, o.err
	}
	err = ctr.newConnectError(o, err, false)
	if continues {
		o.continueForPool(err)
	} else {
		o.abort(err)
	}
	return link{}, err
}

// startAttempt runs an attempt, but not once the connector is closed, which does not
// wait for ever for a dialer that minds no context.
func (ctr *Connector) startAttempt(run func()) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.closed || ctr.Ctx.Err() != nil {
		return false
	}
	ctr.connectAttempts.Go(run)
	return true
}

// awaitAttempts waits for those that are under way, whose contexts have ended, but
// not for a dialer that does not mind that.
func (ctr *Connector) awaitAttempts() {
	done := make(chan struct{})
	go func() { ctr.connectAttempts.Wait(); close(done) }()
	clock.Wait(context.Background(), done, ctr.Cfg.PingTimeout)
}

// run is the attempt. Whatever the user's dialer, BeforeConnect or driver does,
// it has an end that somebody learns of.
func (o *connectAttempt) run(ctx context.Context) {
	stop := context.AfterFunc(o.ctr.Ctx, o.cancel)
	defer stop()
	o.err = errConnectPanicked // or did not return at all (runtime.Goexit)
	defer o.finish()
	if o.ctr.ownDialer {
		ctx = context.WithValue(ctx, wire.ContextKey{}, &o.wire)
	}
	o.link, o.err = o.ctr.login(ctx, o)
	o.loggedIn.Store(true)
	if o.err == nil && !o.side {
		o.err = o.ctr.initLink(ctx, &o.link)
	}
}

// finish hands the result to the caller, or to the pool if he has left.
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
	switch wasLeft := ctr.Outage.removeLeftAttempt(o); {
	case o.err == nil:
		ctr.keepLateLink(o)
	case wasLeft && !noted: // and was not given up
		ctr.recordConnectFailure(o.err)
	}
}

// login makes a connection and logs in.
func (ctr *Connector) login(ctx context.Context, o *connectAttempt) (link, error) {
	generation := ctr.generation.Load()
	by := ctr.driverConnector
	if o.side {
		by = ctr.sideConnector
	}
	dc, err := ctr.connectDriver(ctx, by)
	if err != nil {
		return link{}, err
	}
	return link{driverConn: newDriverConn(dc), wire: o.wire.Load(), refusalTrustedAt: -1, generation: generation}, nil
}

// initLink makes a connection that is logged in one of the pool's.
func (ctr *Connector) initLink(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, ctr.Cfg.ConnectTimeout)
	defer cancel()
	if err := ctr.afterLogin(ctx, l); err != nil {
		return err
	}
	if ctr.InCluster.Load() {
		if err := ctr.pingForWork(ctx, &l.driverConn); err != nil {
			return err
		}
	}
	now := ctr.clock.Now()
	l.born, l.lastRoundTrip, l.expires = now, now, ctr.Cfg.ageLimit()
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

// continueForPool is for an attempt that goes on though its caller has left: a server that
// was stopped answers it when it goes on, and one that has often been left counts
// that against the client's host, which it blocks in the end (error 1129,
// max_connect_errors). It is given up if others get through meanwhile.
func (o *connectAttempt) continueForPool(err error) {
	ctr := o.ctr
	wait := ctr.Cfg.ConnectTimeout - (ctr.clock.Now() - o.startedAt)
	beforeTimeout := wait > 0 // so that nobody has been told that there is no answer
	if !beforeTimeout {
		o.releaseDial(0, err)
		wait = ctr.Cfg.ConnectTimeout
	}
	time.AfterFunc(wait, func() {
		if !ctr.Outage.hasLeftAttempt(o) {
			return
		}
		if beforeTimeout {
			err := ctr.newConnectError(o, &connectTimeoutError{}, false)
			if !o.releaseDial(0, err) {
				ctr.recordConnectFailure(err)
			}
		}
		if !ctr.Outage.isDown() && ctr.Outage.removeLeftAttempt(o) {
			o.abort(err)
		}
	})
}

// abort ends an attempt that nobody waits for.
func (o *connectAttempt) abort(err error) {
	o.releaseDial(0, err)
	o.cancel()
}

// keepLateLink keeps the connection of an attempt that its caller has left ready for
// the next one, if there is room for it: it is this one that is closed if not, and
// not an older one that is surplus because of it.
func (ctr *Connector) keepLateLink(o *connectAttempt) {
	l := o.link
	if o.side { // it takes several statements at a time, and is none for the pool
		l.close()
		ctr.recordConnected()
		return
	}
	limit := int(ctr.Limits.Open.Load())
	ready, inUse := ctr.countConns()
	isFull := limit > 0 && ready+inUse >= limit
	isSurplus := ready > 0 && ready+inUse >= ctr.Limits.allowed(ctr.Cfg.PoolSize)
	if !ctr.Outage.isDown() && (isFull || isSurplus) {
		l.close()
	} else {
		ctr.addSpare(l)
	}
	ctr.recordConnected()
}

// ConnectError is a connection that could not be opened: how far it came, and
// why.
type ConnectError struct {
	Text      string
	Cause     error
	startedAt time.Duration
	notDialed bool // there was not even a network connection
	noReply   bool // there was, and the server did not answer in time
}

func (e *ConnectError) Error() string         { return e.Text + ": " + e.Cause.Error() }
func (e *ConnectError) Unwrap() error         { return e.Cause }
func (e *ConnectError) Class() mysqlerr.Class { return mysqlerr.ConnectClass(e.Cause) }

// connectTimeoutError is the end of ConnectTimeout. It is not the caller's own
// deadline and does not look like it: it matches os.ErrDeadlineExceeded, as a
// network timeout.
type connectTimeoutError struct{}

func (*connectTimeoutError) Error() string        { return os.ErrDeadlineExceeded.Error() }
func (*connectTimeoutError) Is(target error) bool { return target == os.ErrDeadlineExceeded }
func (*connectTimeoutError) Timeout() bool        { return true }

// newConnectError tells how far an attempt came that ended with err, or whose caller
// did.
func (ctr *Connector) newConnectError(o *connectAttempt, err error, finished bool) error {
	w := o.wire.Load()
	elapsed := ctr.clock.Now() - o.startedAt
	e := &ConnectError{
		Text:      fmt.Sprintf("livepool: connecting to %s failed after %s", ctr.addr, elapsed.Round(time.Millisecond)),
		Cause:     err,
		startedAt: o.startedAt,
		notDialed: ctr.ownDialer && w == nil,
	}
	var timeout *connectTimeoutError
	switch {
	case errors.As(err, &timeout):
		e.Text += ", the ConnectTimeout (pool_connect_timeout), " + w.Progress()
		e.noReply = w != nil
	case ctr.Ctx.Err() != nil:
		e.Cause = ErrPoolClosed
	case !finished:
		e.Text += ", its caller having given up, " + w.Progress()
	case mysqlerr.CallerGaveUp(err):
		e.Text += ", by the dialer's own limit: " + err.Error()
		e.Cause = &connectTimeoutError{}
	case ctr.ownDialer && w != nil && w.IOErr != nil:
		e.Text = fmt.Sprintf("%s, %s (%v)", e.Text, w.Progress(), w.IOErr)
	}
	return e
}

// dial opens a connection for a caller. A session returns at once where there is
// none to be had, and waits elsewhere; other callers wait here, within OutageWait.
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

// acquire takes a place behind a door.
func acquire(ctx context.Context, sem chan struct{}) (release func(), err error) {
	select {
	case sem <- struct{}{}:
		return func() { <-sem }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dialOnce opens a connection if it can. What it learns of whether that can be
// done is news for those who wait.
func (ctr *Connector) dialOnce(caller context.Context) (link, error) {
	if ctr.Ctx.Err() != nil {
		return link{}, ErrPoolClosed // a sql.Conn may be held beyond Close
	}
	l, err := ctr.connectToWorkingNode(caller)
	if err != nil {
		return link{}, err
	}
	ctr.recordConnected()
	return l, nil
}

// dialAndWait is for a statement outside sessions, which waits for a server that
// cannot be reached. If its own context ends meanwhile, its error is the
// context's alone, as without livepool.
func (ctr *Connector) dialAndWait(caller context.Context) (link, error) {
	started := time.Now()
	for {
		l, err := ctr.dialOnce(caller)
		if err == nil {
			return l, nil
		}
		available := caller.Err() == nil && ctr.ShortageOf(err) != NoShortage && ctr.awaitOutageEnd(caller, started, err)
		switch {
		case caller.Err() != nil:
			ctr.Cfg.Log.Debug("livepool: a statement's context ended before it had a connection", slog.String("addr", ctr.addr), slog.Any("cause", err))
			return link{}, caller.Err()
		case !available:
			return link{}, ctr.Outage.latestError(err, time.Since(started))
		}
		if l, ok := ctr.takeSpare(caller); ok {
			return l, nil
		}
	}
}

// awaitOutageEnd waits for the end of an outage, and says whether it has come.
// A ping does not wait, since it is asked whether the server is there; neither
// does a statement with an OutageWait of 0. They are told what is known, or what
// the prober finds next if that is old.
func (ctr *Connector) awaitOutageEnd(caller context.Context, started time.Time, err error) bool {
	if wait := ctr.Cfg.OutageWait; wait > 0 && !isCalledByPing() {
		return ctr.AwaitServer(caller, started.Add(wait))
	}
	if !errors.As(err, new(*gateError)) {
		return false // it has asked by itself
	}
	if changed := ctr.Outage.requestProbe(ctr); changed != nil {
		clock.Wait(caller, changed, ctr.Cfg.ConnectTimeout)
	}
	return !ctr.Outage.isDown()
}

// isCalledByPing says whether it is a ping for which a connection is opened. Nothing
// but the stack tells.
func isCalledByPing() bool {
	return hasCaller(func(name string) bool {
		return strings.HasSuffix(name, ".PingContext") && strings.HasPrefix(name, "database/sql.") || strings.HasSuffix(name, ".(*conn).Ping")
	})
}

// hasCaller says whether a function is among the callers.
func hasCaller(is func(name string) bool) bool {
	var pcs [48]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		frame, more := frames.Next()
		if is(frame.Function) {
			return true
		}
		if !more {
			return false
		}
	}
}
