// hostwatch.go looks at the hosts that the pool does not use: two that both take writes are
// two truths, of which somebody must be told.

package connector

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// The pauses between two looks at a host that does not answer.
const (
	watchFirst   = time.Second
	watchTold    = 4 * watchFirst // when it is told
	watchLongest = time.Minute
)

// watchOthers looks once at each host but the primary, and again as long as one of the two
// does not answer. It is called whenever another host becomes the primary. A connector without
// a Pool has nothing in the background.
func (ctr *Connector) watchOthers(primary *host) {
	if ctr.maintainer == nil {
		return
	}
	for _, h := range ctr.presentHosts() {
		if h != primary {
			ctr.spawn(func() { ctr.watchHost(h, primary) })
		}
	}
}

func (ctr *Connector) watchHost(h, primary *host) {
	isPrimary := func() bool { return ctr.isPrimary(primary) && !ctr.InCluster.Load() }
	for pause := watchFirst; ; pause = min(2*pause, watchLongest) {
		_, changed := ctr.hostSet.Watch()
		if isPrimary() {
			clock.Wait(ctr.Ctx, changed, pause) // also before the first look: a demotion may be under way
		}
		if ctr.Ctx.Err() != nil || !isPrimary() || ctr.hostSet.IsGone(h.index) {
			return
		}
		other, server, err := ctr.askHost(h)
		if err != nil {
			if pause == watchTold && isPrimary() && ctr.Ctx.Err() == nil {
				ctr.Cfg.Log.Warn("livepool: a host of the list cannot be asked for its role, so it could not take over if it had to",
					slog.String("addr", ctr.addr), slog.String("host", h.addr), slog.Any("cause", err))
			}
			continue
		}
		if !other || ctr.isNameOfSeveral(primary) {
			return
		}
		stays, itself, _ := ctr.askHost(primary)
		if server != "" && server == itself { // one server with two addresses
			return
		}
		if stays && isPrimary() { // else this is a failover
			ctr.Cfg.Log.Warn("livepool: two hosts take writes (read_only is off on both), and the pool stays with the first; "+
				"is the other one to be a replica, or the pool to use all (pool_target=any)?",
				slog.String("addr", ctr.addr), slog.String("host", primary.addr), slog.String("other", h.addr))
			return
		}
	}
}

// askHost asks a host on a new connection whether it takes writes, and if so for its server's name.
func (ctr *Connector) askHost(h *host) (takesWrites bool, server string, err error) {
	ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.ConnectTimeout)
	defer cancel()
	won, failed := ctr.raceHosts(ctx, []int{h.index}, ctr.headStart, isWritable)
	if won != nil {
		defer won.Value.close()
		return true, ctr.nameOf(ctx, &won.Value.link), nil
	}
	if err = errHostSilent; len(failed) > 0 && failed[0].Err != nil {
		err = failed[0].Err
	}
	if errors.As(err, new(roleError)) {
		err = nil
	}
	return false, "", err // one that refuses the login has not said
}

// nameOf is the name of a new connection's server, "" if it does not say.
func (ctr *Connector) nameOf(ctx context.Context, l *link) string {
	switch {
	case l.early != nil:
		return l.early.facts.name()
	case ctr.servers.askNothing.Load():
		return ""
	}
	facts, _, _, _ := queryFacts(ctx, &l.driverConn, "", "")
	return facts.name()
}
