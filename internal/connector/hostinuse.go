// hostinuse.go asks the hosts that the pool uses whether they are still what is wanted. A
// replica that lags is left, and so is a primary that was demoted: nothing else tells that to a
// pool that only reads, or whose user may write to a server that is read-only.

package connector

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// askEvery is the time between two questions. Servers tell a lag in whole seconds.
const askEvery = time.Second

// asker asks one host while it is in use.
type asker struct {
	ctr    *Connector
	host   *host
	link   link // on which it asks; none before the first question
	isLeft bool // the host is left, and that was told; some of its connections may still be in use
}

// startAsking has a host asked from now on, if the pool wants to know. A connector without a
// Pool has nothing in the background.
func (ctr *Connector) startAsking(h *host) {
	if ctr.maintainer != nil && (ctr.followsPrimary() || ctr.watchesLag()) && h.isAsked.CompareAndSwap(false, true) {
		ctr.spawn(func() {
			defer h.isAsked.Store(false)
			(&asker{ctr: ctr, host: h}).run()
		})
	}
}

// run asks until the pool is closed, or the host is gone. One that cannot be asked is tried
// less and less often.
func (a *asker) run() {
	defer a.close()
	ctr, pause := a.ctr, askEvery
	for clock.Wait(ctr.Ctx, nil, pause); ctr.Ctx.Err() == nil && (!ctr.hostSet.IsGone(a.host.index) || ctr.isInUse(a.host)); clock.Wait(ctr.Ctx, nil, pause) {
		var role roleError
		err := a.ask()
		wasLeft := a.isLeft
		a.isLeft = errors.As(err, &role)
		switch {
		case role.readOnly:
			ctr.noteDemotion(a.host, role.asked, role)
		case a.isLeft && !wasLeft && ctr.Ctx.Err() == nil:
			ctr.retire(a.host)
			ctr.Cfg.Log.Warn("livepool: a replica is left, and its connections are replaced by others",
				slog.String("addr", ctr.addr), slog.String("host", a.host.addr), slog.String("why", role.why))
		}
		pause = a.nextPause(pause, err)
	}
}

// nextPause is how long until the next question. A connection that gave no answer is closed.
func (a *asker) nextPause(last time.Duration, err error) time.Duration {
	if err == nil || a.isLeft {
		return askEvery
	}
	a.close()
	if err == errUnused {
		return askEvery
	}
	return min(2*last, watchLongest)
}

func (a *asker) close() {
	a.link.close()
	a.link = link{}
}

// errUnused: the pool does not use the host.
var errUnused = errors.New("no connection")

// ask asks once. It returns a roleError if the host is not what is wanted.
func (a *asker) ask() (err error) {
	ctr := a.ctr
	if !ctr.isInUse(a.host) || ctr.followsPrimary() && !ctr.isPrimary(a.host) {
		return errUnused
	}
	ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.ConnectTimeout)
	defer cancel()
	asked := ctr.clock.Now()                           // before what follows, or the answer of an old connection might count after a change
	if a.link.generation != a.host.generation.Load() { // the address may lead to another server by now
		a.close()
	}
	if a.link.driverConn.Conn == nil {
		if a.link, err = ctr.open(ctx, a.host, 0, noTurn); err != nil {
			return err
		}
		ctr.warnOfPrivilege(ctx, &a.link)
	}
	takesWrites, err := a.link.takesWrites(ctx, false)
	switch {
	case err != nil:
		return err
	case ctr.followsPrimary() && !takesWrites:
		return newRoleError(false, asked)
	case ctr.followsPrimary(), takesWrites: // which has no lag
		return nil
	}
	return ctr.checkLag(ctx, &a.link)
}

// isInUse says whether the pool has a connection to a host.
func (ctr *Connector) isInUse(h *host) bool {
	for _, c := range ctr.snapshot() {
		if w := c.currentThread.Load(); w != nil && w.Host == h.index {
			return true
		}
	}
	return false
}

// bypassQuery finds the privilege with which MariaDB's read_only is no obstacle (its manual,
// read_only). MySQL has super_read_only for those who have the like.
const bypassQuery = "SELECT privilege_type FROM information_schema.user_privileges " +
	"WHERE grantee = CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') AND privilege_type = 'READ_ONLY ADMIN'"

// warnOfPrivilege warns, once, of a user whose writes a demoted primary does not refuse.
func (ctr *Connector) warnOfPrivilege(ctx context.Context, l *link) {
	if !ctr.followsPrimary() || ctr.InCluster.Load() || ctr.servers.warnedOfPrivilege.Load() {
		return
	}
	if _, err := l.driverConn.QueryRow(ctx, bypassQuery); err == nil && ctr.servers.warnedOfPrivilege.CompareAndSwap(false, true) {
		ctr.Cfg.Log.Warn("livepool: the user may write to a server that is read-only (READ_ONLY ADMIN), so that a primary that was demoted takes its units for up to a second, "+
			"and the new one does not have them; revoke it", slog.String("addr", ctr.addr), slog.String("host", l.host.addr))
	}
}
