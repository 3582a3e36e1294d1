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

// askEvery is the time between two questions: servers tell a lag in whole seconds. It grows to
// askSeldom while the host cannot be asked.
const (
	askEvery  = time.Second
	askSeldom = 8 * askEvery
)

// asker asks one host while it is in use.
type asker struct {
	ctr      *Connector
	host     *host
	link     link          // on which it asks; none before the first question
	openedAt time.Duration // when the link was
	isLeft   bool          // the host is left, and that was told; some of its connections may still be in use
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
	switch {
	case err == nil, a.isLeft:
		return askEvery
	case err == errElsewhere:
		return watchLongest // where servers with different roles share an address the next one may be another
	}
	a.close()
	if err == errUnused {
		return askEvery
	}
	return min(2*last, askSeldom)
}

func (a *asker) close() {
	a.link.close()
	a.link = link{}
}

var (
	// errUnused: the pool does not use the host.
	errUnused = errors.New("no connection")
	// errElsewhere: the host's address leads to another server than before.
	errElsewhere = errors.New("another server")
)

// ask asks once. It returns a roleError if the host is not what is wanted. An address may lead to
// another server than before, while connections to that remain: so the link is no older than the
// pool's connections, and what it says of a demotion has to be said on a new one, too.
func (a *asker) ask() error {
	ctr, h, asked := a.ctr, a.host, a.ctr.clock.Now()
	oldest := ctr.oldestConn(h)
	switch {
	case oldest == clock.Never, ctr.followsPrimary() && !ctr.isPrimary(h):
		return errUnused
	case ctr.isNameOfSeveral(h):
		return errUnused
	case a.link.generation != h.generation.Load(), oldest > a.openedAt:
		a.close()
	}
	ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.ConnectTimeout)
	defer cancel()
	isNew, takesWrites, err := a.askRole(ctx)
	isDemoted := err == nil && !takesWrites && ctr.followsPrimary()
	if isDemoted && !isNew {
		a.close()
		if _, takesWrites, err = a.askRole(ctx); err == nil && takesWrites {
			ctr.retire(h)
			return errElsewhere
		}
	}
	switch {
	case err != nil:
		return err
	case isDemoted:
		return newRoleError(false, asked)
	case ctr.followsPrimary(), takesWrites: // which has no lag
		return nil
	}
	return ctr.checkLag(ctx, &a.link)
}

// askRole asks whether the host takes writes, on a new link if there is none.
func (a *asker) askRole(ctx context.Context) (isNew, takesWrites bool, err error) {
	if a.link.driverConn.Conn == nil {
		isNew, a.openedAt = true, a.ctr.clock.Now()
		if a.link, err = a.ctr.open(ctx, a.host, 0, noTurn); err != nil {
			return true, false, err
		}
		a.ctr.warnOfPrivilege(ctx, &a.link)
	}
	takesWrites, err = a.link.takesWrites(ctx, false)
	return isNew, takesWrites, err
}

// isInUse says whether the pool has a connection to a host.
func (ctr *Connector) isInUse(h *host) bool { return ctr.oldestConn(h) < clock.Never }

// oldestConn is when the oldest of the pool's connections to a host was opened, clock.Never if
// there is none.
func (ctr *Connector) oldestConn(h *host) time.Duration {
	oldest := clock.Never
	for w := range threadsTo(h, ctr.snapshot()) {
		oldest = min(oldest, w.BornAt)
	}
	return oldest
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
