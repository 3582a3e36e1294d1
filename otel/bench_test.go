package livepoolotel_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"

	"github.com/XSAM/otelsql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	livepoolotel "github.com/livepool/livepool/otel"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
)

// BenchmarkUnit is a unit of one statement on a driver that does nothing, without a tracer, with
// one whose providers do nothing, and with the SDK; beside it a plain transaction that otelsql
// traces, one span each for BEGIN, the statement and COMMIT.
func BenchmarkUnit(b *testing.B) {
	sampled := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()))
	ctx, span := sampled.Tracer("bench").Start(b.Context(), "the caller")
	defer span.End()
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	for _, tt := range []struct {
		name string
		opts []livepoolotel.Option // nil for no tracer
	}{
		{"no tracer", nil},
		{"no provider", []livepoolotel.Option{livepoolotel.WithTracerProvider(nooptrace.NewTracerProvider()), livepoolotel.WithMeterProvider(noop.NewMeterProvider())}},
		{"sampled spans", []livepoolotel.Option{livepoolotel.WithTracerProvider(sampled), livepoolotel.WithMeterProvider(noop.NewMeterProvider())}},
		{"sampled spans and metrics", []livepoolotel.Option{livepoolotel.WithTracerProvider(sampled), livepoolotel.WithMeterProvider(meters)}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			cfg := livepool.NewConfig()
			cfg.Logger = labtest.DiscardLogger
			if tt.opts != nil {
				telemetry, err := livepoolotel.New("bench", tt.opts...)
				if err != nil {
					b.Fatal(err)
				}
				cfg.Tracer = telemetry
			}
			p, err := livepool.OpenConnector(fakedb.Noop{}, cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			b.ReportAllocs()
			for b.Loop() {
				if err := p.WithSession(ctx, labtest.Work); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("plain with otelsql", func(b *testing.B) {
		db := sql.OpenDB(otelsqlConnector(sampled))
		defer db.Close()
		b.ReportAllocs()
		for b.Loop() {
			tx, err := db.BeginTx(ctx, nil)
			if err == nil {
				_, err = tx.ExecContext(ctx, "DO 1")
			}
			if err == nil {
				err = tx.Commit()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// noopDriver opens connections of the driver that does nothing.
type noopDriver struct{}

func (noopDriver) Open(string) (driver.Conn, error) {
	return fakedb.Noop{}.Connect(context.Background())
}

func otelsqlConnector(provider oteltrace.TracerProvider) driver.Connector {
	return dsnConnector{otelsql.WrapDriver(noopDriver{}, otelsql.WithTracerProvider(provider),
		otelsql.WithSpanOptions(otelsql.SpanOptions{OmitConnResetSession: true}))}
}

type dsnConnector struct{ d driver.Driver }

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.d.Open("") }
func (c dsnConnector) Driver() driver.Driver                        { return c.d }
