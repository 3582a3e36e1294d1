package livepoolprom

import (
	"time"

	"github.com/livepool/livepool"
	"github.com/prometheus/client_golang/prometheus"
)

// stat is a metric that is read from livepool.Stats.
type stat struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	labels []string // the values of its labels
	value  func(*livepool.Stats) float64
}

// newStats is the table of those metrics, in the order of livepool.Stats.
func newStats(pool prometheus.Labels) (stats []stat) {
	var desc *prometheus.Desc
	describe := func(name, help string, labels ...string) {
		desc = prometheus.NewDesc("livepool_"+name, help, labels, pool)
	}
	add := func(kind prometheus.ValueType, value func(*livepool.Stats) float64, labels ...string) {
		stats = append(stats, stat{desc, kind, labels, value})
	}
	gauge := func(value func(*livepool.Stats) float64, labels ...string) {
		add(prometheus.GaugeValue, value, labels...)
	}
	counter := func(value func(*livepool.Stats) int64, labels ...string) {
		add(prometheus.CounterValue, func(s *livepool.Stats) float64 { return float64(value(s)) }, labels...)
	}

	describe("connections_max", "The most connections that there may be; 0 for no limit.")
	gauge(func(s *livepool.Stats) float64 { return float64(s.MaxOpenConnections) })
	describe("connections", "Connections now.", "state")
	gauge(func(s *livepool.Stats) float64 { return float64(s.Idle) }, "idle")
	gauge(func(s *livepool.Stats) float64 { return float64(s.InUse) }, "in_use")
	describe("outage", "1 while no connection can be had, or no write is taken.", "of")
	gauge(func(s *livepool.Stats) float64 { return since(s.UnreachableSince) }, "connections")
	gauge(func(s *livepool.Stats) float64 { return since(s.WritesRefusedSince) }, "writes")
	describe("outages_total", "Times that the server could not be reached, or took no more connections, or no writes.")
	counter(func(s *livepool.Stats) int64 { return s.Outages })

	describe("opened_total", "Connections opened.")
	counter(func(s *livepool.Stats) int64 { return s.Opened })
	describe("connect_failed_total", "Attempts to open a connection that failed.")
	counter(func(s *livepool.Stats) int64 { return s.ConnectFailed })
	describe("reused_total", "Checkouts of connections that were open already.")
	counter(func(s *livepool.Stats) int64 { return s.Reused })
	describe("pings_total", "Pings sent, at a checkout or in the background.", "by")
	counter(func(s *livepool.Stats) int64 { return s.Pinged - s.KeptAlive }, "checkout")
	counter(func(s *livepool.Stats) int64 { return s.KeptAlive }, "keepalive")
	describe("deaths_total", "Connections found dead.")
	counter(func(s *livepool.Stats) int64 { return s.Deaths })
	describe("swept_total", "Idle connections found dead in the background, before a caller met them.")
	counter(func(s *livepool.Stats) int64 { return s.Swept })
	describe("stalled_total", "Connections found dead in the middle of a statement, by StallAfter.")
	counter(func(s *livepool.Stats) int64 { return s.Stalled })
	describe("stall_checks_total", "Statements looked up on the server by StallAfter.")
	counter(func(s *livepool.Stats) int64 { return s.StallChecks })
	describe("closed_total", "Connections closed while nobody used them, by the reason.", "reason")
	counter(func(s *livepool.Stats) int64 { return s.ClosedByRecycle }, "recycle")
	counter(func(s *livepool.Stats) int64 { return s.ClosedByAge }, "age")
	counter(func(s *livepool.Stats) int64 { return s.ClosedBySilence }, "silence")
	counter(func(s *livepool.Stats) int64 { return s.ClosedByPeek }, "peek")
	counter(func(s *livepool.Stats) int64 { return s.ClosedByPing }, "ping")
	counter(func(s *livepool.Stats) int64 { return s.ClosedByDriver }, "driver")
	counter(func(s *livepool.Stats) int64 { return s.ClosedByCaller }, "caller")
	counter(func(s *livepool.Stats) int64 { return s.MaxIdleClosed }, "max_idle")
	counter(func(s *livepool.Stats) int64 { return s.MaxIdleTimeClosed }, "idle_time")
	counter(func(s *livepool.Stats) int64 { return s.MaxLifetimeClosed }, "max_lifetime")
	describe("kills_total", "Abandoned connections that were looked for on the server, by what became of them.", "outcome")
	counter(func(s *livepool.Stats) int64 { return s.Killed }, "killed")
	counter(func(s *livepool.Stats) int64 { return s.KillUnneeded }, "gone")
	counter(func(s *livepool.Stats) int64 { return s.KillUnproved }, "unproved")
	counter(func(s *livepool.Stats) int64 { return s.KillFailed }, "failed")

	describe("waits_total", "Waits: of units for a place in the pool, of others for a connection.", "of")
	counter(func(s *livepool.Stats) int64 { return s.SessionsWaited }, "units")
	counter(func(s *livepool.Stats) int64 { return s.WaitCount }, "others")
	describe("wait_seconds_total", "How long those waited together.", "of")
	add(prometheus.CounterValue, func(s *livepool.Stats) float64 { return s.SessionWait.Seconds() }, "units")
	add(prometheus.CounterValue, func(s *livepool.Stats) float64 { return s.WaitDuration.Seconds() }, "others")
	describe("wait_timeouts_total", "Units that waited in vain for PoolTimeout.")
	counter(func(s *livepool.Stats) int64 { return s.SessionsTimedOut })
	describe("retries_total", "Attempts of units of work after the first.")
	counter(func(s *livepool.Stats) int64 { return s.Retried })
	describe("resends_total", "Failures after which a statement was sent again.")
	counter(func(s *livepool.Stats) int64 { return s.Resent })
	describe("poisoned_total", "Transactions that an error ended before their COMMIT.")
	counter(func(s *livepool.Stats) int64 { return s.Poisoned })
	describe("commits_unknown_total", "COMMITs whose answer was lost.")
	counter(func(s *livepool.Stats) int64 { return s.CommitsUnknown })
	describe("commits_resolved_total", "COMMITs whose answer was lost that were found committed by their key.")
	counter(func(s *livepool.Stats) int64 { return s.CommitsResolved })
	describe("leaks_total", "Connections held for longer than LeakAfter.")
	counter(func(s *livepool.Stats) int64 { return s.Leaks })
	return stats
}

func since(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return 1
}
