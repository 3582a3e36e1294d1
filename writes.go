// writes.go is about servers that take no writes: replicas, a primary that is
// being demoted, one that is full. The units that were refused wait until the
// prober sees that writes are taken; reads go on.

package livepool

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// refusesWrites says whether an error is a server's that takes no writes now. A
// transaction that was made read-only by whoever began it (1792) is none.
func refusesWrites(err error) bool {
	switch errorNumber(err) {
	case 1290:
		return Classify(err)&Elsewhere != 0
	case 1836:
		return true
	}
	return false
}

// awaitWrites waits until the server takes writes, of which it refused one with
// cause. It returns false if the deadline or the context ends first.
func (ctr *connector) awaitWrites(ctx context.Context, deadline time.Time, cause error) bool {
	o := &ctr.outage
	o.mu.Lock()
	begins := o.writes.lack == nothing
	if begins {
		o.writes.begin(noWrites, cause, ctr.clock.now())
	}
	o.mu.Unlock()
	if begins {
		ctr.stats.outages.Add(1)
		ctr.tellBeginning(noWrites, cause)
	}
	return ctr.awaitGate(ctx, &o.writes, deadline, o.tries)
}

// freshLook is how often the prober asks on a new connection: the one it has may
// have stayed with a server that will never take writes again, while the address
// leads to another.
// Once in a while one of those who wait tries by himself: a proxy may have the
// prober's questions answered by another server than takes the writes.
const (
	freshLook = time.Second
	ownTry    = 2 * time.Second
)

// askForWrites asks once whether writes are taken, and waits until it is time to
// ask again.
func (p *prober) askForWrites(g *gate) {
	ctr := p.ctr
	now := ctr.clock.now()
	if p.link.inner.Conn == nil || now-p.opened > freshLook {
		l, err := ctr.open(ctr.life, false, 0, noTurn)
		if err != nil {
			ctr.failedToConnect(err)
			p.pause(g)
			return
		}
		p.link.close()
		p.link, p.opened = l, now
		ctr.connected()
	}
	taken, err := p.link.takesWrites(ctr, g.cause)
	switch {
	case err != nil:
		p.link.close()
		p.link = link{}
	case taken:
		ctr.addSpare(p.link)
		p.link = link{}
		ctr.writable()
		return
	}
	if p.tried = max(p.tried, g.began); now-p.tried > ownTry {
		p.tried = now
		select {
		case ctr.outage.tries <- struct{}{}:
		default:
		}
	}
	p.pause(g)
}

// pause is between two questions.
func (p *prober) pause(g *gate) {
	d := min(max((p.ctr.clock.now()-g.began)/150, probeShortest), probeLongest)
	waitFor(p.ctr.life, g.over, d+rand.N(d/5))
}

// writable lets in those who wait for writes.
func (ctr *connector) writable() {
	o := &ctr.outage
	ctr.demotion.ends()
	o.mu.Lock()
	ended := o.end(ctr, &o.writes, ctr.clock.now())
	o.mu.Unlock()
	if ended != nil {
		ctr.tellEnd(ended)
	}
}

// askReadOnly asks for what makes a server refuse writes. Only MySQL has, and is
// shown, the last.
const askReadOnly = "SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_read_only /*!50708 , @@GLOBAL.super_read_only */"

// takesWrites asks the link's server whether it takes writes, of which one was
// refused with cause. A server that cannot be asked is only tried by those who wait.
func (l *link) takesWrites(ctr *connector, cause error) (bool, error) {
	if !ctr.mysql {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctr.life, ctr.cfg.PingTimeout)
	defer cancel()
	row, err := l.inner.askRow(ctx, askReadOnly)
	if err != nil {
		if isAnswer(err) {
			err = nil
		}
		return false, err
	}
	var my *mysql.MySQLError
	if len(row) == 3 && errors.As(cause, &my) && strings.Contains(my.Message, "--super-read-only") {
		row = row[2:] // which is on its way out first; who was refused for it may be let in by the other
	}
	for _, value := range row {
		if value != "0" && value != "" && !strings.EqualFold(value, "OFF") {
			return false, nil
		}
	}
	return true, nil
}
