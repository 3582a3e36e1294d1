// proclist.go is what internal/proclist is given of the pool, and asked by it: how it
// opens a connection to ask the server by, which connections wait for a reply, and which
// were abandoned.

package connector

import (
	"context"
	"errors"
	"iter"
	"os"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/internal/proclist"
)

// How long an orphan is kept while the server cannot be asked.
const (
	poolReapLimit = time.Hour   // of a Pool, which its owner closes
	bareReapLimit = time.Minute // of a connector that may be wrapped by one that hides its Close
)

// initProclist readies a host's reaper and its stall checks, after the gate. ServePool changes
// the reapers' limit.
func (ctr *Connector) initProclist(h *host, reapLimit time.Duration) {
	env := &proclist.Env{Ctx: ctr.Ctx, Clock: ctr.clock, Log: ctr.Cfg.Log, Addr: h.addr, PingTimeout: ctr.Cfg.PingTimeout,
		Counters: &ctr.Stats.Counters, OpenSide: func(ctx context.Context) (*proclist.Side, error) { return ctr.openOrBorrowSide(ctx, h) },
		Trace: ctr.Tracer.backgroundEvent, Spawn: ctr.spawn}
	h.reaper = proclist.Reaper{Env: env, KeepFor: reapLimit, OutageEnd: ctr.Outage.End}
	if ctr.hostSet != nil { // that is of all hosts, and says nothing of one
		h.reaper.OutageEnd = func() <-chan struct{} { return nil }
	}
	h.stalls = proclist.Stalls{Env: env, After: ctr.Cfg.StallAfter}
}

// drainReapers waits until nothing is left to kill, for PingTimeout at most.
func (ctr *Connector) drainReapers() {
	var all sync.WaitGroup
	for _, h := range ctr.hosts() {
		all.Go(func() { h.reaper.Drain(ctr.Cfg.PingTimeout) })
	}
	all.Wait()
}

// AwaitOrphan waits until the orphan that a unit left, nil for none, is dealt with, or the
// pool has left its host, where its locks are in nobody's way; for PingTimeout at most. It
// counts as waiting for the server, so that the prober dials.
func (ctr *Connector) AwaitOrphan(ctx context.Context, o *proclist.Orphan) {
	if o == nil {
		return
	}
	defer ctr.Outage.Join()()
	ctx, cancel := context.WithTimeout(ctx, ctr.Cfg.PingTimeout)
	defer cancel()
	for ctx.Err() == nil {
		left, changed := ctr.isLeft(o.Host())
		if left {
			return
		}
		select {
		case <-o.Done():
			return
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// abandon hands what the connection may have left on the server to the reaper.
func (c *conn) abandon() { c.setUnitOrphan(c.ctr.abandon(&c.link, c.transaction.open)) }

// abandon has the server's thread of a link that was given up killed, in the
// background. It returns nil where that cannot be done: for a link that livepool did
// not dial, or with KillAbandoned off.
func (ctr *Connector) abandon(l *link, inTx bool) *proclist.Orphan {
	if !ctr.Cfg.KillAbandoned || !ctr.IsMySQL || l.threadID() == 0 || l.thread == nil {
		return nil
	}
	return l.host.reaper.Abandon(l.thread, inTx)
}

// findStalls has the server asked about connections that wait for a reply for too long.
// It returns how long until it must run again.
func (m *maintainer) findStalls(all []*conn) time.Duration {
	if !m.ctr.IsMySQL || !m.ctr.ownDialer {
		return clock.Never
	}
	wait := clock.Never
	for _, h := range m.ctr.hosts() {
		wait = min(wait, h.stalls.Look(threadsTo(h, all)))
	}
	return wait
}

// threadsTo are the threads of those connections that are to a host.
func threadsTo(h *host, all []*conn) iter.Seq[*proclist.Thread] {
	return func(yield func(*proclist.Thread) bool) {
		for _, c := range all {
			if w := c.currentThread.Load(); w != nil && w.Host == h.index && !yield(w) {
				return
			}
		}
	}
}

// openOrBorrowSide opens one, or borrows an idle one of the pool where the server refuses
// another (max_connections, max_user_connections).
func (ctr *Connector) openOrBorrowSide(ctx context.Context, h *host) (*proclist.Side, error) {
	s, err := ctr.openSide(ctx, h)
	if err == nil || ctr.shortageOf(err) != outage.NoRoom {
		return s, err
	}
	if own := ctr.borrowSide(ctx, h); own != nil {
		return own, nil
	}
	return nil, err
}

// openSide opens one to the host within ConnectTimeout, but not during an outage.
func (ctr *Connector) openSide(ctx context.Context, h *host) (*proclist.Side, error) {
	l, err := ctr.dialSide(ctx, h)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ctr.Cfg.ConnectTimeout)
	defer cancel()
	s := &proclist.Side{Conn: &l.driverConn, Wire: l.wire, Close: func(error) { l.close() }}
	if err := ctr.identifySide(ctx, s); err != nil {
		l.close()
		return nil, err
	}
	return s, nil
}

// tellsOfPool says whether what came of a connection to the host that is not for the pool says
// something of the pool's outages: with several hosts only its failure does, and only where the
// host is the primary.
func (ctr *Connector) tellsOfPool(h *host, err error) bool {
	return ctr.hostSet == nil || err != nil && ctr.isPrimary(h)
}

// dialSide opens a connection to the host that is not for the pool.
func (ctr *Connector) dialSide(ctx context.Context, h *host) (link, error) {
	l, err := ctr.openQueued(ctx, h)
	if ctr.tellsOfPool(h, err) {
		ctr.noteSide(&l, err)
	}
	return l, err
}

// noteSide notes what came of a connection that is not for the pool, and says something of its
// outages.
func (ctr *Connector) noteSide(l *link, err error) {
	switch {
	case err == nil:
		ctr.reached(l)
	case errors.As(err, new(*outage.Error)):
		ctr.Outage.RequestProbe()
	case errors.Is(err, os.ErrDeadlineExceeded), mysqlerr.IsTooManyConnections(err):
		// A silent server may only be busy, and a full one has room for the pool's own:
		// neither is an outage.
	default:
		ctr.recordConnectFailure(err)
	}
}

// borrowSide reserves an idle connection to the host, as a background ping does. It
// returns nil if there is none.
func (ctr *Connector) borrowSide(ctx context.Context, h *host) *proclist.Side {
	for _, c := range ctr.snapshot() {
		var l link
		var v *reservation // nil: it is not idle
		c.reserveIdle(func() {
			if !c.unconnected && c.host == h {
				v, l = &reservation{done: make(chan struct{})}, c.link
				c.reservation = v
			}
		})
		if v == nil {
			continue
		}
		giveBack := func(err error) {
			if err == nil {
				l.lastRoundTrip = ctr.clock.Now()
			}
			if !c.release(v, l, err == nil) {
				l.close()
			}
		}
		s := &proclist.Side{Conn: &l.driverConn, Wire: l.wire, Borrowed: true, Close: giveBack}
		sent := ctr.clock.Now()
		bounded, cancel := context.WithTimeout(ctx, ctr.Cfg.PingTimeout)
		var err error
		if l.autocommitOff { // a query would begin a transaction
			err = l.setAutocommit(bounded, true)
		}
		if err == nil {
			err = ctr.identifySide(bounded, s)
		}
		cancel()
		if err == nil {
			return s
		}
		ctr.recordDiscard(&l, ctr.judgePing(&l, sent, err))
		giveBack(err)
	}
	return nil
}

// identifySide asks the server who it is. A server that refuses to say is asked all the
// same.
func (ctr *Connector) identifySide(ctx context.Context, s *proclist.Side) error {
	facts, _, _, err := queryFacts(ctx, s.Conn, "", "")
	if err == nil {
		err = s.Identify(ctx, ctr.clock, &facts.identity)
	}
	if driverconn.IsAnswer(err) {
		return nil
	}
	return err
}
