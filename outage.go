// outage.go keeps those back who need what the server does not give: connections,
// while it cannot be reached, takes no more of them or says nothing, and writes,
// while it takes none. One prober asks for all of them, and lets them in when it
// gets through.

package livepool

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
)

// lack is what a server does not give.
type lack int

const (
	nothing lack = iota
	noServer
	noRoom
	noAnswer
	noWrites
)

// lacks tells of each, in the words of an error and of the operator.
var lacks = [...]struct{ is, begins, ends string }{
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

// lackOf is what an attempt to connect failed for want of: nothing, if the server
// is there and refuses, or if it is the caller who gave up.
func (ctr *connector) lackOf(err error) lack {
	var held *heldError
	var connect *connectError
	var network net.Error
	switch {
	case errors.As(err, &held):
		return held.lack
	case !errors.As(err, &connect), impatient(err), errors.Is(err, errPoolClosed), errors.Is(err, errConnectPanicked), isMisconfigured(err):
		return nothing
	case isFull(err):
		return noRoom
	case errorNumber(err) != 0:
		if ctr.classify(err)&ConnDead != 0 || isNotReady(err) { // it is shutting down, or does no work
			return noServer
		}
		return nothing
	case connect.silent:
		return noAnswer
	case connect.undialled, isNetworkLoss(err), errors.As(err, &network),
		errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn):
		return noServer
	}
	return nothing
}

// unreachable says whether a connection could not be opened for want of a server
// that takes it.
func (ctr *connector) unreachable(err error) bool { return ctr.lackOf(err) != nothing }

// isFull says whether a server refused a connection because there are too many.
func isFull(err error) bool {
	switch errorNumber(err) {
	case 1040, 1203:
		return true
	case 1226: // of whose limits the others are by the hour
		return Classify(err)&Retry != 0
	}
	return false
}

// impatient: it is the caller who has given up.
func impatient(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// gate is shut while there is a lack. All is guarded by outage.mu.
type gate struct {
	lack    lack
	cause   error
	over    chan struct{} // closed when the lack ends
	began   time.Duration
	waiting int // how many wait now
	waited  int // how many have waited
}

// outage is what is known of what the server gives.
type outage struct {
	mu     sync.Mutex // guards what follows
	server gate       // those who need a connection
	writes gate       // those who were refused a write
	last   error      // of the last connect, nil if it succeeded
	// reached is when a connection was last opened, told when one could not be.
	reached, told time.Duration
	probing       bool
	asked         bool          // the prober is to ask once, though nobody waits
	news          chan struct{} // closed when it is told next
	goneOn        map[*opening]struct{}
	turns         turns

	down atomic.Bool // the server's gate is shut; changed under mu
	full atomic.Bool // for want of room, and somebody waits; changed under mu
	// offered has a token for each connection that was given up to those who wait
	// because the server is full.
	offered chan struct{}
	tries   chan struct{} // lets one of those who wait for writes try by himself

	probed     time.Duration // when the prober last tried to connect; its own
	unanswered atomic.Bool   // and had no answer yet
}

func (o *outage) init(limit int) {
	o.turns.init(limit)
	o.news = make(chan struct{})
	o.goneOn = map[*opening]struct{}{}
	o.offered = make(chan struct{}, 64)
	o.tries = make(chan struct{})
}

func (o *outage) isDown() bool { return o.down.Load() }

// cause is why the last connection could not be opened, nil if it could.
func (o *outage) cause() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// sessionDial is under what a context says that a session is dialling, and until
// when it may; a zero time is no limit.
type sessionDial struct{}

// heldError is for a caller who is not to dial by himself.
type heldError struct {
	lack   lack
	cause  error
	waited time.Duration
}

func (e *heldError) Error() string {
	text := "livepool: " + lacks[e.lack].is
	if e.waited > 0 {
		text += ", and was waited for in vain for " + e.waited.Round(time.Millisecond).String() + " (pool_outage_wait)"
	}
	return text + ": " + e.cause.Error()
}
func (e *heldError) Unwrap() error { return e.cause }

// held is why nobody is to dial by himself, nil if all may. o.mu is held.
func (o *outage) held() error {
	if o.server.lack == nothing {
		return nil
	}
	return &heldError{lack: o.server.lack, cause: o.last}
}

// keepsBack is held for those who need no turn.
func (o *outage) keepsBack() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held()
}

// latest is what is known of an outage, for a caller who has waited in vain and
// whose own err is old by now.
func (o *outage) latest(err error, waited time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var held *heldError
	if errors.As(o.held(), &held) && errors.As(err, new(*connectError)) {
		held.waited = waited
		return held
	}
	return err
}

// failedToConnect notes a connection that could not be opened, and tells of it.
func (ctr *connector) failedToConnect(err error) { ctr.noteFailure(err)() }

// noteFailure leaves the telling to its caller.
func (ctr *connector) noteFailure(err error) (tell func()) {
	ctr.stats.connectFailed.Add(1)
	if impatient(err) || ctr.life.Err() != nil {
		return func() {}
	}
	lack := ctr.lackOf(err)
	begins, ends := ctr.outage.fails(ctr, err, lack, ctr.clock.now())
	if begins {
		ctr.stats.outages.Add(1)
		ctr.outage.await(ctr, 0)
	}
	return func() {
		if ends != nil {
			ctr.tellEnd(ends, slog.Any("refusal", err))
		}
		if begins {
			ctr.tellBeginning(lack, err)
		}
	}
}

func (ctr *connector) tellBeginning(lack lack, cause error) {
	ctr.cfg.Log.Warn(lacks[lack].begins, slog.String("addr", ctr.addr), slog.Any("cause", cause))
}

// fails says whether it is the beginning of an outage, or its end: a refusal is
// one. An attempt that began before the last one that succeeded tells nothing.
func (o *outage) fails(ctr *connector, err error, lack lack, now time.Duration) (begins bool, ended *gate) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var connect *connectError
	if errors.As(err, &connect) && connect.began < o.reached {
		return false, nil
	}
	o.last, o.told = err, now
	close(o.news)
	o.news = make(chan struct{})
	o.turns.slow()
	g := &o.server
	switch {
	case lack == nothing:
		return false, o.end(ctr, g, now)
	case g.lack == nothing:
		begins = true
		g.begin(lack, err, now)
		o.down.Store(true)
		o.turns.refuse(o.held())
	default:
		g.lack = lack // and still the same outage
	}
	o.full.Store(g.lack == noRoom && g.waiting > 0)
	return begins, nil
}

func (g *gate) begin(lack lack, cause error, now time.Duration) {
	g.lack, g.cause, g.over, g.began, g.waited = lack, cause, make(chan struct{}), now, g.waiting
}

// end opens a gate, and returns what there is to tell, nil if it was open. o.mu
// is held.
func (o *outage) end(ctr *connector, g *gate, now time.Duration) *gate {
	if g.lack == nothing {
		return nil
	}
	told := *g
	told.began = now - g.began // how long it was
	close(g.over)
	g.lack = nothing
	if g == &o.server {
		o.down.Store(false)
		o.full.Store(false)
		o.giveUpGoneOn(ctr.cfg.ConnectTimeout)
	}
	return &told
}

func (ctr *connector) tellEnd(g *gate, more ...any) {
	if m := ctr.maintainer; m != nil {
		m.refused.Store(0)
		m.nudge()
	}
	ctr.cfg.Log.Info(lacks[g.lack].ends, append([]any{
		slog.String("addr", ctr.addr), slog.Duration("after", g.began), slog.Int("waited", g.waited)}, more...)...)
}

// connected notes one that could.
func (ctr *connector) connected() {
	o := &ctr.outage
	o.mu.Lock()
	o.last, o.reached = nil, ctr.clock.now()
	ended := o.end(ctr, &o.server, o.reached)
	if ended != nil {
		close(o.news)
		o.news = make(chan struct{})
	}
	o.mu.Unlock()
	if ended != nil {
		ctr.tellEnd(ended)
	}
}

// giveUpGoneOn ends, after the wait, the attempts that go on now: the server
// answers again, and who has not been answered by then will not be. o.mu is held.
func (o *outage) giveUpGoneOn(wait time.Duration) {
	silent := slices.Collect(maps.Keys(o.goneOn))
	if len(silent) == 0 {
		return
	}
	time.AfterFunc(wait, func() {
		for _, other := range silent {
			if o.forget(other) {
				other.giveUp(context.Canceled) // which notes nothing of the server
			}
		}
	})
}

// remember notes an attempt that goes on without its caller, unless there are
// enough.
func (o *outage) remember(other *opening, keep int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.goneOn) >= keep {
		return false
	}
	o.goneOn[other] = struct{}{}
	return true
}

func (o *outage) remembers(other *opening) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.goneOn[other]
	return ok
}

// forget says whether the attempt was going on.
func (o *outage) forget(other *opening) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.goneOn[other]
	delete(o.goneOn, other)
	return ok
}

// await notes that more wait for the server, or fewer, and has it probed if any
// do during an outage, whose end it returns.
func (o *outage) await(ctr *connector, more int) (over chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.awaitAt(ctr, &o.server, more)
}

// awaitAt is await at either gate. o.mu is held.
func (o *outage) awaitAt(ctr *connector, g *gate, more int) (over chan struct{}) {
	g.waiting += more
	g.waited += max(more, 0)
	o.full.Store(o.server.lack == noRoom && o.server.waiting > 0)
	if g.lack == nothing {
		return nil
	}
	if (g.waiting > 0 || more > 0) && !o.probing {
		o.asked = true
		o.probing = ctr.spawn(ctr.probe)
	}
	return g.over
}

// inquire has the server probed for one who does not wait for the end of an
// outage. It returns what is closed when there is news, nil if there has just
// been some.
func (o *outage) inquire(ctr *connector) (news chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.server.lack == nothing || ctr.clock.now()-o.told < time.Second {
		return nil
	}
	o.asked = true
	if !o.probing {
		o.probing = ctr.spawn(ctr.probe)
	}
	return o.news
}

// awaitServer waits for the end of an outage, or for a connection that another
// caller gives up to a server that takes no more. It returns false if the deadline
// or the context ends first.
func (ctr *connector) awaitServer(ctx context.Context, deadline time.Time) bool {
	o := &ctr.outage
	return ctr.awaitGate(ctx, &o.server, deadline, o.offered)
}

func (ctr *connector) awaitGate(ctx context.Context, g *gate, deadline time.Time, offered chan struct{}) bool {
	o := &ctr.outage
	await := func(more int) chan struct{} {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.awaitAt(ctr, g, more)
	}
	over := await(1)
	defer await(-1)
	if over == nil {
		return ctx.Err() == nil && time.Now().Before(deadline)
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-over:
		return true
	case <-offered:
		return true
	case <-ctx.Done():
	case <-timer.C:
	case <-ctr.life.Done():
	}
	return false
}

// hushed is the driver's logger. In an outage the driver would complain at every
// attempt to connect.
type hushed struct {
	mysql.Logger
	o   *outage
	cfg *settings
}

func (h *hushed) Print(v ...any) {
	if !h.o.isDown() {
		h.cfg.contain("Config.MySQL.Logger", func() { h.Logger.Print(v...) })
	}
}
