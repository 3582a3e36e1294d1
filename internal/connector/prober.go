// prober.go is what the gate's prober asks of the server. readonly.go has the question
// for writes.

package connector

import (
	"time"
)

// probedServer is an outage.Server. Only the prober uses its link, and when that was
// opened.
type probedServer struct {
	ctr      *Connector
	link     link // on which it asks whether writes are taken
	openedAt time.Duration
}

// Connect dials. The connection that ends the outage becomes a spare.
func (p *probedServer) Connect() {
	ctr := p.ctr
	switch l, err := ctr.open(ctr.Ctx, false, maxUnansweredProbes, noTurn); {
	case err != nil:
		ctr.recordConnectFailure(err)
	case !ctr.Outage.IsDown():
		l.close() // another attempt succeeded before
	default:
		ctr.addSpare(l)
		ctr.recordConnected()
	}
}

func (p *probedServer) Release() {
	p.link.close()
	p.link = link{}
}
