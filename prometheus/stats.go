package livepoolprom

import (
	"time"

	"github.com/livepool/livepool"
)

// A family is a metric that livepool.Stats has: a counter if its name ends with _total, a
// gauge otherwise.
type family struct {
	name, help string
	label      string // "" for none
	series     []series
}

// series is what a family has for one value of its label.
type series struct {
	value string
	read  func(stats) float64
}

type stats = *livepool.Stats

func of[T int | int64 | float64](value string, read func(stats) T) series {
	return series{value, func(s stats) float64 { return float64(read(s)) }}
}

func only[T int | int64](read func(stats) T) []series { return []series{of("", read)} }

// families has each number of livepool.Stats by itself. A difference of two counters would
// go back now and then, because they are not read at the same moment, and a counter that goes
// back is a restart to Prometheus.
var families = []family{
	{"connections", "Connections now.", "state", []series{
		of("idle", func(s stats) int { return s.Idle }),
		of("in_use", func(s stats) int { return s.InUse }),
	}},
	{"connections_max", "The most connections that there may be; 0: no limit.", "", only(func(s stats) int { return s.MaxOpenConnections })},
	{"outage", "1 while no connection can be had, or no write is taken.", "missing", []series{
		of("connections", func(s stats) int { return lasts(s.UnreachableSince) }),
		of("writes", func(s stats) int { return lasts(s.WritesRefusedSince) }),
	}},
	{"outages_total", "Times that the server could not be reached, or took no more connections, or no writes.", "", only(func(s stats) int64 { return s.Outages })},

	{"connections_opened_total", "Connections opened.", "", only(func(s stats) int64 { return s.Opened })},
	{"connections_reused_total", "Checkouts of connections that were open already.", "", only(func(s stats) int64 { return s.Reused })},
	{"connect_failures_total", "Attempts to open a connection that failed.", "", only(func(s stats) int64 { return s.ConnectFailed })},
	{"connections_closed_total", "Connections that were given up while nobody used them, by the reason.", "reason", []series{
		of("recycle", func(s stats) int64 { return s.ClosedByRecycle }),
		of("age", func(s stats) int64 { return s.ClosedByAge }),
		of("silence", func(s stats) int64 { return s.ClosedBySilence }),
		of("peek", func(s stats) int64 { return s.ClosedByPeek }),
		of("ping", func(s stats) int64 { return s.ClosedByPing }),
		of("driver", func(s stats) int64 { return s.ClosedByDriver }),
		of("caller", func(s stats) int64 { return s.ClosedByCaller }),
		of("max_idle", func(s stats) int64 { return s.MaxIdleClosed }),
		of("max_idle_time", func(s stats) int64 { return s.MaxIdleTimeClosed }),
		of("max_lifetime", func(s stats) int64 { return s.MaxLifetimeClosed }),
	}},
	{"pings_total", "Pings sent, at a checkout or in the background.", "", only(func(s stats) int64 { return s.Pinged })},
	{"keepalive_pings_total", "Pings sent in the background.", "", only(func(s stats) int64 { return s.KeptAlive })},
	{"deaths_total", "Connections found dead.", "", only(func(s stats) int64 { return s.Deaths })},
	{"swept_total", "Idle connections found dead in the background, before a caller met them.", "", only(func(s stats) int64 { return s.Swept })},
	{"stalled_total", "Connections found dead in the middle of a statement, by StallAfter.", "", only(func(s stats) int64 { return s.Stalled })},
	{"stall_checks_total", "Statements looked up on the server by StallAfter.", "", only(func(s stats) int64 { return s.StallChecks })},
	{"kills_total", "Abandoned connections that were looked for on the server, by what became of them.", "outcome", []series{
		of("killed", func(s stats) int64 { return s.Killed }),
		of("gone", func(s stats) int64 { return s.KillUnneeded }),
		of("unproved", func(s stats) int64 { return s.KillUnproved }),
		of("failed", func(s stats) int64 { return s.KillFailed }),
	}},

	{"waits_total", "Waits: of units for a place in the pool, of whomever for a connection.", "for", []series{
		of("place", func(s stats) int64 { return s.SessionsWaited }),
		of("connection", func(s stats) int64 { return s.WaitCount }),
	}},
	{"wait_seconds_total", "How long those waits were, together.", "for", []series{
		of("place", func(s stats) float64 { return s.SessionWait.Seconds() }),
		of("connection", func(s stats) float64 { return s.WaitDuration.Seconds() }),
	}},
	{"wait_timeouts_total", "Attempts of units that waited for a place in vain, for PoolTimeout.", "", only(func(s stats) int64 { return s.SessionsTimedOut })},
	{"retries_total", "Attempts of units after the first.", "", only(func(s stats) int64 { return s.Retried })},
	{"resends_total", "Failures after which a statement was sent again.", "", only(func(s stats) int64 { return s.Resent })},
	{"poisoned_total", "Transactions that an error ended before their COMMIT.", "", only(func(s stats) int64 { return s.Poisoned })},
	{"commits_unknown_total", "COMMITs whose answer was lost.", "", only(func(s stats) int64 { return s.CommitsUnknown })},
	{"commits_resolved_total", "COMMITs whose answer was lost, and that were found committed by their key.", "", only(func(s stats) int64 { return s.CommitsResolved })},
	{"served_by_replica_total", "Units FromReplica that a replica has served.", "", only(func(s stats) int64 { return s.ServedByReplica })},
	{"leaks_total", "Connections held for longer than LeakAfter.", "", only(func(s stats) int64 { return s.Leaks })},
}

// lasts is 1 during an outage.
func lasts(since time.Time) int {
	if since.IsZero() {
		return 0
	}
	return 1
}
