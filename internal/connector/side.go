// side.go is the connection that asks the server about the pool's other connections,
// and kills the threads of abandoned ones: a connection beside the pool, or an idle one
// of the pool where the server accepts no more.

package connector

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
)

// side is such a connection.
type side struct {
	ctr           *Connector
	link          link
	facts         *serverFacts
	view          clientView
	direct        bool
	serverStarted time.Duration // -clock.Never if the server does not say

	returnToPool func(good bool) // nil for one beside the pool
}

// openOrBorrowSide opens one, or borrows an idle one of the pool where the server refuses
// another (max_connections, max_user_connections).
func (ctr *Connector) openOrBorrowSide(ctx context.Context) (*side, error) {
	s, err := ctr.openSide(ctx)
	if err == nil || ctr.shortageOf(err) != outage.NoRoom {
		return s, err
	}
	if own := ctr.borrowSide(ctx); own != nil {
		return own, nil
	}
	return nil, err
}

// openSide opens one within ConnectTimeout, but not during an outage.
func (ctr *Connector) openSide(ctx context.Context) (*side, error) {
	s := &side{ctr: ctr}
	l, err := ctr.openQueued(ctx, true)
	if err != nil {
		switch {
		case errors.As(err, new(*outage.Error)):
			ctr.Outage.RequestProbe()
		case errors.Is(err, os.ErrDeadlineExceeded), mysqlerr.IsTooManyConnections(err):
			// A silent server may only be busy, and a full one has room for the pool's own:
			// neither is an outage.
		default:
			ctr.recordConnectFailure(err)
		}
		return nil, err
	}
	ctr.Outage.Connected()
	s.link = l
	ctx, cancel := context.WithTimeout(ctx, ctr.Cfg.ConnectTimeout)
	defer cancel()
	if err := s.identify(ctx); err != nil && !driverconn.IsAnswer(err) {
		s.link.close()
		return nil, err
	}
	return s, nil
}

// borrowSide reserves an idle connection of the pool, as a background ping does. It
// returns nil if there is none.
func (ctr *Connector) borrowSide(ctx context.Context) *side {
	for _, c := range ctr.snapshot() {
		var s *side
		c.reserveIdle(func() {
			if c.unconnected {
				return
			}
			v := &reservation{done: make(chan struct{})}
			c.reservation = v
			s = &side{ctr: ctr, link: c.link}
			s.returnToPool = func(good bool) {
				if !c.release(v, s.link, good) {
					s.link.close()
				}
			}
		})
		if s == nil {
			continue
		}
		sent := ctr.clock.Now()
		bounded, cancel := context.WithTimeout(ctx, ctr.Cfg.PingTimeout)
		err := s.identify(bounded)
		cancel()
		if err == nil || driverconn.IsAnswer(err) {
			return s
		}
		ctr.recordDiscard(&s.link, ctr.judgePing(&s.link, sent, err))
		s.returnToPool(false)
	}
	return nil
}

// identify asks the server who it is. Where it refuses to say, only a beacon proves
// anything.
func (s *side) identify(ctx context.Context) (err error) {
	s.serverStarted = -clock.Never
	if s.facts, _, err = queryFacts(ctx, &s.link.driverConn, ""); err != nil {
		return err
	}
	if s.view, err = queryView(ctx, &s.link.driverConn); err != nil {
		return err
	}
	s.direct = s.view.isDirect(s.link.wire) && s.facts.isHandshakeID(s.link.wire)
	row, err := s.link.driverConn.QueryRow(ctx, "SHOW GLOBAL STATUS LIKE 'Uptime'")
	if err != nil {
		return err
	}
	if seconds, err := strconv.Atoi(row[len(row)-1]); err == nil {
		s.serverStarted = s.ctr.clock.Now() - time.Duration(seconds)*time.Second
	}
	return nil
}

// close closes or returns it. err is the error of the last question, nil if it was
// answered.
func (s *side) close(err error) {
	switch {
	case s == nil:
	case s.returnToPool == nil:
		s.link.close()
	default:
		if err == nil {
			s.link.lastRoundTrip = s.ctr.clock.Now()
		}
		s.returnToPool(err == nil)
	}
}

// allowsMultiStatements says whether several statements may be sent at a time.
func (s *side) allowsMultiStatements() bool { return s.link.wire != nil && s.link.wire.MultiStatements }
