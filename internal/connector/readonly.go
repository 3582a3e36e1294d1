// readonly.go is about servers that take no writes: replicas, a demoted primary, a full
// disk. The units that were refused wait until the prober sees that writes are taken;
// reads go on.

package connector

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/driverconn"
)

// RecordWritable lets the units that wait for writes go on.
func (ctr *Connector) RecordWritable() {
	ctr.demotion.clear()
	ctr.Outage.WritesTaken()
}

// AwaitWrites waits for a server that takes writes, until the deadline; cause is the refusal
// of one. Where there are other hosts none is opened to one that takes none.
func (ctr *Connector) AwaitWrites(ctx context.Context, deadline time.Time, cause error) {
	if ctr.followsPrimary() {
		ctr.Outage.AwaitServer(ctx, deadline)
		return
	}
	ctr.Outage.AwaitWrites(ctx, deadline, cause)
}

// writesReconnectEvery is how often the prober asks on a new connection: its old one may
// lead to a server that stays read-only, while the address leads to another one by now.
const writesReconnectEvery = time.Second

// AskForWrites asks once whether writes are taken.
func (p *probedServer) AskForWrites(cause error) {
	ctr, now := p.ctr, p.ctr.clock.Now()
	if p.link.driverConn.Conn == nil || now-p.openedAt > writesReconnectEvery {
		l, err := ctr.open(ctr.Ctx, nil, 0, noTurn)
		if err != nil {
			ctr.recordConnectFailure(err)
			return
		}
		p.link.close()
		p.link, p.openedAt = l, now
		ctr.reached(&l)
	}
	switch taken, err := p.link.isWritable(ctr, cause); {
	case err != nil:
		p.Release()
	case taken:
		ctr.addSpare(p.link)
		p.link = link{}
		ctr.RecordWritable()
	}
}

// Release closes the connection on which it asked, if it has one.
func (p *probedServer) Release() {
	p.link.close()
	p.link = link{}
}

// readOnlyQuery asks for the variables that make a server refuse writes. Only MySQL has,
// and sees, the last one. A Galera node that does no work refuses what reads of a table.
const (
	readOnlyQuery   = "SELECT " + readOnlyColumns
	readOnlyColumns = "@@GLOBAL.read_only, @@GLOBAL.innodb_read_only /*!50708 , @@GLOBAL.super_read_only */ FROM (SELECT 1) AS me"
)

// isWritable asks the link's server whether it takes writes; cause is its refusal of one.
// A server that refuses the question counts as read-only: only a unit's own try shows.
func (l *link) isWritable(ctr *Connector, cause error) (bool, error) {
	if !ctr.IsMySQL {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.PingTimeout)
	defer cancel()
	var my *mysql.MySQLError
	isPrivileged := errors.As(cause, &my) && strings.Contains(my.Message, "--super-read-only")
	taken, err := l.takesWrites(ctx, isPrivileged)
	if driverconn.IsAnswer(err) {
		err = nil
	}
	return taken, err
}

// takesWrites asks the link's server whether it takes writes. super_read_only alone refuses a
// user who is privileged.
func (l *link) takesWrites(ctx context.Context, isPrivileged bool) (bool, error) {
	row, err := l.driverConn.QueryRow(ctx, readOnlyQuery)
	if err != nil {
		return false, err
	}
	if len(row) == 3 && isPrivileged {
		row = row[2:]
	}
	return !saysReadOnly(row), nil
}

// saysReadOnly says whether one of these variables is on.
func saysReadOnly(values []string) bool {
	return slices.ContainsFunc(values, func(v string) bool { return v != "0" && v != "" && !strings.EqualFold(v, "OFF") })
}
