// readonly.go is about servers that take no writes: replicas, a demoted primary, a full
// disk. The units that were refused wait until the prober sees that writes are taken;
// reads go on.

package connector

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/outage"
)

// AwaitWrites waits until the server takes writes; cause is its refusal of one. It
// returns false if the deadline or the context ends first.
func (ctr *Connector) AwaitWrites(ctx context.Context, deadline time.Time, cause error) bool {
	if ctr.Outage.WritesRefused(cause) {
		ctr.Stats.Outages.Add(1)
		ctr.reportOutageStart(outage.NoWrites, cause)
	}
	return ctr.Outage.AwaitWrites(ctx, deadline)
}

// RecordWritable lets the units that wait for writes go on.
func (ctr *Connector) RecordWritable() {
	ctr.demotion.clear()
	ctr.reportOutageEnd(ctr.Outage.WritesTaken())
}

// writesReconnectEvery is how often the prober asks on a new connection: its old one may
// lead to a server that stays read-only, while the address leads to another one by now.
const writesReconnectEvery = time.Second

// AskForWrites asks once whether writes are taken.
func (p *probedServer) AskForWrites(cause error) (taken bool, err error) {
	ctr := p.ctr
	now := ctr.clock.Now()
	if p.link.driverConn.Conn == nil || now-p.openedAt > writesReconnectEvery {
		l, err := ctr.open(ctr.Ctx, false, 0, noTurn)
		if err != nil {
			ctr.recordConnectFailure(err)
			return false, err
		}
		p.link.close()
		p.link, p.openedAt = l, now
		ctr.recordConnected()
	}
	taken, err = p.link.isWritable(ctr, cause)
	switch {
	case err != nil:
		p.Release()
	case taken:
		ctr.addSpare(p.link)
		p.link = link{}
		ctr.RecordWritable()
	}
	return taken, nil
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
