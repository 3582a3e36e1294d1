// Package livepoolprom exports to Prometheus what a livepool.Pool does.
//
//	metrics := livepoolprom.NewCollector("orders")
//	cfg.Tracer = metrics
//	db, err := livepool.OpenConfig(cfg)
//	...
//	metrics.Watch(db)
//	prometheus.MustRegister(metrics)
//
// docs/metrics.md has the table of the metrics. Beside this package are a dashboard for
// Grafana (grafana.json) and alert rules (alerts.yml).
package livepoolprom

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/trace"
	"github.com/prometheus/client_golang/prometheus"
)

// Collector has the metrics of one pool. It is a prometheus.Collector that asks the server
// nothing, and a Tracer for the pool's Config: without that it has what Pool.Stats counts, and
// nothing of units and durations. It is safe for concurrent use.
type Collector struct {
	pool  atomic.Pointer[livepool.Pool]
	stats []stat

	told                                              atomic.Bool // it is a Tracer
	units                                             *prometheus.CounterVec
	unit, acquire, queue, connect, held, commit, ping prometheus.Histogram
	traced                                            []prometheus.Collector // these
}

// stat is a metric that is read from livepool.Stats.
type stat struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(stats) float64
}

// buckets are seconds, from a round trip within a machine room to the defaults of PoolTimeout
// and MaxElapsed, and beyond.
var buckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

// NewCollector makes the metrics of the pool that is called name. All of them have it as the
// label pool, so that several pools can be in one registry. None has the name of a unit, which
// may hold an id.
func NewCollector(name string) *Collector {
	c := &Collector{}
	for _, f := range families {
		kind := prometheus.GaugeValue
		if strings.HasSuffix(f.name, "_total") {
			kind = prometheus.CounterValue
		}
		for _, s := range f.series {
			labels := prometheus.Labels{"pool": name}
			if f.label != "" {
				labels[f.label] = s.value
			}
			c.stats = append(c.stats, stat{prometheus.NewDesc("livepool_"+f.name, f.help, nil, labels), kind, s.read})
		}
	}
	labels := prometheus.Labels{"pool": name}
	c.units = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "livepool_units_total", Help: "Units of work that have ended, by what became of them.", ConstLabels: labels,
	}, []string{"outcome"})
	for _, outcome := range []trace.Outcome{trace.Applied, trace.NotApplied, trace.AlreadyApplied, trace.Unknown} {
		c.units.WithLabelValues(string(outcome)) // 0 from the start: an increase from nothing is none
	}
	c.traced = append(c.traced, c.units)
	histogram := func(what, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "livepool_" + what + "_seconds", Help: help, ConstLabels: labels, Buckets: buckets})
		c.traced = append(c.traced, h)
		return h
	}
	c.unit = histogram("unit_duration", "How long units took, with all their attempts.")
	c.acquire = histogram("acquire_duration", "How long attempts of units took to get a connection and begin on it, or to give up.")
	c.queue = histogram("queue_duration", "How long of that they waited for a place in the pool.")
	c.connect = histogram("connect_duration", "How long it took to open a connection, or to fail to.")
	c.held = histogram("held_duration", "How long attempts of units held their connection.")
	c.commit = histogram("commit_duration", "How long the COMMITs of units took, those whose answer was lost among them.")
	c.ping = histogram("ping_duration", "How long pings took for which a caller waited.")
	return c
}

// Watch says which pool it is, once that is open. Before, nothing is collected.
func (c *Collector) Watch(pool *livepool.Pool) { c.pool.Store(pool) }

// Describe is that of prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, s := range c.stats {
		ch <- s.desc
	}
	for _, t := range c.traced {
		t.Describe(ch)
	}
}

// Collect is that of prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	pool := c.pool.Load()
	if pool == nil {
		return
	}
	now := pool.Stats()
	for _, s := range c.stats {
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, s.read(&now))
	}
	if !c.told.Load() { // zeros would say that there are no units
		return
	}
	for _, t := range c.traced {
		t.Collect(ch)
	}
}

// start notes that this is a Tracer.
func (c *Collector) start(ctx context.Context) context.Context {
	if !c.told.Load() { // a write each time would cost more
		c.told.Store(true)
	}
	return ctx
}

// TraceUnitStart is that of trace.UnitTracer.
func (c *Collector) TraceUnitStart(ctx context.Context, _ trace.UnitStart) context.Context {
	return c.start(ctx)
}

// TraceUnitEnd is that of trace.UnitTracer.
func (c *Collector) TraceUnitEnd(_ context.Context, end trace.UnitEnd) {
	c.units.WithLabelValues(string(end.Outcome)).Inc()
	observe(c.unit, end.Took)
}

// TraceAcquireStart is that of trace.AcquireTracer.
func (c *Collector) TraceAcquireStart(ctx context.Context, _ trace.AcquireStart) context.Context {
	return ctx
}

// TraceAcquireEnd is that of trace.AcquireTracer.
func (c *Collector) TraceAcquireEnd(_ context.Context, end trace.AcquireEnd) {
	observe(c.acquire, end.Took)
	observe(c.queue, end.Queued)
}

// TraceConnectStart is that of trace.ConnectTracer.
func (c *Collector) TraceConnectStart(ctx context.Context, _ trace.ConnectStart) context.Context {
	return c.start(ctx)
}

// TraceConnectEnd is that of trace.ConnectTracer.
func (c *Collector) TraceConnectEnd(_ context.Context, end trace.ConnectEnd) {
	observe(c.connect, end.Took)
}

// TraceEvent is that of trace.EventTracer.
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
