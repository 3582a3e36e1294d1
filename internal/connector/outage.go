// outage.go reports to the gate of internal/outage which connects succeeded and which
// failed, decides what a failure says about the server, and connects for the prober.

package connector

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
)

// newGate makes the connector's gate. The prober calls the user's BeforeConnect once a
// second at most.
func (ctr *Connector) newGate() *outage.Gate {
	s := outage.Settings{Clock: ctr.clock, Closed: ctr.Ctx, Log: ctr.Cfg.Log, Addr: ctr.addr, Spawn: ctr.spawn,
		NewServer: func() outage.Server { return &probedServer{ctr: ctr} }, Ended: ctr.resumeOpening, Trace: ctr.Tracer.backgroundEvent,
		ConnectLimit: ctr.Cfg.ConnectLimit, ConnectTimeout: ctr.Cfg.ConnectTimeout}
	if my := ctr.Cfg.MySQL; my != nil && hasBeforeConnect(my) {
		s.ProbePause = time.Second
	}
	return outage.New(s)
}

// resumeOpening has the maintainer open connections at once: an outage has ended.
func (ctr *Connector) resumeOpening() {
	if m := ctr.maintainer; m != nil {
		m.openPausedUntil.Store(0)
		m.wake()
	}
}

// probedServer is what one run of the prober asks; only that run uses link and openedAt.
type probedServer struct {
	ctr      *Connector
	link     link // on which it asks whether writes are taken
	openedAt time.Duration
}

// Connect dials. The connection that ends the outage becomes a spare.
func (p *probedServer) Connect() {
	ctr := p.ctr
	switch l, err := ctr.open(ctr.Ctx, nil, maxUnansweredProbes, noTurn); {
	case err != nil:
		ctr.recordConnectFailure(err)
	case !ctr.Outage.IsDown():
		l.close() // another attempt succeeded before
	default:
		ctr.addSpare(l)
		ctr.reached(&l)
	}
}

// shortageOf is why an attempt to connect failed: None if the server is there and
// refuses the login, or if the caller gave up.
func (ctr *Connector) shortageOf(err error) outage.Shortage {
	var held *outage.Error
	var connect *ConnectError
	var own *afterConnectError
	var all *hostsError
	switch {
	case errors.As(err, &held):
		return held.Shortage
	case errors.As(err, &all):
		return all.shortage
	case !errors.As(err, &connect), mysqlerr.CallerGaveUp(err), errors.Is(err, ErrPoolClosed), errors.Is(err, errConnectPanicked), errors.As(err, &own), mysqlerr.IsMisconfigured(err):
		return outage.None
	case mysqlerr.Number(err) != 0:
		return ctr.shortageOfCause(err)
	case connect.noReply:
		return outage.NoAnswer
	case connect.notDialed:
		return outage.NoServer
	}
	return ctr.shortageOfCause(err)
}

// shortageOfCause is shortageOf for what the server or the network said.
func (ctr *Connector) shortageOfCause(err error) outage.Shortage {
	var network net.Error
	switch {
	case mysqlerr.IsTooManyConnections(err):
		return outage.NoRoom
	case mysqlerr.Number(err) != 0:
		if ctr.Classify(err)&mysqlerr.ConnDead != 0 || mysqlerr.IsNodeNotReady(err) || mysqlerr.IsWriteRefusal(err) { // it is shutting down, or does no work
			return outage.NoServer
		}
		return outage.None
	case mysqlerr.IsNetworkLoss(err), errors.As(err, &network),
		errors.Is(err, os.ErrDeadlineExceeded), mysqlerr.IsUnwritten(err), errors.Is(err, mysql.ErrInvalidConn):
		return outage.NoServer
	}
	return outage.None
}

// IsUnreachable says whether a connection could not be opened for want of a server that
// takes it.
func (ctr *Connector) IsUnreachable(err error) bool { return ctr.shortageOf(err) != outage.None }

// DialDeadlineKey is the context key by which a session says until when it may wait for a
// connection; a zero time is no limit.
type DialDeadlineKey struct{}

// latestError is the last known error of the outage, for a caller that has waited in vain
// and whose own err is old by now.
func (ctr *Connector) latestError(err error, waited time.Duration) error {
	var held *outage.Error
	if errors.As(ctr.Outage.Cause(), &held) && errors.As(err, new(*ConnectError)) {
		held.Waited = waited
		return held
	}
	return err
}

// recordConnectFailure records a connection that could not be opened, and logs it.
func (ctr *Connector) recordConnectFailure(err error) { ctr.noteConnectFailure(err)() }

// noteConnectFailure is recordConnectFailure without the log line, which it returns.
func (ctr *Connector) noteConnectFailure(err error) (log func()) {
	ctr.Stats.ConnectFailed.Add(1)
	var connect *ConnectError
	if mysqlerr.CallerGaveUp(err) || ctr.Ctx.Err() != nil || !errors.As(err, &connect) {
		return func() {}
	}
	return ctr.Outage.Failed(err, connect.startedAt, ctr.shortageOf(err))
}

// leaveGate records the result of a dial and ends it. A failure is recorded first, as
// Gate.Leave says. That of a cluster node that takes no work is recorded by the caller,
// which tries other nodes.
func (ctr *Connector) leaveGate(took time.Duration, err error) (noted bool) {
	if noted = err != nil && !mysqlerr.IsNodeNotReady(err); noted {
		defer ctr.noteConnectFailure(err)() // notes it now, and logs it after Leave
	}
	ctr.Outage.Leave(took, err == nil)
	return noted
}

// noTurn is for an attempt without a limit. Its caller records the failure.
func noTurn(time.Duration, error) (noted bool) { return false }
