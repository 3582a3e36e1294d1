// stats.go has the counters of a pool.

package livepool

import (
	"database/sql"
	"time"

	"github.com/livepool/livepool/internal/connector"
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
// proxy or NAT without the Beacon. CommitsUnknown less CommitsResolved bounds how many
// units are to be looked at by hand.
type Stats struct {
	sql.DBStats

	Opened        int64 // connections opened
	Reused        int64 // checkouts of connections that were open already
	ConnectFailed int64 // attempts to open one that failed
	Outages       int64 // times that the server could not be reached, or took no more connections, or no writes
	Pinged        int64 // pings sent to verify a connection, in the background or by a caller
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

	ServedByReplica int64 // units FromReplica that a replica has served

	// Resent counts the failures after which database/sql was told to send the
	// statement again, because it cannot have run or may run twice.
	Resent int64

	Leaks int64 // connections held for longer than LeakAfter

	// What the server does not give now. Nobody asks it as long as nobody waits for it:
	// Ready asks.

	UnreachableSince   time.Time // since when no connection can be had; zero: there is no such outage
	WritesRefusedSince time.Time // since when it takes no writes; likewise
	OutageCause        string    // why, "" if both are zero
}

// Stats returns the pool's counters, and how many connections there are. It is
// safe for concurrent use.
func (p *Pool) Stats() Stats {
	s := &p.ctr.Stats
	closed := func(vs ...connector.Verdict) (n int64) {
		for _, v := range vs {
			n += s.Discards[v].Load()
		}
		return n
	}
	stats := Stats{
		DBStats:         p.DB.Stats(),
		Opened:          s.Opened.Load(),
		ConnectFailed:   s.ConnectFailed.Load(),
		Outages:         p.ctr.Outage.Outages.Load(),
		Pinged:          s.Pings.Load(),
		KeptAlive:       s.KeptAlive.Load(),
		Deaths:          s.Deaths.Load(),
		Swept:           s.Swept.Load(),
		Stalled:         s.Stalled.Load(),
		StallChecks:     s.StallChecks.Load(),
		ClosedByRecycle: closed(connector.ByRecycle),
		ClosedByAge:     closed(connector.ByAge),
		ClosedBySilence: closed(connector.BySilence),
		ClosedByPeek:    closed(connector.ByPeek),
		ClosedByPing:    closed(connector.ByPing, connector.ByTimeout),
		ClosedByDriver:  closed(connector.ByDriver),
		ClosedByCaller:  closed(connector.ByCaller),
		Killed:          s.Killed.Load(),
		KillUnneeded:    s.KillUnneeded.Load(),
		KillUnproved:    s.KillUnproved.Load(),
		KillFailed:      s.KillFailed.Load(),
		Retried:         s.Retried.Load(),
		Poisoned:        s.Poisoned.Load(),
		CommitsUnknown:  s.CommitsUnknown.Load(),
		CommitsResolved: s.CommitsResolved.Load(),
		ServedByReplica: s.FromReplica.Load(),
		Resent:          s.Resent.Load(),
		Leaks:           s.Leaks.Load(),
	}
	reused, unseen := p.ctr.UncountedConns()
	stats.Reused = reused
	stats.Idle += unseen
	stats.OpenConnections += unseen
	unreachable, readOnly := p.ctr.Outage.Current()
	stats.WritesRefusedSince, stats.OutageCause = readOnly.Began("")
	stats.UnreachableSince, stats.OutageCause = unreachable.Began(stats.OutageCause)
	stats.SessionsWaited, stats.SessionWait, stats.SessionsTimedOut = p.queue.Stats()
	return stats
}
