// readonly.go is about servers that take no writes: replicas, a demoted primary, a full
// disk. The units that were refused wait until the prober sees that writes are taken;
// reads go on.

package connector

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/clock"
)

// AwaitWrites waits until the server takes writes; cause is its refusal of one. It
// returns false if the deadline or the context ends first.
func (ctr *Connector) AwaitWrites(ctx context.Context, deadline time.Time, cause error) bool {
	o := &ctr.Outage
	o.mu.Lock()
	isStart := o.writes.shortage == noShortage
	if isStart {
		o.writes.shut(noWrites, cause, ctr.clock.Now())
	}
	o.mu.Unlock()
	if isStart {
		ctr.Stats.Outages.Add(1)
		ctr.reportOutageStart(noWrites, cause)
	}
	return ctr.awaitGate(ctx, &o.writes, deadline, o.singleTries)
}

// Every writesReconnectEvery the prober asks on a new connection: its old one may lead to
// a server that stays read-only, while the address leads to another one by now. Every
// singleTryEvery one of the waiting units tries by itself: a proxy may send the prober's
// questions to another server than the writes.
const (
	writesReconnectEvery = time.Second
	singleTryEvery       = 2 * time.Second
)

// probeWrites asks once whether writes are taken, and waits for its next turn.
func (p *prober) probeWrites(g *gate) {
	ctr := p.ctr
	now := ctr.clock.Now()
	if p.link.driverConn.Conn == nil || now-p.openedAt > writesReconnectEvery {
		l, err := ctr.open(ctr.Ctx, false, 0, noDialLimit)
		if err != nil {
			ctr.recordConnectFailure(err)
			p.pause(g)
			return
		}
		p.link.close()
		p.link, p.openedAt = l, now
		ctr.recordConnected()
	}
	isTaken, err := p.link.isWritable(ctr, g.cause)
	switch {
	case err != nil:
		p.link.close()
		p.link = link{}
	case isTaken:
		ctr.addSpare(p.link)
		p.link = link{}
		ctr.RecordWritable()
		return
	}
	if p.lastSingleTry = max(p.lastSingleTry, g.shutAt); now-p.lastSingleTry > singleTryEvery {
		p.lastSingleTry = now
		select {
		case ctr.Outage.singleTries <- struct{}{}:
		default:
		}
	}
	p.pause(g)
}

// pause waits between two questions.
func (p *prober) pause(g *gate) {
	d := min(max((p.ctr.clock.Now()-g.shutAt)/150, probeShortest), probeLongest)
	clock.Wait(p.ctr.Ctx, g.opened, d+rand.N(d/5))
}

// RecordWritable lets the units that wait for writes go on.
func (ctr *Connector) RecordWritable() {
	o := &ctr.Outage
	ctr.demotion.clear()
	o.mu.Lock()
	ended := o.openGate(ctr, &o.writes, ctr.clock.Now())
	o.mu.Unlock()
	if ended != nil {
		ctr.reportOutageEnd(ended)
	}
}

// readOnlyQuery asks for the variables that make a server refuse writes. Only MySQL has,
// and sees, the last one.
const readOnlyQuery = "SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_read_only /*!50708 , @@GLOBAL.super_read_only */"

// isWritable asks the link's server whether it takes writes; cause is its refusal of one.
// A server that refuses the question counts as read-only: only a unit's own try shows.
func (l *link) isWritable(ctr *Connector, cause error) (bool, error) {
	if !ctr.IsMySQL {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.PingTimeout)
	defer cancel()
	row, err := l.driverConn.queryRow(ctx, readOnlyQuery)
	if err != nil {
		if isServerAnswer(err) {
			err = nil
		}
		return false, err
	}
	var my *mysql.MySQLError
	if len(row) == 3 && errors.As(cause, &my) && strings.Contains(my.Message, "--super-read-only") {
		row = row[2:] // super_read_only alone refuses this user
	}
	for _, value := range row {
		if value != "0" && value != "" && !strings.EqualFold(value, "OFF") {
			return false, nil
		}
	}
	return true, nil
}
