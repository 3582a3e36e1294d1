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

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	livepoolotel "github.com/livepool/livepool/otel"
)

// points are the values of a metric, by their attributes but for the pool's name; of a
// histogram, how many it has.
func points(t *testing.T, m metricdata.Metrics) (points map[string]int64, instrument string) {
	t.Helper()
	points = map[string]int64{}
	point := func(set attribute.Set, n int64) {
		if pool, ok := set.Value("db.client.connection.pool.name"); !ok || pool.AsString() != "shop" {
			t.Errorf("%s has not the pool's name: %s", m.Name, text(set.ToSlice()))
		}
		points[text(slices.DeleteFunc(set.ToSlice(), func(a attribute.KeyValue) bool { return a.Key == "db.client.connection.pool.name" }))] = n
	}
	switch data := m.Data.(type) {
	case metricdata.Sum[int64]:
		instrument = "updowncounter"
		if data.IsMonotonic {
			instrument = "counter"
		}
		for _, p := range data.DataPoints {
			point(p.Attributes, p.Value)
		}
	case metricdata.Gauge[int64]:
		instrument = "gauge"
		for _, p := range data.DataPoints {
			point(p.Attributes, p.Value)
		}
	case metricdata.Histogram[float64]:
		instrument = "histogram"
		for _, p := range data.DataPoints {
			point(p.Attributes, int64(p.Count))
			if p.Sum < 0 || p.Sum > 60 || !slices.Contains(p.Bounds, .005) { // seconds
				t.Errorf("%s has the sum %v and the bounds %v", m.Name, p.Sum, p.Bounds)
			}
		}
	default:
		t.Errorf("%s is a %T", m.Name, m.Data)
	}
	return points, instrument
}

// told is what came out of it: "name{attribute=value}".
func (o *telemetry) told(t *testing.T) map[string]int64 {
	t.Helper()
	told := map[string]int64{}
	for name, m := range o.collect(t) {
		values, _ := points(t, m)
		for attrs, n := range values {
			told[strings.TrimSuffix(name+"{"+attrs+"}", "{}")] = n
		}
	}
	return told
}

func (o *telemetry) check(t *testing.T, want map[string]int64) {
	t.Helper()
	told := o.told(t)
	for metric, n := range want {
		if got, ok := told[metric]; !ok || got != n {
			t.Errorf("%s is %d (%t), want %d", metric, got, ok, n)
		}
	}
}

// Units are counted by what became of them, and so is what they did to get there.
func TestMetricsOfUnits(t *testing.T) {
	o, f := newTelemetry(t), &fakedb.DB{}
	p := o.open(t, f, nil)
	for range 3 {
		check(t, p.WithSession(t.Context(), labtest.Work), nil)
	}
	check(t, p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { return errOwn }), errOwn)
	f.Kill()
	check(t, p.WithSession(t.Context(), labtest.Work), nil)
	f.OnCommit = func(*fakedb.Conn) error { return fakedb.ErrGone }
	check(t, p.WithSession(t.Context(), labtest.Work), livepool.ErrCommitUnknown)
	o.check(t, map[string]int64{
		"livepool.unit.duration{livepool.outcome=applied}":            4,
		"livepool.unit.duration{livepool.outcome=not_applied}":        1,
		"livepool.unit.duration{livepool.outcome=unknown}":            1,
		"livepool.commit.duration":                                    5,
		"livepool.retries":                                            1,
		"livepool.deaths":                                             2,
		"livepool.commits.unknown":                                    1,
		"db.client.connection.create_time":                            2,
		"db.client.connection.wait_time":                              6, // one sent nothing, one was tried twice
		"db.client.connection.use_time":                               6,
		"db.client.connection.max":                                    20,
		"db.client.connection.count{db.client.connection.state=used}": 0,
		"db.client.connection.count{db.client.connection.state=idle}": 0, // the last one died
		"db.client.connection.pending_requests":                       0,
		"db.client.connection.timeouts":                               0,
		"livepool.discards{livepool.reason=recycle}":                  0,
		"livepool.outage{livepool.outage.of=connections}":             0,
		"livepool.kills{livepool.outcome=unproved}":                   0,
	})
}

// A unit that waits for a connection is pending, and one in vain is a timeout, of which no
// wait_time is told.
func TestPendingRequests(t *testing.T) {
	o := newTelemetry(t)
	p := o.open(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
	pending := func() int64 { return o.told(t)["db.client.connection.pending_requests"] }
	check(t, p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if err := labtest.Work(ctx, s); err != nil {
			return err
		}
		waiting := labtest.StartUnits(t.Context(), 2, p, labtest.Work)
		labtest.Eventually(t, "two units are pending", func() bool { return pending() == 2 })
		o.check(t, map[string]int64{"db.client.connection.count{db.client.connection.state=used}": 1})
		t.Cleanup(func() { labtest.CheckNoErrors(t, waiting()) })
		return nil
	}), nil)
	labtest.Eventually(t, "none is pending", func() bool { return pending() == 0 })
}

// Who waits for PoolTimeout in vain is counted, and is none of those who got a connection.
func TestTimeouts(t *testing.T) {
	o := newTelemetry(t)
	p := o.open(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 0 })
	check(t, p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		check(t, labtest.Work(ctx, s), nil)
		check(t, p.WithSession(t.Context(), labtest.Work), livepool.ErrPoolTimeout)
		return nil
	}), nil)
	o.check(t, map[string]int64{"db.client.connection.timeouts": 1, "db.client.connection.wait_time": 1, "db.client.connection.pending_requests": 0})
}

// The connections that MinIdle keeps ready are connections, though database/sql does not know
// them; and there is no limit where there is none.
func TestConnectionsOfMinIdle(t *testing.T) {
	o := newTelemetry(t)
	o.open(t, &fakedb.DB{}, func(c *livepool.Config) { c.MinIdle, c.MaxOverflow = 3, -1 })
	labtest.Eventually(t, "three connections are idle", func() bool {
		return o.told(t)["db.client.connection.count{db.client.connection.state=idle}"] == 3
	})
	if n, ok := o.told(t)["db.client.connection.max"]; ok {
		t.Errorf("the limit is %d, where there is none", n)
	}
	if n := o.told(t)["db.client.connection.create_time"]; n != 3 {
		t.Errorf("%d connections were opened", n)
	}
	o.checkTree(t, "") // nothing of the background
}

// An outage is seen while it lasts.
func TestOutage(t *testing.T) {
	o := newTelemetry(t)
	p := o.open(t, &fakedb.DB{OnConnect: refuse}, func(c *livepool.Config) { c.OutageWait = 0 })
	_, err := p.ExecContext(t.Context(), "DO 1")
	check(t, err, livepool.ErrUnreachable)
	told := o.told(t)
	if told["livepool.outage{livepool.outage.of=connections}"] != 1 || told["livepool.outage{livepool.outage.of=writes}"] != 0 || told["livepool.connect.failures"] == 0 {
		t.Error(told)
	}
	if n, ok := told["db.client.connection.create_time"]; ok {
		t.Errorf("%d connections were created", n)
	}
}

// semantic are the metrics of the conventions that are exported, as their own code has them.
var semantic = []interface {
	Name() string
	Unit() string
	Description() string
}{
	dbconv.ClientConnectionCountObservable{}, dbconv.ClientConnectionMaxObservable{}, dbconv.ClientConnectionPendingRequestsObservable{},
	dbconv.ClientConnectionTimeoutsObservable{}, dbconv.ClientConnectionCreateTime{}, dbconv.ClientConnectionWaitTime{}, dbconv.ClientConnectionUseTime{},
}

// exportAll is a telemetry that has each metric.
func exportAll(t *testing.T) *telemetry {
	t.Helper()
	o := newTelemetry(t)
	p := o.open(t, &fakedb.DB{}, nil)
	check(t, p.WithSession(t.Context(), labtest.Work), nil)
	return o
}

// What has a name of the semantic conventions is what they say.
func TestNamesOfTheConventions(t *testing.T) {
	exported := exportAll(t).collect(t)
	known := 0
	for _, want := range semantic {
		m, ok := exported[want.Name()]
		if !ok || m.Unit != want.Unit() || m.Description != want.Description() {
			t.Errorf("%s is %q %q, want %q %q", want.Name(), m.Unit, m.Description, want.Unit(), want.Description())
		}
		known++
	}
	for name := range exported {
		if strings.HasPrefix(name, "db.") {
			known--
		} else if !strings.HasPrefix(name, "livepool.") {
			t.Errorf("%s is neither of the conventions nor livepool's", name)
		}
	}
	if known != 0 {
		t.Errorf("%d names of db.client that the conventions do not have", -known)
	}
}

// The page has each metric, with its instrument, unit and attribute, and no other.
func TestPageHasEachMetric(t *testing.T) {
	var want []string
	for name, m := range exportAll(t).collect(t) {
		values, instrument := points(t, m)
		var keys []string
		for attrs := range values {
			key, _, _ := strings.Cut(attrs, "=")
			keys = append(keys, key)
		}
		slices.Sort(keys)
		row := strings.TrimSuffix(name+"{"+strings.Join(slices.Compact(keys), ",")+"}", "{}")
		want = append(want, fmt.Sprintf("%s %s %s", row, instrument, m.Unit))
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "tracing.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Metrics\n")
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\w+), `([^`]+)` \\| \\w").FindAllStringSubmatch(section, -1) {
		got = append(got, m[1]+" "+m[2]+" "+m[3])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the page has\n%s\nand there are\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Without Watch there is what the tracer is told, and without an SDK nothing fails.
func TestWithoutWatchAndWithoutSDK(t *testing.T) {
	o := newTelemetry(t)
	p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Tracer = o.newTracer(t) })
	check(t, p.WithSession(t.Context(), labtest.Work), nil)
	told := o.told(t)
	if _, ok := told["livepool.retries"]; ok || told["livepool.unit.duration{livepool.outcome=applied}"] != 1 {
		t.Error(told)
	}
	tracer, err := livepoolotel.New("shop") // with the global providers, which are none
	if err != nil {
		t.Fatal(err)
	}
	p = labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Tracer = tracer })
	_, err = tracer.Watch(p)
	check(t, err, nil)
	check(t, p.WithSession(t.Context(), labtest.Work), nil)
}

// A MeterProvider that refuses is an error.
func TestMeterThatRefuses(t *testing.T) {
	_, err := livepoolotel.New("shop", livepoolotel.WithMeterProvider(refusingMeters{}))
	if !errors.Is(err, errOwn) {
		t.Errorf("the error is %v", err)
	}
}

type refusingMeters struct{ noop.MeterProvider }

func (refusingMeters) Meter(string, ...metric.MeterOption) metric.Meter { return refusingMeter{} }

type refusingMeter struct{ noop.Meter }

func (refusingMeter) Int64ObservableCounter(string, ...metric.Int64ObservableCounterOption) (metric.Int64ObservableCounter, error) {
	return nil, errOwn
}
