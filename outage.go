// outage.go keeps the sessions off a server that cannot be reached: one prober
// dials for all of them, and they are let in when it gets through. Statements
// outside sessions dial as ever; what becomes of that is news all the same.

package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
)

// outage is what is known of whether the server can be reached.
type outage struct {
	// proven: a connection was opened since the last sign of trouble. Until one
	// was, sessions dial one at a time.
	proven atomic.Bool
	single chan struct{}
	// doors are as many handshakes of sessions as there may be at a time, nil
	// where the number of sessions that have a place is limited.
	doors chan struct{}

	mu      sync.Mutex    // guards what follows
	last    error         // of the last connect, nil if it succeeded
	reached time.Duration // when it first did since
	over    chan struct{}
	began   time.Duration
	waiting int
	probing bool

	down atomic.Bool // the last connect that told did not reach the server; changed under mu
}

func (o *outage) init(limit, size int) {
	o.single = make(chan struct{}, 1)
	if limit == 0 {
		o.doors = make(chan struct{}, max(size, 1))
	}
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

// heldError is for a session that is not to dial by itself.
type heldError struct{ cause error }

func (e *heldError) Error() string {
	return "livepool: the server cannot be reached: " + e.cause.Error()
}
func (e *heldError) Unwrap() error { return e.cause }

// held is why a session is not to dial, nil if it may.
func (o *outage) held() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.down.Load() {
		return nil
	}
	return &heldError{o.last}
}

// enter comes before the dial of a session. It keeps it back during an outage.
func (o *outage) enter(ctx context.Context) (leave func(), err error) {
	for !o.proven.Load() {
		if leave, err = pass(ctx, o.single); err != nil {
			return nil, err
		}
		if err := o.held(); err != nil {
			leave()
			return nil, err
		}
		if !o.proven.Load() {
			return leave, nil
		}
		leave()
	}
	return pass(ctx, o.doors)
}

func pass(ctx context.Context, door chan struct{}) (leave func(), err error) {
	if door == nil {
		return func() {}, nil
	}
	select {
	case door <- struct{}{}:
		return func() { <-door }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// unreachable says whether a failure to connect is that of a server that is not
// there, and not of one that refuses, or of a caller without patience.
func (ctr *connector) unreachable(err error) bool {
	var connect *connectError
	var network net.Error
	switch {
	case !errors.As(err, &connect), impatient(err), errors.Is(err, errConnectPanicked), isMisconfigured(err):
		return false
	case errorNumber(err) != 0:
		return ctr.classify(err)&ConnDead != 0 || isNotReady(err) // it is shutting down, or does no work
	}
	return connect.undialled || isNetworkLoss(err) || errors.As(err, &network) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn)
}

// impatient: it is the caller who has given up.
func impatient(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// failedToConnect notes a connection that could not be opened.
func (ctr *connector) failedToConnect(err error, began time.Duration) {
	ctr.stats.connectFailed.Add(1)
	if impatient(err) || !ctr.outage.fails(err, ctr.unreachable(err), began, ctr.clock.now()) {
		return
	}
	ctr.stats.outages.Add(1)
	ctr.outage.await(ctr, 0)
	ctr.cfg.logger().Warn("livepool: the server cannot be reached; sessions wait while one prober dials for all of them",
		slog.String("addr", ctr.addr), slog.Any("cause", err))
}

// fails says whether it is the beginning of an outage. A refusal is the end of
// one. An attempt that began before the last one that succeeded tells nothing.
func (o *outage) fails(err error, unreachable bool, began, now time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if began < o.reached {
		return false
	}
	o.last = err
	o.proven.Store(false)
	if o.down.Swap(unreachable) == unreachable {
		return false
	}
	if unreachable {
		o.over, o.began = make(chan struct{}), now
	} else {
		close(o.over)
	}
	return unreachable
}

// connected notes one that could.
func (ctr *connector) connected() {
	if ctr.outage.proven.Load() {
		return
	}
	waiting, lasted, ended := ctr.outage.ends(ctr.clock.now())
	if !ended {
		return
	}
	ctr.maintainer.nudge()
	ctr.cfg.logger().Info("livepool: the server can be reached again",
		slog.String("addr", ctr.addr), slog.Duration("after", lasted), slog.Int("sessions_waiting", waiting))
}

// ends lets the sessions in, if it was an outage.
func (o *outage) ends(now time.Duration) (waiting int, lasted time.Duration, ended bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last, o.reached = nil, now
	o.proven.Store(true)
	if !o.down.Swap(false) {
		return 0, 0, false
	}
	close(o.over)
	return o.waiting, now - o.began, true
}

// await notes that more sessions wait for the server, or fewer, and has it
// probed if any do during an outage, whose end it returns.
func (o *outage) await(ctr *connector, more int) (over chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting += more
	if !o.down.Load() {
		return nil
	}
	if (o.waiting > 0 || more > 0) && !o.probing {
		o.probing = ctr.spawn(ctr.probe)
	}
	return o.over
}

// awaitServer waits for the end of an outage. It returns false if the deadline
// or the context ends first.
func (ctr *connector) awaitServer(ctx context.Context, deadline time.Time) bool {
	over := ctr.outage.await(ctr, 1)
	defer ctr.outage.await(ctr, -1)
	if over == nil {
		return ctx.Err() == nil && time.Now().Before(deadline)
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-over:
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
	cfg *Config
}

func (h *hushed) Print(v ...any) {
	if !h.o.isDown() {
		h.cfg.contain("Config.MySQL.Logger", func() { h.Logger.Print(v...) })
	}
}

// How often the prober dials: often enough that nobody waits for long once the
// server is back, and less often the longer it has been away.
const (
	probeShortest = 21 * time.Millisecond
	probeLongest  = 250 * time.Millisecond
	probePatience = 500 * time.Millisecond // with an attempt that gets no answer, before the next
)

func probeInterval(elapsed time.Duration) time.Duration {
	d := min(max(elapsed/150, probeShortest), probeLongest)
	return d + rand.N(d/5)
}

// probe dials as long as there are sessions that wait for the server. Where the
// attempts get no answer a few may be under way at the same time. The connection
// that gets through is the first session's.
func (ctr *connector) probe() {
	o := &ctr.outage
	for first := true; ; first = false { // once at least: who does not wait asks again later
		o.mu.Lock()
		if !o.down.Load() || o.waiting == 0 && !first || ctr.life.Err() != nil {
			o.probing = false
			o.mu.Unlock()
			return
		}
		over, pause := o.over, probeInterval(ctr.clock.now()-o.began)
		o.mu.Unlock()

		next := time.NewTimer(pause)
		done := make(chan struct{})
		ctr.spawn(func() {
			defer close(done)
			began := ctr.clock.now()
			switch l, err := ctr.connect(ctr.life); {
			case err != nil:
				ctr.failedToConnect(err, began)
			case !o.isDown():
				l.close() // another attempt got through before
			default:
				ctr.addSpare(l)
				ctr.connected()
			}
		})
		patience := time.NewTimer(max(probePatience, ctr.cfg.ConnectTimeout/8))
		select {
		case <-done:
		case <-over:
		case <-patience.C:
		case <-ctr.life.Done():
		}
		patience.Stop()
		select {
		case <-next.C:
		case <-over:
		case <-ctr.life.Done():
		}
		next.Stop()
	}
}
