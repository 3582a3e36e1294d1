// side.go is the connection by which the server is asked about the pool's others,
// and by which the threads of those that were abandoned are killed: one beside the
// pool, or one of its own that is idle, where the server takes no more.

package livepool

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"
)

// side is such a connection.
type side struct {
	ctr     *connector
	l       link
	facts   *serverFacts
	seen    seen
	direct  bool
	started time.Duration // when the server was, before all times if it does not say

	giveBack func(good bool) // for one of the pool's own, nil for one beside it
}

// reachServer opens one. Where the server, or the user, has all the connections
// that it may have, an idle one of the pool's serves.
func (ctr *connector) reachServer(ctx context.Context) (*side, error) {
	s, err := ctr.openSide(ctx)
	if err == nil || ctr.lackOf(err) != noRoom {
		return s, err
	}
	if own := ctr.borrowSide(ctx); own != nil {
		return own, nil
	}
	return nil, err
}

// openSide opens one, within ConnectTimeout. In an outage it does not.
func (ctr *connector) openSide(ctx context.Context) (*side, error) {
	s := &side{ctr: ctr}
	l, err := ctr.openInTurn(ctx, true)
	if err != nil {
		switch {
		case errors.As(err, new(*heldError)):
			ctr.outage.inquire(ctr)
		case errors.Is(err, os.ErrDeadlineExceeded), isFull(err):
			// A server that is silent may only be busy, and one that is full has no room
			// for one beside the pool: neither is an outage of the pool's.
		default:
			ctr.failedToConnect(err)
		}
		return nil, err
	}
	ctr.connected()
	s.l = l
	ctx, cancel := context.WithTimeout(ctx, ctr.cfg.ConnectTimeout)
	defer cancel()
	if err := s.introduce(ctx); err != nil && !isAnswer(err) {
		s.l.close()
		return nil, err
	}
	return s, nil
}

// borrowSide reserves an idle connection of the pool, as a ping in the background
// does, nil if there is none.
func (ctr *connector) borrowSide(ctx context.Context) *side {
	for _, c := range ctr.residents() {
		var s *side
		c.visitIdle(func() {
			if c.shell {
				return
			}
			v := &visit{over: make(chan struct{})}
			c.visit = v
			s = &side{ctr: ctr, l: c.link}
			s.giveBack = func(good bool) {
				if !c.leave(v, s.l, good) {
					s.l.close()
				}
			}
		})
		if s == nil {
			continue
		}
		sent := ctr.clock.now()
		bounded, cancel := context.WithTimeout(ctx, ctr.cfg.PingTimeout)
		err := s.introduce(bounded)
		cancel()
		if err == nil || isAnswer(err) {
			return s
		}
		ctr.discarded(&s.l, ctr.pinged(&s.l, sent, err))
		s.giveBack(false)
	}
	return nil
}

// introduce asks the server who it is. One that does not say serves as far as it
// goes: then only a beacon proves anything.
func (s *side) introduce(ctx context.Context) (err error) {
	s.started = -never
	if s.facts, _, err = getFacts(ctx, &s.l.inner, ""); err != nil {
		return err
	}
	if s.seen, err = look(ctx, &s.l.inner); err != nil {
		return err
	}
	s.direct = s.seen.isSelf(s.l.wire) && s.facts.isOwnID(s.l.wire)
	row, err := s.l.inner.askRow(ctx, "SHOW GLOBAL STATUS LIKE 'Uptime'")
	if err != nil {
		return err
	}
	if seconds, err := strconv.Atoi(row[len(row)-1]); err == nil {
		s.started = s.ctr.clock.now() - time.Duration(seconds)*time.Second
	}
	return nil
}

// close ends it. err is what the last question met, nil if it was answered.
func (s *side) close(err error) {
	switch {
	case s == nil:
	case s.giveBack == nil:
		s.l.close()
	default:
		if err == nil {
			s.l.proved = s.ctr.clock.now()
		}
		s.giveBack(err == nil)
	}
}

// takesSeveral says whether several statements may be sent at a time.
func (s *side) takesSeveral() bool { return s.l.wire != nil && s.l.wire.several }
