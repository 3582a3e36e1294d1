package livepoolotel_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	livepoolotel "github.com/livepool/livepool/otel"
	"github.com/livepool/livepool/trace"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// told is what a pool has told OpenTelemetry.
type told struct {
	telemetry *livepoolotel.Telemetry
	tracers   *sdktrace.TracerProvider
	spans     *tracetest.InMemoryExporter
	reader    *sdkmetric.ManualReader
}

func newTold(t *testing.T) *told {
	t.Helper()
	o := &told{spans: tracetest.NewInMemoryExporter(), reader: sdkmetric.NewManualReader()}
	o.tracers = sdktrace.NewTracerProvider(sdktrace.WithSyncer(o.spans))
	var err error
	o.telemetry, err = livepoolotel.New("shop", livepoolotel.WithTracerProvider(o.tracers),
		livepoolotel.WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(o.reader))))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *told) open(t *testing.T, f *fakedb.DB, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.Tracer = o.telemetry
		if change != nil {
			change(c)
		}
	})
	registration, err := o.telemetry.Watch(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registration.Unregister() })
	return p
}

// tree has a line for each span, in the order in which they began, indented beneath its parent:
// its name, ! if it failed, and its events.
func (o *told) tree() string {
	stubs := o.spans.GetSpans()
	slices.SortStableFunc(stubs, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	var lines []string
	var below func(parent string, indent string)
	below = func(parent, indent string) {
		for _, s := range stubs {
			if s.Parent.SpanID().String() != parent {
				continue
			}
			line := indent + s.Name
			if s.Status.Code == codes.Error {
				line += " !"
			}
			for _, e := range s.Events {
				if e.Name != "exception" {
					line += " +" + strings.TrimPrefix(e.Name, "livepool.")
				}
			}
			lines = append(lines, line)
			below(s.SpanContext.SpanID().String(), indent+"  ")
		}
	}
	below("0000000000000000", "")
	return strings.Join(lines, "\n")
}

// A unit is a span, with what it needed beneath it.
func TestSpansOfAUnit(t *testing.T) {
	own := errors.New("the function's own")
	for _, tt := range []struct {
		name   string
		change func(*livepool.Config)
		do     func(t *testing.T, p *livepool.Pool, f *fakedb.DB) error
		err    error
		want   string
	}{
		{"that opens a connection", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) error {
			return p.WithSession(t.Context(), labtest.Work, livepool.Name("pay"))
		}, nil, `
livepool.unit
  livepool.acquire
    livepool.connect
  livepool.commit`},
		{"whose function fails", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) error {
			return p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { return own })
		}, own, `
livepool.unit !`},
		{"that is run again", func(c *livepool.Config) { c.PrePing = livepool.PrePingAlways }, func(t *testing.T, p *livepool.Pool, f *fakedb.DB) error {
			first := true
			return p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if _, err := s.ExecContext(ctx, "DO 1"); err != nil {
					return err
				}
				if first {
					first = false
					f.Kill()
				}
				_, err := s.ExecContext(ctx, "DO 2")
				return err
			})
		}, nil, `
livepool.unit +retry
  livepool.acquire
    livepool.connect
  livepool.acquire
    livepool.connect
  livepool.commit`},
		{"whose connection is pinged", func(c *livepool.Config) { c.PrePing = livepool.PrePingAlways }, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) error {
			if err := p.Ping(); err != nil {
				return err
			}
			return p.WithSession(t.Context(), labtest.Work)
		}, nil, `
livepool.connect
livepool.unit
  livepool.acquire +ping
  livepool.commit`},
		{"of unknown outcome", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB) error {
			f.OnCommit = func(*fakedb.Conn) error { return fakedb.ErrGone }
			return p.WithSession(t.Context(), labtest.Work)
		}, livepool.ErrCommitUnknown, `
livepool.unit !
  livepool.acquire
    livepool.connect
  livepool.commit !`},
		{"that gets no connection", func(c *livepool.Config) { c.MaxElapsed = time.Millisecond }, func(t *testing.T, p *livepool.Pool, f *fakedb.DB) error {
			f.OnConnect = func(context.Context, int64) error { return os.ErrDeadlineExceeded }
			return p.WithSession(t.Context(), labtest.Work, livepool.MaxAttempts(1))
		}, livepool.ErrUnreachable, `
livepool.unit !
  livepool.acquire !
    livepool.connect !`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, f := newTold(t), &fakedb.DB{}
			p := o.open(t, f, tt.change)
			if err := tt.do(t, p, f); !errors.Is(err, tt.err) {
				t.Fatal(err)
			}
			if got, want := o.tree(), strings.TrimSpace(tt.want); got != want {
				t.Errorf("the spans are\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// What a span says of its unit and of its connection.
func TestAttributesOfSpans(t *testing.T) {
	o := newTold(t)
	ctx := o.telemetry.TraceUnitStart(t.Context(), trace.UnitStart{Unit: "pay", Key: "pay:7"})
	connect := o.telemetry.TraceConnectStart(ctx, trace.ConnectStart{Addr: "tcp(db:3307)"})
	o.telemetry.TraceConnectEnd(connect, trace.ConnectEnd{Conn: trace.Conn{Addr: "tcp(db:3307)", ThreadID: 9}})
	o.telemetry.TraceUnitEnd(ctx, trace.UnitEnd{Attempts: 2, Outcome: trace.Applied})
	want := map[string]string{
		"livepool.unit": "db.client.connection.pool.name=shop db.system.name=mysql livepool.attempts=2 livepool.key=pay:7 livepool.outcome=applied livepool.unit=pay",
		"livepool.connect": "db.client.connection.pool.name=shop db.system.name=mysql livepool.thread_id=9 " +
			"server.address=db server.port=3307",
	}
	for _, s := range o.spans.GetSpans() {
		var attrs []string
		for _, a := range s.Attributes {
			attrs = append(attrs, string(a.Key)+"="+a.Value.Emit())
		}
		slices.Sort(attrs)
		if got := strings.Join(attrs, " "); got != want[s.Name] {
			t.Errorf("%s has %s\nwant %s", s.Name, got, want[s.Name])
		}
	}
	if n := len(o.spans.GetSpans()); n != 2 {
		t.Errorf("%d spans", n)
	}
}

// Another tracer, told before and after, may put spans of its own into the contexts.
func TestSpansEndBesideAnotherTracer(t *testing.T) {
	o, other := newTold(t), newTold(t)
	p := o.open(t, &fakedb.DB{}, func(c *livepool.Config) { c.Tracer = trace.Join(other.telemetry, o.telemetry) })
	if err := p.WithSession(t.Context(), labtest.Work); err != nil {
		t.Fatal(err)
	}
	for _, tracer := range []*told{other, o} {
		if n := len(tracer.spans.GetSpans()); n != 4 {
			t.Errorf("%d spans have ended, of 4", n)
		}
	}
}

// figures are the metrics, as name{attributes} without the pool's, with their values; of a
// histogram, how often it was told.
func (o *told) figures(t *testing.T) map[string]float64 {
	t.Helper()
	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	figures := map[string]float64{}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					figures[m.Name+attributesOf(t, p.Attributes)] = float64(p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range d.DataPoints {
					figures[m.Name+attributesOf(t, p.Attributes)] = float64(p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					figures[m.Name+attributesOf(t, p.Attributes)] = float64(p.Count)
				}
			default:
				t.Errorf("%s is a %T", m.Name, d)
			}
		}
	}
	return figures
}

// attributesOf writes all but the pool's name, which each must have.
func attributesOf(t *testing.T, attrs attribute.Set) string {
	t.Helper()
	if pool, ok := attrs.Value("db.client.connection.pool.name"); !ok || pool.AsString() != "shop" {
		t.Errorf("the pool is %q", pool.AsString())
	}
	var pairs []string
	for _, a := range attrs.ToSlice() {
		if a.Key != "db.client.connection.pool.name" {
			pairs = append(pairs, fmt.Sprintf("%s=%s", a.Key, a.Value.AsString()))
		}
	}
	if pairs == nil {
		return ""
	}
	return "{" + strings.Join(pairs, ",") + "}"
}

// What happened is counted, under the names of the page, which has no others.
func TestMetricsOfAPool(t *testing.T) {
	o, f := newTold(t), &fakedb.DB{}
	p := o.open(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 50*time.Millisecond })
	if err := p.WithSession(t.Context(), labtest.Work); err != nil {
		t.Fatal(err)
	}
	f.Kill()
	if err := p.WithSession(t.Context(), labtest.Work); err != nil { // is run again
		t.Fatal(err)
	}
	f.Kill()
	if _, err := p.ExecContext(livepool.Idempotent(t.Context()), "DO 1"); err != nil { // is sent again
		t.Fatal(err)
	}
	p.Recycle()
	held, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WithSession(t.Context(), labtest.Work); !errors.Is(err, livepool.ErrPoolTimeout) {
		t.Fatal(err)
	}
	o.telemetry.TraceEvent(t.Context(), trace.Kill{Killed: 2})
	want := map[string]float64{
		"db.client.connection.timeouts":                               1,
		"db.client.connection.pending_requests":                       0,
		"db.client.connection.create_time":                            4,
		"db.client.connection.wait_time":                              4,
		"db.client.connection.use_time":                               3,
		"db.client.connection.count{db.client.connection.state=idle}": 0,
		"db.client.connection.count{db.client.connection.state=used}": 1,
		"db.client.connection.max":                                    1,
		"livepool.unit.duration{livepool.outcome=applied}":            2,
		"livepool.unit.duration{livepool.outcome=not_applied}":        1,
		"livepool.commit.duration":                                    2,
		"livepool.retries":                                            1,
		"livepool.resends":                                            1,
		"livepool.deaths":                                             2,
		"livepool.discards{livepool.reason=Recycle was called}":       1,
		"livepool.kills{livepool.outcome=killed}":                     2,
		"livepool.outage{livepool.outage.of=connections}":             0,
		"livepool.outage{livepool.outage.of=writes}":                  0,
	}
	got := o.figures(t)
	held.Close()
	names := map[string]bool{}
	for figure, n := range got {
		name, _, _ := strings.Cut(figure, "{")
		names[name] = true
		if w, ok := want[figure]; !ok || w != n {
			t.Errorf("%s is %v, want %v", figure, n, w)
		}
	}
	for figure := range want {
		if _, ok := got[figure]; !ok {
			t.Errorf("there is no %s", figure)
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "tracing.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` +\\|").FindAllStringSubmatch(string(page), -1) {
		if name := m[1]; !names[name] && !strings.Contains(o.tree()+" livepool.connect", name) {
			t.Errorf("the page has %s, which is not told", name)
		}
		delete(names, m[1])
	}
	for name := range names {
		t.Errorf("the page has no row for %s", name)
	}
}

// Connections that MinIdle keeps ready are idle ones.
func TestConnectionsOfMinIdleAreCounted(t *testing.T) {
	o := newTold(t)
	o.open(t, &fakedb.DB{}, func(c *livepool.Config) { c.MinIdle = 3 })
	labtest.Eventually(t, "three idle connections are told", func() bool {
		return o.figures(t)["db.client.connection.count{db.client.connection.state=idle}"] == 3
	})
}
