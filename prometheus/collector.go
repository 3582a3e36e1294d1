// Package livepoolprom exports to Prometheus what a livepool.Pool does.
//
//	metrics := livepoolprom.NewCollector("shop")
//	cfg.Tracer = metrics
//	db, err := livepool.OpenConfig(cfg)
//	...
//	metrics.Watch(db)
//	prometheus.MustRegister(metrics)
//
// docs/metrics.md has the table of the metrics. Beside it are a dashboard for Grafana
// (grafana.json) and alert rules (alerts.yml).
package livepoolprom

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/trace"
	"github.com/prometheus/client_golang/prometheus"
)

// Collector has the metrics of one pool. It is a prometheus.Collector, and a Tracer for the
// pool's Config: without that it has what Pool.Stats counts, and nothing of units and times.
// It is safe for concurrent use.
type Collector struct {
	pool  atomic.Pointer[livepool.Pool]
	stats []stat

	units                                             *prometheus.CounterVec
	unit, acquire, queue, connect, held, commit, ping prometheus.Histogram
	told                                              []prometheus.Collector // these
}

// NewCollector makes the metrics of the pool that is called name, which is the label "pool" of
// all of them, so that several pools can be in one registry. No metric is labelled with a unit's
// name: it may hold an id.
func NewCollector(name string) *Collector {
	labels := prometheus.Labels{"pool": name}
	c := &Collector{stats: newStats(labels)}
	c.units = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "livepool_units_total",
		Help: "Units of work that have ended, by what became of them.", ConstLabels: labels}, []string{"outcome"})
	for _, outcome := range []trace.Outcome{trace.Applied, trace.NotApplied, trace.AlreadyApplied, trace.Unknown} {
		c.units.WithLabelValues(string(outcome)) // 0 from the start: a rate needs it
	}
	c.told = append(c.told, c.units)
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: labels, Buckets: seconds})
		c.told = append(c.told, h)
		return h
	}
	c.unit = histogram("livepool_unit_duration_seconds", "How long units of work took, with all their attempts.")
	c.acquire = histogram("livepool_acquire_duration_seconds", "How long attempts of units took to get a connection and begin on it, those in vain among them.")
	c.queue = histogram("livepool_queue_duration_seconds", "How long of that they waited for a place in the pool.")
	c.held = histogram("livepool_held_duration_seconds", "How long attempts of units held their connection.")
	c.commit = histogram("livepool_commit_duration_seconds", "How long the COMMIT of units took, those whose answer was lost among them.")
	c.ping = histogram("livepool_ping_duration_seconds", "How long pings took for which a caller waited.")
	c.connect = histogram("livepool_connect_duration_seconds", "How long it took to open connections, those in vain among them.")
	return c
}

// seconds are from a round trip within a machine room to the default of PoolTimeout.
var seconds = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// Watch says which pool it is whose Stats are exported, once it is open.
func (c *Collector) Watch(p *livepool.Pool) { c.pool.Store(p) }

// Describe is of prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, s := range c.stats {
		ch <- s.desc
	}
	for _, t := range c.told {
		t.Describe(ch)
	}
}

// Collect is of prometheus.Collector. It asks the server nothing.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	if p := c.pool.Load(); p != nil {
		st := p.Stats()
		for _, s := range c.stats {
			ch <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(&st), s.labels...)
		}
	}
	for _, t := range c.told {
		t.Collect(ch)
	}
}

// TraceUnitStart is of trace.UnitTracer.
func (c *Collector) TraceUnitStart(ctx context.Context, _ trace.UnitStart) context.Context {
	return ctx
}

// TraceUnitEnd is of trace.UnitTracer.
func (c *Collector) TraceUnitEnd(_ context.Context, end trace.UnitEnd) {
	c.units.WithLabelValues(string(end.Outcome)).Inc()
	observe(c.unit, end.Took)
}

// TraceAcquireStart is of trace.AcquireTracer.
func (c *Collector) TraceAcquireStart(ctx context.Context, _ trace.AcquireStart) context.Context {
	return ctx
}

// TraceAcquireEnd is of trace.AcquireTracer.
func (c *Collector) TraceAcquireEnd(_ context.Context, end trace.AcquireEnd) {
	observe(c.acquire, end.Took)
	observe(c.queue, end.Queued)
}

// TraceConnectStart is of trace.ConnectTracer.
func (c *Collector) TraceConnectStart(ctx context.Context, _ trace.ConnectStart) context.Context {
	return ctx
}

// TraceConnectEnd is of trace.ConnectTracer.
func (c *Collector) TraceConnectEnd(_ context.Context, end trace.ConnectEnd) {
	observe(c.connect, end.Took)
}

// TraceEvent is of trace.EventTracer.
func (c *Collector) TraceEvent(_ context.Context, event trace.Event) {
	switch e := event.(type) {
	case trace.Release:
		observe(c.held, e.Held)
	case trace.Commit:
		observe(c.commit, e.Took)
	case trace.Ping:
		observe(c.ping, e.Took)
	}
}

func observe(h prometheus.Histogram, took time.Duration) { h.Observe(took.Seconds()) }
