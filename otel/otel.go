// Package livepoolotel tells OpenTelemetry what a livepool.Pool does: spans of its units of
// work, and metrics of its connections.
//
//	t, err := livepoolotel.New("orders")
//	...
//	cfg.Tracer = t
//	db, err := livepool.OpenConfig(cfg)
//	...
//	registration, err := t.Watch(db)
//
// docs/tracing.md has the table of the spans and metrics. It needs OpenTelemetry's API only:
// without an SDK nothing is told.
package livepoolotel

import (
	"errors"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"
)

const scope = "github.com/livepool/livepool/otel"

// Tracer has the spans and metrics of one pool. It is a livepool.Config's Tracer, and safe
// for concurrent use.
type Tracer struct {
	tracer   oteltrace.Tracer
	poolName oteltrace.SpanStartEventOption

	meter metric.Meter
	metrics
}

// Option is what New takes.
type Option func(*providers)

type providers struct {
	tracers oteltrace.TracerProvider
	meters  metric.MeterProvider
}

// WithTracerProvider says who gets the spans. Default: otel.GetTracerProvider().
func WithTracerProvider(p oteltrace.TracerProvider) Option {
	return func(to *providers) { to.tracers = p }
}

// WithMeterProvider says who gets the metrics. Default: otel.GetMeterProvider().
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(to *providers) { to.meters = p }
}

// New returns the Tracer of the pool that is to be known by this name, which is
// db.client.connection.pool.name and should be unique within the program. The error is that
// of a MeterProvider that refuses an instrument.
func New(name string, opts ...Option) (*Tracer, error) {
	to := providers{otel.GetTracerProvider(), otel.GetMeterProvider()}
	for _, opt := range opts {
		opt(&to)
	}
	pool := semconv.DBClientConnectionPoolName(name)
	t := &Tracer{
		tracer:   to.tracers.Tracer(scope, oteltrace.WithSchemaURL(semconv.SchemaURL)),
		poolName: oteltrace.WithAttributes(pool),
		meter:    to.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL)),
	}
	if err := errors.Join(t.makeHistograms(pool), t.makeReadings(pool)); err != nil {
		return nil, err
	}
	return t, nil
}
