package connector

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
	"github.com/livepool/livepool/trace"
)

// counters are the live values behind Stats.
type counters struct {
	proclist.Counters
	Opened, Reused, ConnectFailed                      atomic.Int64
	Pings, KeptAlive, Swept, Deaths, Resent, Leaks     atomic.Int64
	Retried, Poisoned, CommitsUnknown, CommitsResolved atomic.Int64
	FromReplica                                        atomic.Int64
	Discards                                           [verdicts]atomic.Int64
}

// UncountedConns completes the counts: the checkouts, those of connections that exist among
// them, and by how many the idle connections exceed those that database/sql counts. It does not
// count the spares, and counts idle conns that have no link.
func (ctr *Connector) UncountedConns() (reused int64, idle int) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	reused = ctr.Stats.Reused.Load()
	for c := range ctr.conns {
		reused += c.reuses.Load()
		switch isIdle := !isCheckedOut(c.state.Load()); {
		case isIdle && c.spare && c.hasLink.Load():
			idle++
		case isIdle && !c.spare && !c.hasLink.Load():
			idle--
		}
	}
	return reused, idle
}

// recordDeath records a dead connection, once, and what it implies for the others. since
// is when a silence began, at the latest, or when a hang-up was found.
func (ctr *Connector) recordDeath(l *link, kind wire.Loss, since time.Duration, cause error) {
	if l.lossReported {
		return
	}
	l.lossReported = true
	ctr.Outage.SlowDials()
	defer ctr.maintainer.wake()
	ctr.Stats.Deaths.Add(1)
	if ctr.Tracer.HasEvents() {
		ctr.Tracer.backgroundEvent(trace.Death{Conn: ctr.traced(l), Cause: cause})
	}
	ctr.logNews(l, ctr.news.record(kind, since, ctr.clock.Now()),
		"livepool: a connection was found dead; the others are checked before they are handed out", cause)
}

// logNews logs a loss: the first of a series as a warning, the others at debug level.
func (ctr *Connector) logNews(l *link, isFirst bool, text string, cause error) {
	level := slog.LevelDebug
	if isFirst {
		level = slog.LevelWarn
	}
	attrs := ctr.describe(l)
	if cause != nil {
		attrs = append(attrs, slog.Any("cause", cause))
	}
	ctr.Cfg.Log.Log(context.Background(), level, text, attrs...)
}
