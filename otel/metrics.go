package livepoolotel

import (
	"context"
	"errors"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/trace"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// metrics are the instruments. Those up to unit have the names of the semantic conventions
// (database client metrics, connection pools), the others are livepool's own.
type metrics struct {
	meter  metric.Meter
	add    []metric.AddOption    // the pool's name
	record []metric.RecordOption // likewise
	byEnd  map[trace.Outcome][]metric.RecordOption

	pending                                   metric.Int64UpDownCounter
	timeouts                                  metric.Int64Counter
	createTime, waitTime, useTime             metric.Float64Histogram
	count, max                                metric.Int64ObservableUpDownCounter
	unit, commit                              metric.Float64Histogram
	retries, resends, deaths, discards, kills metric.Int64Counter
	outage                                    metric.Int64ObservableGauge
	all, idle, used, noConnections, noWrites  metric.MeasurementOption
}

// seconds are from a round trip within a machine room to the default of PoolTimeout.
var seconds = metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30)

func newMetrics(meter metric.Meter, pool string) (m metrics, err error) {
	var errs []error
	name := semconv.DBClientConnectionPoolName(pool)
	with := func(attrs ...attribute.KeyValue) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(append(attrs, name)...))
	}
	histogram := func(name, about string) metric.Float64Histogram {
		h, err := meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(about), seconds)
		errs = append(errs, err)
		return h
	}
	counter := func(name, unit, about string) metric.Int64Counter {
		c, err := meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(about))
		errs = append(errs, err)
		return c
	}
	observed := func(name, about string) metric.Int64ObservableUpDownCounter {
		c, err := meter.Int64ObservableUpDownCounter(name, metric.WithUnit("{connection}"), metric.WithDescription(about))
		errs = append(errs, err)
		return c
	}
	m = metrics{meter: meter, add: []metric.AddOption{with()}, record: []metric.RecordOption{with()}, byEnd: map[trace.Outcome][]metric.RecordOption{},
		timeouts:   counter("db.client.connection.timeouts", "{timeout}", "Units that waited in vain for a connection, for PoolTimeout."),
		createTime: histogram("db.client.connection.create_time", "The time it took to open a connection."),
		waitTime:   histogram("db.client.connection.wait_time", "The time it took a unit to get a connection and begin on it."),
		useTime:    histogram("db.client.connection.use_time", "The time between a unit getting a connection and returning it."),
		count:      observed("db.client.connection.count", "The connections that are idle or used."),
		max:        observed("db.client.connection.max", "The most connections that there may be."),

		unit:     histogram("livepool.unit.duration", "How long units of work took, by what became of them."),
		commit:   histogram("livepool.commit.duration", "How long the COMMIT of units took."),
		retries:  counter("livepool.retries", "{attempt}", "Attempts of units after the first."),
		resends:  counter("livepool.resends", "{statement}", "Failures after which a statement was sent again."),
		deaths:   counter("livepool.deaths", "{connection}", "Connections found dead."),
		discards: counter("livepool.discards", "{connection}", "Connections that were given up while nobody used them, by the reason."),
		kills:    counter("livepool.kills", "{connection}", "Abandoned connections, by what became of them on the server."),

		all: with(), idle: with(semconv.DBClientConnectionStateIdle), used: with(semconv.DBClientConnectionStateUsed),
		noConnections: with(attribute.String("livepool.outage.of", "connections")), noWrites: with(attribute.String("livepool.outage.of", "writes")),
	}
	for _, o := range []trace.Outcome{trace.Applied, trace.NotApplied, trace.AlreadyApplied, trace.Unknown} {
		m.byEnd[o] = []metric.RecordOption{with(outcomeOf(o))}
	}
	m.pending, err = meter.Int64UpDownCounter("db.client.connection.pending_requests", metric.WithUnit("{request}"),
		metric.WithDescription("The units that wait for a connection."))
	errs = append(errs, err)
	m.outage, err = meter.Int64ObservableGauge("livepool.outage", metric.WithDescription("1 while no connection can be had, or no write is taken."))
	return m, errors.Join(append(errs, err)...)
}

// watch exports what the pool's Stats say.
func (m *metrics) watch(p *livepool.Pool) (metric.Registration, error) {
	return m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := p.Stats()
		o.ObserveInt64(m.count, int64(st.Idle), m.idle)
		o.ObserveInt64(m.count, int64(st.InUse), m.used)
		o.ObserveInt64(m.max, int64(st.MaxOpenConnections), m.all)
		o.ObserveInt64(m.outage, since(st.UnreachableSince), m.noConnections)
		o.ObserveInt64(m.outage, since(st.WritesRefusedSince), m.noWrites)
		return nil
	}, m.count, m.max, m.outage)
}

func since(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return 1
}

func (m *metrics) recordUnit(ctx context.Context, end trace.UnitEnd) {
	m.unit.Record(ctx, end.Took.Seconds(), m.byEnd[end.Outcome]...)
}

func (m *metrics) recordAcquire(ctx context.Context, end trace.AcquireEnd) {
	m.waitTime.Record(ctx, end.Took.Seconds(), m.record...)
	if errors.Is(end.Err, livepool.ErrPoolTimeout) {
		m.timeouts.Add(ctx, 1, m.add...)
	}
}

func (m *metrics) recordConnect(ctx context.Context, end trace.ConnectEnd) {
	if end.Err == nil {
		m.createTime.Record(ctx, end.Took.Seconds(), m.record...)
	}
}

func (m *metrics) recordEvent(ctx context.Context, event trace.Event) {
	switch e := event.(type) {
	case trace.Release:
		m.useTime.Record(ctx, e.Held.Seconds(), m.record...)
	case trace.Commit:
		m.commit.Record(ctx, e.Took.Seconds(), m.record...)
	case trace.Retry:
		m.retries.Add(ctx, 1, m.add...)
	case trace.Resend:
		m.resends.Add(ctx, 1, m.add...)
	case trace.Death:
		m.deaths.Add(ctx, 1, m.add...)
	case trace.Discard:
		m.discards.Add(ctx, 1, m.add[0], metric.WithAttributes(attribute.String("livepool.reason", e.Why)))
	case trace.Kill:
		for _, k := range []struct {
			outcome string
			n       int
		}{{"killed", e.Killed}, {"gone", e.Gone}, {"unproved", e.Unproved}, {"failed", e.Failed}} {
			if k.n > 0 {
				m.kills.Add(ctx, int64(k.n), m.add[0], metric.WithAttributes(attribute.String("livepool.outcome", k.outcome)))
			}
		}
	}
}
