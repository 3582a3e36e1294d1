// Package livepoolotel tells OpenTelemetry what a livepool.Pool does: a span for each unit of
// work, with its attempts, connections and COMMIT beneath it, and metrics under the names of
// the semantic conventions for pools of database connections.
//
//	telemetry, err := livepoolotel.New("shop")
//	cfg.Tracer = telemetry
//	db, err := livepool.OpenConfig(cfg)
//	registration, err := telemetry.Watch(db)
//
// The statements themselves are for a tracing driver such as otelsql, in Config.Wrap; their
// spans are then beneath that of their unit. docs/tracing.md has the tables of both.
package livepoolotel

import (
	"context"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/trace"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// scope is the name of the instrumentation.
const scope = "github.com/livepool/livepool/otel"

// Telemetry is a Tracer for the Config of one pool. It is safe for concurrent use.
type Telemetry struct {
	spans
	metrics
}

// An Option is one of WithTracerProvider and WithMeterProvider.
type Option func(*options)

type options struct {
	tracers oteltrace.TracerProvider
	meters  metric.MeterProvider
}

// WithTracerProvider says to whom spans are told. Default: otel.GetTracerProvider().
func WithTracerProvider(p oteltrace.TracerProvider) Option { return func(o *options) { o.tracers = p } }

// WithMeterProvider says to whom metrics are told. Default: otel.GetMeterProvider().
func WithMeterProvider(p metric.MeterProvider) Option { return func(o *options) { o.meters = p } }

// New makes the spans and metrics of the pool that is called name. Its error is that of an
// instrument that the MeterProvider refuses.
func New(name string, opts ...Option) (*Telemetry, error) {
	o := options{otel.GetTracerProvider(), otel.GetMeterProvider()}
	for _, opt := range opts {
		opt(&o)
	}
	m, err := newMetrics(o.meters.Meter(scope), name)
	if err != nil {
		return nil, err
	}
	return &Telemetry{newSpans(o.tracers.Tracer(scope), name), m}, nil
}

// Watch says which pool it is whose Stats are told, once it is open, until the registration is
// undone.
func (t *Telemetry) Watch(p *livepool.Pool) (metric.Registration, error) { return t.watch(p) }

// TraceUnitStart is of trace.UnitTracer.
func (t *Telemetry) TraceUnitStart(ctx context.Context, start trace.UnitStart) context.Context {
	return t.startUnit(ctx, start)
}

// TraceUnitEnd is of trace.UnitTracer.
func (t *Telemetry) TraceUnitEnd(ctx context.Context, end trace.UnitEnd) {
	t.recordUnit(ctx, end)
	t.endUnit(ctx, end)
}

// TraceAcquireStart is of trace.AcquireTracer.
func (t *Telemetry) TraceAcquireStart(ctx context.Context, start trace.AcquireStart) context.Context {
	t.pending.Add(ctx, 1, t.add...)
	return t.startAcquire(ctx, start)
}

// TraceAcquireEnd is of trace.AcquireTracer.
func (t *Telemetry) TraceAcquireEnd(ctx context.Context, end trace.AcquireEnd) {
	t.pending.Add(ctx, -1, t.add...)
	t.recordAcquire(ctx, end)
	t.endAcquire(ctx, end)
}

// TraceConnectStart is of trace.ConnectTracer.
func (t *Telemetry) TraceConnectStart(ctx context.Context, start trace.ConnectStart) context.Context {
	return t.startConnect(ctx, start)
}

// TraceConnectEnd is of trace.ConnectTracer.
func (t *Telemetry) TraceConnectEnd(ctx context.Context, end trace.ConnectEnd) {
	t.recordConnect(ctx, end)
	t.endConnect(ctx, end)
}

// TraceEvent is of trace.EventTracer.
func (t *Telemetry) TraceEvent(ctx context.Context, event trace.Event) {
	t.recordEvent(ctx, event)
	t.addEvent(ctx, event)
}
