package livepoolotel_test

import (
	"context"
	"database/sql/driver"
	"testing"

	"github.com/XSAM/otelsql"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	livepoolotel "github.com/livepool/livepool/otel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// telemetry is the SDK, with what it was told.
type telemetry struct {
	tracers *sdktrace.TracerProvider
	spans   *tracetest.InMemoryExporter
	meters  *sdkmetric.MeterProvider
	reader  *sdkmetric.ManualReader
}

func newTelemetry(t testing.TB) *telemetry {
	t.Helper()
	o := &telemetry{spans: tracetest.NewInMemoryExporter(), reader: sdkmetric.NewManualReader()}
	o.tracers = sdktrace.NewTracerProvider(sdktrace.WithSyncer(o.spans))
	o.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(o.reader))
	return o
}

// newTracer is the tracer of the pool shop.
func (o *telemetry) newTracer(t testing.TB) *livepoolotel.Tracer {
	t.Helper()
	tracer, err := livepoolotel.New("shop", livepoolotel.WithTracerProvider(o.tracers), livepoolotel.WithMeterProvider(o.meters))
	if err != nil {
		t.Fatal(err)
	}
	return tracer
}

// open opens the pool shop on f, and watches it.
func (o *telemetry) open(t testing.TB, f driver.Connector, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	tracer := o.newTracer(t)
	p := labtest.Open(t, f, func(c *livepool.Config) {
		c.KeepAlive, c.Logger, c.Tracer = 0, labtest.DiscardLogger, tracer
		if change != nil {
			change(c)
		}
	})
	registration, err := tracer.Watch(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registration.Unregister(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// collect reads the metrics, by their names.
func (o *telemetry) collect(t testing.TB) map[string]metricdata.Metrics {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	byName := map[string]metricdata.Metrics{}
	for _, scope := range all.ScopeMetrics {
		if scope.Scope.Name == "github.com/livepool/livepool/otel" {
			for _, m := range scope.Metrics {
				byName[m.Name] = m
			}
		}
	}
	return byName
}

// traceDriver is for Config.Wrap, as examples/otelsql has it.
func traceDriver(provider oteltrace.TracerProvider) func(driver.Connector) driver.Connector {
	return func(c driver.Connector) driver.Connector {
		traced := otelsql.WrapDriver(opener{c}, otelsql.WithTracerProvider(provider), otelsql.WithSpanOptions(otelsql.SpanOptions{
			DisableErrSkip: true, OmitConnResetSession: true,
			SpanFilter: func(ctx context.Context, _ otelsql.Method, _ string, _ []driver.NamedValue) bool {
				return oteltrace.SpanContextFromContext(ctx).IsValid()
			},
		}))
		c, err := traced.(driver.DriverContext).OpenConnector("")
		if err != nil {
			panic(err) // opener has none
		}
		return c
	}
}

type opener struct{ c driver.Connector }

func (o opener) Open(string) (driver.Conn, error)               { return o.c.Connect(context.Background()) }
func (o opener) OpenConnector(string) (driver.Connector, error) { return o.c, nil }
