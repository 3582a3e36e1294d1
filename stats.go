// stats.go counts, and tells the operator when connections begin to die.

package livepool

import (
	"context"
	"database/sql"
	"log/slog"
	"sync/atomic"
	"time"
)

// Stats is what a pool has done since it was opened. The counters only grow.
type Stats struct {
	sql.DBStats

	Opened        int64 // connections opened
	ConnectFailed int64 // attempts to open one that failed
	Pinged        int64 // pings sent to verify a connection
	Deaths        int64 // connections found dead: closed by the other end, or silent

	// Why healthy or idle connections were given up. One that died under a
	// statement is in Deaths alone.

	ClosedByRecycle int64 // Recycle was called
	ClosedByAge     int64 // the age limit of Recycle and RecycleJitter
	ClosedBySilence int64 // unproved when another connection fell silent: not pinged
	ClosedByPeek    int64 // the socket showed that the server had hung up
	ClosedByPing    int64 // the ping failed or was not answered in time
	ClosedByDriver  int64 // the driver said that it is closed, or refused to reset it
	ClosedByCaller  int64 // the caller's context ended during the ping

	Retried         int64 // attempts of units of work after the first
	Poisoned        int64 // transactions that an error ended before their COMMIT
	CommitsUnknown  int64 // COMMITs whose answer was lost
	CommitsResolved int64 // of those, how many were found committed by Once or VerifyCommit

	// Resent counts the failures after which database/sql was told to send the
	// statement again, because it cannot have run or may run twice.
	Resent int64
}

// counters are the live values behind Stats.
type counters struct {
	opened, connectFailed, pings, deaths, resent       atomic.Int64
	retried, poisoned, commitsUnknown, commitsResolved atomic.Int64
	discards                                           [verdicts]atomic.Int64
}

// Stats returns the pool's counters. Deaths growing while Opened grows with it
// is a pool that is doing its work; ConnectFailed growing is a server that
// cannot be reached.
func (p *Pool) Stats() Stats {
	s := &p.ctr.stats
	closed := func(vs ...verdict) (n int64) {
		for _, v := range vs {
			n += s.discards[v].Load()
		}
		return n
	}
	return Stats{
		DBStats:         p.DB.Stats(),
		Opened:          s.opened.Load(),
		ConnectFailed:   s.connectFailed.Load(),
		Pinged:          s.pings.Load(),
		Deaths:          s.deaths.Load(),
		ClosedByRecycle: closed(byRecycle),
		ClosedByAge:     closed(byAge),
		ClosedBySilence: closed(bySilence),
		ClosedByPeek:    closed(byPeek),
		ClosedByPing:    closed(byPing, byTimeout),
		ClosedByDriver:  closed(byDriver),
		ClosedByCaller:  closed(byCaller),
		Resent:          s.resent.Load(),
		Retried:         s.retried.Load(),
		Poisoned:        s.poisoned.Load(),
		CommitsUnknown:  s.commitsUnknown.Load(),
		CommitsResolved: s.commitsResolved.Load(),
	}
}

// died spreads the news of a connection that was found dead, once. since is, of
// a silence, when it had begun at the latest; of a hang-up, when it was found.
func (ctr *connector) died(l *link, how loss, since time.Duration, cause error) {
	if l.mourned {
		return
	}
	l.mourned = true
	ctr.stats.deaths.Add(1)
	level := slog.LevelDebug
	if ctr.news.spread(how, since, ctr.clock.now()) {
		level = slog.LevelWarn // the first of a series tells the story
	}
	ctr.cfg.logger().Log(context.Background(), level,
		"livepool: a connection was found dead; the others are checked before they are handed out",
		append(ctr.describe(l), slog.Any("cause", cause))...)
}
