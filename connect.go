// connect.go opens connections: each in a goroutine of its own, so that neither
// a server nor a dialer holds a caller for longer than ConnectTimeout, or than he
// likes. An attempt that its caller has left may go on for the pool. How many
// there are at a time, and what their failure tells, is outage.go's affair.

package livepool

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
)

// opening is an attempt to open a connection.
type opening struct {
	ctr   *connector
	began time.Duration
	side  bool                 // its caller wants no more than a login
	wire  atomic.Pointer[wire] // its network connection, as soon as it has one
	// loggedIn: what it does from here on is none of the handshake.
	loggedIn atomic.Bool
	cancel   context.CancelFunc
	// leave gives its turn back, once, and says whether that noted a failure.
	leave func(took time.Duration, err error) (noted bool)

	// state is decided once: either the attempt ends while its caller waits, or
	// the caller leaves.
	state atomic.Int32
	done  chan struct{} // closed in the first case; then link and err are the caller's
	link  link
	err   error
}

const (
	underWay int32 = iota
	finished
	left
)

// maxProbesLeft is how many attempts of the prober, to which the server says
// nothing, go on until it does.
const maxProbesLeft = 2

// connect opens a connection, within ConnectTimeout from when it is the caller's
// turn.
func (ctr *connector) connect(caller context.Context) (link, error) {
	return ctr.openInTurn(caller, false)
}

// openInTurn waits for a turn, unless the connection is one beside the pool: of
// those there are few, and somebody may wait for the end of what they are to kill.
func (ctr *connector) openInTurn(caller context.Context, side bool) (link, error) {
	asked := ctr.clock.now()
	if side {
		if err := ctr.outage.keepsBack(); err != nil {
			return link{}, err
		}
		return ctr.open(caller, side, ctr.cfg.ConnectLimit, noTurn)
	}
	if err := ctr.outage.enter(caller); err != nil {
		if !impatient(err) {
			return link{}, err
		}
		waited := (ctr.clock.now() - asked).Round(time.Millisecond)
		err = &connectError{began: asked, cause: err, undialled: true, text: fmt.Sprintf(
			"livepool: no connection to %s was opened: its caller gave up after %s of waiting for others to be opened (pool_connect_limit)", ctr.addr, waited)}
		ctr.failedToConnect(err)
		return link{}, err
	}
	return ctr.open(caller, side, ctr.cfg.ConnectLimit, ctr.leaveTurn)
}

// open opens a connection without waiting for a turn. If its caller leaves it
// goes on for the pool, unless as many as keep do so already.
func (ctr *connector) open(caller context.Context, side bool, keep int, leave func(time.Duration, error) bool) (link, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(caller))
	o := &opening{ctr: ctr, began: ctr.clock.now(), side: side, cancel: cancel, done: make(chan struct{})}
	var once sync.Once
	o.leave = func(took time.Duration, err error) (noted bool) {
		once.Do(func() { noted = leave(took, err) })
		return noted
	}
	if !ctr.begin(func() { o.run(ctx) }) {
		cancel()
		err := ctr.connectError(o, errPoolClosed, true)
		o.leave(0, err)
		return link{}, err
	}
	patience := time.NewTimer(ctr.cfg.ConnectTimeout)
	defer patience.Stop()
	var err error
	select {
	case <-o.done:
		return o.link, o.err
	case <-patience.C:
		err = &connectTimeoutError{}
	case <-caller.Done():
		err = caller.Err()
	}
	goesOn := o.wire.Load() != nil && !o.loggedIn.Load() && ctr.outage.remember(o, keep)
	if !o.state.CompareAndSwap(underWay, left) { // it has just ended
		ctr.outage.forget(o)
		<-o.done
		return o.link, o.err
	}
	err = ctr.connectError(o, err, false)
	if goesOn {
		o.goesOn(err)
	} else {
		o.giveUp(err)
	}
	return link{}, err
}

// begin runs an attempt, but not once the connector is closed, which does not
// wait for ever for a dialer that minds no context.
func (ctr *connector) begin(run func()) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.closed || ctr.life.Err() != nil {
		return false
	}
	ctr.attempts.Go(run)
	return true
}

// awaitAttempts waits for those that are under way, whose contexts have ended, but
// not for a dialer that does not mind that.
func (ctr *connector) awaitAttempts() {
	done := make(chan struct{})
	go func() { ctr.attempts.Wait(); close(done) }()
	waitFor(context.Background(), done, ctr.cfg.PingTimeout)
}

// run is the attempt. Whatever the user's dialer, BeforeConnect or driver does,
// it has an end that somebody learns of.
func (o *opening) run(ctx context.Context) {
	stop := context.AfterFunc(o.ctr.life, o.cancel)
	defer stop()
	o.err = errConnectPanicked // or did not return at all (runtime.Goexit)
	defer o.ends()
	if o.ctr.tapped {
		ctx = context.WithValue(ctx, dialedKey{}, &o.wire)
	}
	o.link, o.err = o.ctr.login(ctx, o)
	o.loggedIn.Store(true)
	if o.err == nil && !o.side {
		o.err = o.ctr.settleIn(ctx, &o.link)
	}
}

// ends hands the result to the caller, or to the pool if he has left.
func (o *opening) ends() {
	ctr := o.ctr
	if o.err != nil {
		o.link.close()
		o.link, o.err = link{}, ctr.connectError(o, o.err, true)
	}
	o.cancel()
	noted := o.leave(ctr.clock.now()-o.began, o.err)
	if o.state.CompareAndSwap(underWay, finished) {
		close(o.done)
		return
	}
	switch goneOn := ctr.outage.forget(o); {
	case o.err == nil:
		ctr.cameLate(o)
	case goneOn && !noted: // and was not given up
		ctr.failedToConnect(o.err)
	}
}

// login makes a connection and logs in.
func (ctr *connector) login(ctx context.Context, o *opening) (link, error) {
	generation := ctr.generation.Load()
	by := ctr.inner
	if o.side {
		by = ctr.side
	}
	dc, err := ctr.connectDriver(ctx, by)
	if err != nil {
		return link{}, err
	}
	return link{inner: newInner(dc), wire: o.wire.Load(), believed: -1, generation: generation}, nil
}

// settleIn makes a connection that is logged in one of the pool's.
func (ctr *connector) settleIn(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, ctr.cfg.ConnectTimeout)
	defer cancel()
	if err := ctr.getAcquainted(ctx, l); err != nil {
		return err
	}
	if ctr.inCluster.Load() {
		if err := ctr.pingUnder(ctx, &l.inner); err != nil {
			return err
		}
	}
	now := ctr.clock.now()
	l.born, l.proved, l.expires = now, now, ctr.cfg.ageLimit()
	if l.expires < never-now {
		l.expires += now
	}
	raise(&ctr.news.heard, now)
	if l.wire != nil {
		ctr.roundTrip.saw(l.wire.quickest)
	}
	l.serial = ctr.stats.opened.Add(1)
	return nil
}

// goesOn is for an attempt that goes on though its caller has left: a server that
// was stopped answers it when it goes on, and one that has often been left counts
// that against the client's host, which it blocks in the end (error 1129,
// max_connect_errors). It is given up if others get through meanwhile.
func (o *opening) goesOn(err error) {
	ctr := o.ctr
	wait := ctr.cfg.ConnectTimeout - (ctr.clock.now() - o.began)
	early := wait > 0 // so that nobody has been told that there is no answer
	if !early {
		o.leave(0, err)
		wait = ctr.cfg.ConnectTimeout
	}
	time.AfterFunc(wait, func() {
		if !ctr.outage.remembers(o) {
			return
		}
		if early {
			err := ctr.connectError(o, &connectTimeoutError{}, false)
			if !o.leave(0, err) {
				ctr.failedToConnect(err)
			}
		}
		if !ctr.outage.isDown() && ctr.outage.forget(o) {
			o.giveUp(err)
		}
	})
}

// giveUp ends an attempt that nobody waits for.
func (o *opening) giveUp(err error) {
	o.leave(0, err)
	o.cancel()
}

// cameLate keeps the connection of an attempt that its caller has left ready for
// the next one.
func (ctr *connector) cameLate(o *opening) {
	l := o.link
	if o.side { // it takes several statements at a time, and is none for the pool
		l.close()
		ctr.connected()
		return
	}
	limit := int(ctr.limits.open.Load())
	if ready, busy := ctr.count(); !ctr.outage.isDown() && limit > 0 && ready+busy >= limit {
		l.close()
	} else {
		ctr.addSpare(l)
	}
	ctr.connected()
}

// connectError is a connection that could not be opened: how far it came, and
// why.
type connectError struct {
	text      string
	cause     error
	began     time.Duration
	undialled bool // there was not even a network connection
	silent    bool // there was, and the server did not answer in time
}

func (e *connectError) Error() string { return e.text + ": " + e.cause.Error() }
func (e *connectError) Unwrap() error { return e.cause }
func (e *connectError) class() Class  { return ofConnect(e.cause) }

// connectTimeoutError is the end of ConnectTimeout. It is not the caller's own
// deadline and does not look like it: it matches os.ErrDeadlineExceeded, as a
// network timeout.
type connectTimeoutError struct{}

func (*connectTimeoutError) Error() string        { return os.ErrDeadlineExceeded.Error() }
func (*connectTimeoutError) Is(target error) bool { return target == os.ErrDeadlineExceeded }
func (*connectTimeoutError) Timeout() bool        { return true }

// connectError tells how far an attempt came that ended with err, or whose caller
// did.
func (ctr *connector) connectError(o *opening, err error, ended bool) error {
	w := o.wire.Load()
	took := ctr.clock.now() - o.began
	e := &connectError{
		text:      fmt.Sprintf("livepool: connecting to %s failed after %s", ctr.addr, took.Round(time.Millisecond)),
		cause:     err,
		began:     o.began,
		undialled: ctr.tapped && w == nil,
	}
	var timeout *connectTimeoutError
	switch {
	case errors.As(err, &timeout):
		e.text += ", the ConnectTimeout (pool_connect_timeout), " + w.progress()
		e.silent = w != nil
	case ctr.life.Err() != nil:
		e.cause = errPoolClosed
	case !ended:
		e.text += ", its caller having given up, " + w.progress()
	case impatient(err):
		e.text += ", by the dialer's own limit: " + err.Error()
		e.cause = &connectTimeoutError{}
	case ctr.tapped && w != nil && w.broken != nil:
		e.text = fmt.Sprintf("%s, %s (%v)", e.text, w.progress(), w.broken)
	}
	return e
}

// progress says how far the opening of a connection has come.
func (w *wire) progress() string {
	switch {
	case w == nil:
		return "before the network connection was made"
	case w.greeting.Load() < greeted:
		return "after the network connection was accepted but before the server said anything"
	default:
		return fmt.Sprintf("during the login of thread %d", w.hello.threadID)
	}
}

// dial opens a connection for a caller. A session returns at once where there is
// none to be had, and waits elsewhere; other callers wait here, within OutageWait.
func (ctr *connector) dial(caller context.Context) (link, error) {
	deadline, session := caller.Value(sessionDial{}).(time.Time)
	if !session {
		return ctr.dialPlain(caller)
	}
	if !deadline.IsZero() {
		bounded, cancel := context.WithDeadline(caller, deadline)
		defer cancel()
		caller = bounded
	}
	return ctr.dialOnce(caller)
}

// pass takes a place behind a door.
func pass(ctx context.Context, door chan struct{}) (leave func(), err error) {
	select {
	case door <- struct{}{}:
		return func() { <-door }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dialOnce opens a connection if it can. What it learns of whether that can be
// done is news for those who wait.
func (ctr *connector) dialOnce(caller context.Context) (link, error) {
	if ctr.life.Err() != nil {
		return link{}, errPoolClosed // a sql.Conn may be held beyond Close
	}
	l, err := ctr.connectToReady(caller)
	if err != nil {
		return link{}, err
	}
	ctr.connected()
	return l, nil
}

// dialPlain is for a statement outside sessions, which waits for a server that
// cannot be reached. If its own context ends meanwhile, its error is the
// context's alone, as without livepool.
func (ctr *connector) dialPlain(caller context.Context) (link, error) {
	started := time.Now()
	for {
		l, err := ctr.dialOnce(caller)
		if err == nil {
			return l, nil
		}
		waits := caller.Err() == nil && ctr.lackOf(err) != nothing && ctr.waitsForServer(caller, started, err)
		switch {
		case caller.Err() != nil:
			ctr.cfg.Log.Debug("livepool: a statement's context ended before it had a connection", slog.String("addr", ctr.addr), slog.Any("cause", err))
			return link{}, caller.Err()
		case !waits:
			return link{}, ctr.outage.latest(err, time.Since(started))
		}
		if l, ok := ctr.takeSpare(caller); ok {
			return l, nil
		}
	}
}

// waitsForServer waits for the end of an outage, and says whether it has come.
// A ping does not wait, since it is asked whether the server is there; neither
// does a statement with an OutageWait of 0. They are told what is known, or what
// the prober finds next if that is old.
func (ctr *connector) waitsForServer(caller context.Context, started time.Time, err error) bool {
	if wait := ctr.cfg.OutageWait; wait > 0 && !pingIsAsking() {
		return ctr.awaitServer(caller, started.Add(wait))
	}
	if !errors.As(err, new(*heldError)) {
		return false // it has asked by itself
	}
	if news := ctr.outage.inquire(ctr); news != nil {
		waitFor(caller, news, ctr.cfg.ConnectTimeout)
	}
	return !ctr.outage.isDown()
}

// pingIsAsking says whether it is a ping for which a connection is opened. Nothing
// but the stack tells.
func pingIsAsking() bool {
	return calledBy(func(name string) bool {
		return strings.HasSuffix(name, ".PingContext") && strings.HasPrefix(name, "database/sql.") || strings.HasSuffix(name, ".(*conn).Ping")
	})
}

// calledBy says whether a function is among the callers.
func calledBy(is func(name string) bool) bool {
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
