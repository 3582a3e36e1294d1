package livepoolotel_test

import (
	"context"
	"testing"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	livepoolotel "github.com/livepool/livepool/otel"
)

// BenchmarkUnit is a unit of one statement on a driver that answers at once: what it costs to
// tell of it. Spans go to an exporter that drops them.
func BenchmarkUnit(b *testing.B) {
	for _, tt := range []struct {
		name string
		with func(b *testing.B, c *livepool.Config)
	}{
		{"no tracer", func(*testing.B, *livepool.Config) {}},
		{"no-op providers", func(b *testing.B, c *livepool.Config) {
			c.Tracer = newTracer(b, livepoolotel.WithTracerProvider(tracenoop.NewTracerProvider()), livepoolotel.WithMeterProvider(metricnoop.NewMeterProvider()))
		}},
		{"metrics alone", func(b *testing.B, c *livepool.Config) {
			c.Tracer = newTracer(b, livepoolotel.WithTracerProvider(tracenoop.NewTracerProvider()), livepoolotel.WithMeterProvider(newMeters(b)))
		}},
		{"metrics, spans never sampled", func(b *testing.B, c *livepool.Config) {
			c.Tracer = newTracer(b, livepoolotel.WithTracerProvider(newTracers(b, sdktrace.NeverSample())), livepoolotel.WithMeterProvider(newMeters(b)))
		}},
		{"metrics, spans always sampled", func(b *testing.B, c *livepool.Config) {
			c.Tracer = newTracer(b, livepoolotel.WithTracerProvider(newTracers(b, sdktrace.AlwaysSample())), livepoolotel.WithMeterProvider(newMeters(b)))
		}},
		{"otelsql alone, always sampled", func(b *testing.B, c *livepool.Config) {
			c.Wrap = traceDriver(newTracers(b, sdktrace.AlwaysSample()))
		}},
		{"both, always sampled", func(b *testing.B, c *livepool.Config) {
			tracers := newTracers(b, sdktrace.AlwaysSample())
			c.Wrap = traceDriver(tracers)
			c.Tracer = newTracer(b, livepoolotel.WithTracerProvider(tracers), livepoolotel.WithMeterProvider(newMeters(b)))
		}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			p := labtest.Open(b, fakedb.Noop{}, func(c *livepool.Config) {
				c.Logger = labtest.DiscardLogger
				tt.with(b, c)
			})
			// As in a program that traces, the unit has a span around it; otelsql tells of nothing else.
			ctx, span := newTracers(b, sdktrace.AlwaysSample()).Tracer("bench").Start(context.Background(), "caller")
			defer span.End()
			b.ReportAllocs()
			for b.Loop() {
				if err := p.WithSession(ctx, labtest.Work); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func newTracer(b *testing.B, opts ...livepoolotel.Option) *livepoolotel.Tracer {
	b.Helper()
	t, err := livepoolotel.New("shop", opts...)
	if err != nil {
		b.Fatal(err)
	}
	return t
}

func newTracers(b *testing.B, sampler sdktrace.Sampler) *sdktrace.TracerProvider {
	b.Helper()
	p := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithBatcher(tracetest.NewNoopExporter()))
	b.Cleanup(func() { _ = p.Shutdown(context.Background()) })
	return p
}

func newMeters(b *testing.B) *sdkmetric.MeterProvider {
	b.Helper()
	p := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	b.Cleanup(func() { _ = p.Shutdown(context.Background()) })
	return p
}
