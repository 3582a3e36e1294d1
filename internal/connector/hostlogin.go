// hostlogin.go opens a connection where there are several hosts: internal/hosts says in which
// order they are tried, each is asked for its role, and the first that is right wins.

package connector

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/internal/wire"
)

// wanted are the roles that a pool on replicas, or on any host, wants, the better one first.
func (ctr *Connector) wanted() []func(takesWrites bool) bool {
	replica := func(taken bool) bool { return !taken }
	switch ctr.Cfg.Target {
	case hosts.Replica:
		return []func(bool) bool{replica}
	case hosts.PreferReplica:
		return []func(bool) bool{replica, isWritable}
	}
	return []func(bool) bool{func(bool) bool { return true }}
}

// loginToAny makes a connection to one of several hosts, whose role is the wanted one, and
// logs in. It has a little less than ConnectTimeout, so that the error of all hosts tells more
// than that the time is up.
func (ctr *Connector) loginToAny(caller context.Context) (link, error) {
	ctx, cancel := context.WithTimeout(caller, ctr.Cfg.ConnectTimeout*9/10)
	defer cancel()
	login := ctr.loginToWanted
	if ctr.followsPrimary() {
		login = ctr.loginToPrimary
	}
	ctr.resolveNames(ctx)
	won, failed := login(ctx)
	switch {
	case won != nil:
		return won.link, nil
	case caller.Err() != nil:
		return link{}, caller.Err()
	}
	return link{}, ctr.newHostsError(failed)
}

// loginToWanted is loginToAny for a pool on replicas or on any host. What the hosts say that are
// no second choice either is what they said at first.
func (ctr *Connector) loginToWanted(ctx context.Context) (*candidate, []hosts.Result[candidate]) {
	var failed []hosts.Result[candidate]
	wanted := ctr.wanted()
	for i, isRight := range wanted {
		limit := ctr.Cfg.ConnectTimeout // of which ctx leaves less
		if i+1 < len(wanted) {          // a silent host leaves time for the second choice
			limit /= 2
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		won, failures := ctr.raceHosts(ctx, ctr.hostSet.Order(ctr.clock.Now()), ctr.headStart, isRight)
		cancel()
		if won != nil {
			won.Value.isStopgap = i > 0
			return &won.Value, nil
		}
		if i == 0 {
			failed = failures
		}
	}
	return nil, failed
}

// maxRaces is how often the hosts are tried if the primary changes meanwhile.
const maxRaces = 3

// loginToPrimary is loginToAny for the host that takes writes. Where several do, as in a
// cluster, the pool stays with the one that it has, unless that has failed in the same race:
// one that is full, or refuses the login, is there.
func (ctr *Connector) loginToPrimary(ctx context.Context) (*candidate, []hosts.Result[candidate]) {
	var failed []hosts.Result[candidate]
	for range maxRaces {
		before, _ := ctr.hostSet.Watch()
		won, failures := ctr.raceHosts(ctx, ctr.hostSet.Order(ctr.clock.Now()), ctr.headStart, isWritable)
		failed = failures
		if won == nil {
			break
		}
		primary, _ := ctr.hostSet.Watch()
		isThere := primary != won.Host && primary >= 0 && !ctr.hostSet.IsGone(primary) && slices.ContainsFunc(failed, func(f hosts.Result[candidate]) bool { return f.Host == primary && ctr.isThereAfter(f.Err) })
		mayBe := primary < 0 || primary == won.Host || primary == before && !isThere
		if mayBe && ctr.noteHostWon(&won.Value, primary) {
			return &won.Value, nil
		}
		won.Value.close()
		if won.Err = errChanging; isThere {
			won.Err = errStays
		}
		if failed = append(failed, *won); isThere {
			break
		}
	}
	return nil, failed
}

func isWritable(taken bool) bool { return taken }

// isThereAfter says whether a host that has failed with err is what it was: it is full, or
// refuses the login.
func (ctr *Connector) isThereAfter(err error) bool {
	if err == nil || !driverconn.IsAnswer(err) { // nil: it was passed over
		return false
	}
	short := ctr.shortageOfHost(err)
	return short == outage.NoRoom || short == outage.None
}

// headStart is how long a host is waited for before the next one is tried as well: so short that
// ConnectTimeout is enough for all.
func (ctr *Connector) headStart(i int) time.Duration {
	limit := ctr.Cfg.ConnectTimeout / 4
	if !ctr.isPrimary(ctr.hosts()[i]) {
		limit /= time.Duration(ctr.hostSet.Len())
	}
	return min(ctr.hostSet.HeadStart(i), limit)
}

// raceHosts tries these hosts until one is right, and notes what the failures say. One whose
// logins always take long is not silent.
func (ctr *Connector) raceHosts(ctx context.Context, order []int, headStart func(i int) time.Duration, isRight func(takesWrites bool) bool) (*hosts.Result[candidate], []hosts.Result[candidate]) {
	try := func(ctx context.Context, i int, answered func()) (candidate, error) {
		return ctr.tryHost(ctx, ctr.hosts()[i], isRight, answered)
	}
	patience := func(i int) time.Duration { return ctr.hosts()[i].silentLimit(ctr.Cfg.ConnectTimeout) }
	won, failed, losers := hosts.Race(ctx, order, headStart, patience, try, func(c candidate) { c.close() })
	if !ctr.startAttempt(losers) {
		go losers()
	}
	hadTime := ctx.Err() != context.Canceled // who gives up has waited for nobody long enough to know
	for _, f := range failed {
		if f.Err != nil || won != nil || hadTime && f.Waited >= min(hosts.Silence, ctr.Cfg.ConnectTimeout/4) {
			ctr.noteHostFailure(ctr.hosts()[f.Host], f.Err, f.Silent)
		}
	}
	return won, failed
}

// candidate is a connection to a host whose role is right.
type candidate struct {
	link
	asked time.Duration // when it was asked for its role
}

// untilNeeded is the context of a login in a race. It outlives that where the host has greeted,
// for logins that are broken off count against the client (max_connect_errors); and where it was
// given up, to learn how long its logins take.
func (ctr *Connector) untilNeeded(race context.Context, w *atomic.Pointer[wire.Conn]) (_ context.Context, end func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(race), ctr.Cfg.ConnectTimeout)
	stopRace := context.AfterFunc(race, func() {
		if !w.Load().HasSpoken() && !errors.Is(context.Cause(race), hosts.ErrGivenUp) {
			cancel()
		}
	})
	stopClose := context.AfterFunc(ctr.Ctx, cancel)
	return ctx, func() { stopRace(); stopClose(); cancel() }
}

// tryHost logs in to a host and asks for its role.
func (ctr *Connector) tryHost(race context.Context, h *host, isRight func(takesWrites bool) bool, answered func()) (candidate, error) {
	var w atomic.Pointer[wire.Conn]
	bounded, end := ctr.untilNeeded(race, &w)
	defer end()
	l, err := ctr.login(bounded, h, h.connector, &w)
	asked := ctr.clock.Now()
	if err == nil {
		var takesWrites bool
		if takesWrites, err = ctr.askRole(bounded, &l); err == nil && !isRight(takesWrites) {
			err = newRoleError(takesWrites, asked)
		}
		if err == nil && !takesWrites && ctr.watchesLag() {
			err = ctr.checkLag(bounded, &l)
		}
	}
	if err == nil || isAnswerOfHost(err) {
		ctr.hostSet.Answered(h.index)
		answered()
	} else if bounded.Err() != nil || race.Err() != nil {
		err = errHostSilent
	}
	if err != nil {
		l.close()
		return candidate{}, err
	}
	return candidate{l, asked}, nil
}
