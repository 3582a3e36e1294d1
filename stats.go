// stats.go counts, and tells the operator when connections begin to die.

package livepool

import (
	"context"
	"database/sql"
	"log/slog"
	"sync/atomic"
	"time"
)

// Stats is what a pool has done since it was opened. The counters only grow, but
// for those of sql.DBStats that say how many there are now.
//
// How to read them: Deaths growing with Opened is a pool that is doing its work,
// and Swept the share of it that no caller noticed. Retried growing with Deaths
// is units that were in the middle of it; without Deaths it is deadlocks, lock
// waits and refusals. ConnectFailed and Outages growing is a server that cannot
// be reached. WaitCount and SessionsWaited growing is a pool that is too small,
// or connections that are held too long: see Leaks. KillUnproved growing is a
// proxy or NAT without the Beacon. CommitsUnknown less CommitsResolved is units
// to be looked at by hand.
type Stats struct {
	sql.DBStats

	Opened        int64 // connections opened
	Reused        int64 // checkouts of connections that were open already
	ConnectFailed int64 // attempts to open one that failed
	Outages       int64 // times that the server could not be reached, or took no more connections, or no writes
	Pinged        int64 // pings sent to verify a connection, by whomever
	KeptAlive     int64 // of those, the ones sent in the background
	Deaths        int64 // connections found dead: closed by the other end, or silent
	Swept         int64 // idle connections found dead in the background, before a caller met them
	Stalled       int64 // connections found dead in the middle of a statement, by StallAfter
	StallChecks   int64 // statements looked up on the server by StallAfter

	// Why healthy or idle connections were given up. One that died under a
	// statement is in Deaths alone; one that was idle too long in MaxIdleTimeClosed.

	ClosedByRecycle int64 // Recycle was called
	ClosedByAge     int64 // the age limit of Recycle and RecycleJitter
	ClosedBySilence int64 // suspect since another connection fell silent, and not kept
	ClosedByPeek    int64 // the socket showed that the server had hung up
	ClosedByPing    int64 // the ping failed or was not answered in time
	ClosedByDriver  int64 // the driver said that it is closed, or refused to reset it
	ClosedByCaller  int64 // the caller's context ended during the ping

	// What became of the abandoned connections that KillAbandoned looked for on
	// the server.

	Killed       int64 // found there, and killed
	KillUnneeded int64 // gone already
	KillUnproved int64 // not killed, because none could be proved to be the one
	KillFailed   int64 // the server refused, or could not be asked

	SessionsWaited   int64         // sessions that had to wait for a place
	SessionWait      time.Duration // how long they waited, together
	SessionsTimedOut int64         // sessions that waited in vain for PoolTimeout

	Retried         int64 // attempts of units of work after the first
	Poisoned        int64 // transactions that an error ended before their COMMIT
	CommitsUnknown  int64 // COMMITs whose answer was lost
	CommitsResolved int64 // of those, how many were found committed by Once or VerifyCommit

	// Resent counts the failures after which database/sql was told to send the
	// statement again, because it cannot have run or may run twice.
	Resent int64

	Leaks int64 // connections held for longer than LeakAfter
}

// counters are the live values behind Stats.
type counters struct {
	opened, reused, connectFailed, outages             atomic.Int64
	pings, keptAlive, swept, deaths, resent, leaks     atomic.Int64
	killed, killUnneeded, killUnproved, killFailed     atomic.Int64
	stallChecks, stalled                               atomic.Int64
	retried, poisoned, commitsUnknown, commitsResolved atomic.Int64
	discards                                           [verdicts]atomic.Int64
}

// Stats returns the pool's counters, and how many connections there are. It is
// safe for concurrent use.
func (p *Pool) Stats() Stats {
	s := &p.ctr.stats
	closed := func(vs ...verdict) (n int64) {
		for _, v := range vs {
			n += s.discards[v].Load()
		}
		return n
	}
	stats := Stats{
		DBStats:         p.DB.Stats(),
		Opened:          s.opened.Load(),
		Reused:          s.reused.Load(),
		ConnectFailed:   s.connectFailed.Load(),
		Outages:         s.outages.Load(),
		Pinged:          s.pings.Load(),
		KeptAlive:       s.keptAlive.Load(),
		Deaths:          s.deaths.Load(),
		Swept:           s.swept.Load(),
		Stalled:         s.stalled.Load(),
		StallChecks:     s.stallChecks.Load(),
		ClosedByRecycle: closed(byRecycle),
		ClosedByAge:     closed(byAge),
		ClosedBySilence: closed(bySilence),
		ClosedByPeek:    closed(byPeek),
		ClosedByPing:    closed(byPing, byTimeout),
		ClosedByDriver:  closed(byDriver),
		ClosedByCaller:  closed(byCaller),
		Killed:          s.killed.Load(),
		KillUnneeded:    s.killUnneeded.Load(),
		KillUnproved:    s.killUnproved.Load(),
		KillFailed:      s.killFailed.Load(),
		Retried:         s.retried.Load(),
		Poisoned:        s.poisoned.Load(),
		CommitsUnknown:  s.commitsUnknown.Load(),
		CommitsResolved: s.commitsResolved.Load(),
		Resent:          s.resent.Load(),
		Leaks:           s.leaks.Load(),
	}
	reused, unseen := p.ctr.uncounted()
	stats.Reused += reused
	stats.Idle += unseen
	stats.OpenConnections += unseen
	stats.SessionsWaited, stats.SessionWait, stats.SessionsTimedOut = p.places.count()
	return stats
}

// uncounted is what makes the counts whole: the checkouts of the connections that
// there are, and how many more idle connections there are than database/sql knows.
// It does not have the spares yet, and has some that are closed but for their shell.
func (ctr *connector) uncounted() (reused int64, idle int) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for c := range ctr.conns {
		reused += c.reused.Load()
		switch isIdle := !held(c.state.Load()); {
		case isIdle && c.spare && c.linked.Load():
			idle++
		case isIdle && !c.spare && !c.linked.Load():
			idle--
		}
	}
	return reused, idle
}

// died spreads the news of a connection that was found dead, once. since is, of
// a silence, when it had begun at the latest; of a hang-up, when it was found.
func (ctr *connector) died(l *link, how loss, since time.Duration, cause error) {
	if l.mourned {
		return
	}
	l.mourned = true
	ctr.outage.trouble()
	defer ctr.maintainer.nudge()
	ctr.stats.deaths.Add(1)
	ctr.tell(l, ctr.news.spread(how, since, ctr.clock.now()),
		"livepool: a connection was found dead; the others are checked before they are handed out", cause)
}

// tell tells the operator of news. The first of a series tells the story.
func (ctr *connector) tell(l *link, first bool, what string, cause error) {
	level := slog.LevelDebug
	if first {
		level = slog.LevelWarn
	}
	about := ctr.describe(l)
	if cause != nil {
		about = append(about, slog.Any("cause", cause))
	}
	ctr.cfg.Log.Log(context.Background(), level, what, about...)
}
