package livepoolprom_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	livepoolprom "github.com/livepool/livepool/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

// open opens a pool on f that is exported to r.
func open(t *testing.T, r *prometheus.Registry, name string, f *fakedb.DB, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	c := livepoolprom.NewCollector(name)
	p := labtest.OpenFake(t, f, func(cfg *livepool.Config) {
		cfg.Tracer = c
		if change != nil {
			change(cfg)
		}
	})
	c.Watch(p)
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	return p
}

func gather(t *testing.T, r *prometheus.Registry) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName
}

// value is that of the metric with the labels, written as a="b",c="d".
func value(t *testing.T, r *prometheus.Registry, name, labels string) float64 {
	t.Helper()
	for _, m := range gather(t, r)[name].GetMetric() {
		if labelsOf(m) == labels {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount()) // it is one of them
		}
	}
	t.Fatalf("there is no %s{%s}", name, labels)
	return 0
}

func labelsOf(m *dto.Metric) string {
	var pairs []string
	for _, l := range m.GetLabel() {
		pairs = append(pairs, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	return strings.Join(pairs, ",")
}

func check(t *testing.T, r *prometheus.Registry, want map[string]float64) {
	t.Helper()
	for metric, want := range want {
		name, labels, _ := strings.Cut(strings.TrimSuffix(metric, "}"), "{")
		if got := value(t, r, name, labels); got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
}

// Units are counted by what became of them, and so is what they did to get there.
func TestUnitsAreCountedByTheirOutcome(t *testing.T) {
	r, f := prometheus.NewPedanticRegistry(), &fakedb.DB{}
	p := open(t, r, "shop", f, nil)
	for range 3 {
		labtest.CheckNoErrors(t, labtest.StartUnits(t.Context(), 1, p, labtest.Work)())
	}
	refused := errors.New("no")
	if err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { return refused }); !errors.Is(err, refused) {
		t.Fatal(err)
	}
	f.Kill()
	labtest.CheckNoErrors(t, labtest.StartUnits(t.Context(), 1, p, labtest.Work)())
	f.OnCommit = func(*fakedb.Conn) error { return fakedb.ErrGone }
	if err := p.WithSession(t.Context(), labtest.Work); !errors.Is(err, livepool.ErrCommitUnknown) {
		t.Fatal(err)
	}
	check(t, r, map[string]float64{
		`livepool_units_total{outcome="applied",pool="shop"}`:         4,
		`livepool_units_total{outcome="not_applied",pool="shop"}`:     1,
		`livepool_units_total{outcome="already_applied",pool="shop"}`: 0,
		`livepool_units_total{outcome="unknown",pool="shop"}`:         1,
		`livepool_unit_duration_seconds{pool="shop"}`:                 6,
		`livepool_acquire_duration_seconds{pool="shop"}`:              6, // one sent nothing, one was tried twice
		`livepool_queue_duration_seconds{pool="shop"}`:                6,
		`livepool_held_duration_seconds{pool="shop"}`:                 6,
		`livepool_commit_duration_seconds{pool="shop"}`:               5,
		`livepool_connect_duration_seconds{pool="shop"}`:              2,
		`livepool_retries_total{pool="shop"}`:                         1,
		`livepool_deaths_total{pool="shop"}`:                          2,
		`livepool_commits_unknown_total{pool="shop"}`:                 1,
		`livepool_opened_total{pool="shop"}`:                          2,
		`livepool_connections{pool="shop",state="in_use"}`:            0,
	})
}

// The connections that MinIdle keeps ready are connections, though database/sql does not know
// them.
func TestConnectionsOfMinIdleAreCounted(t *testing.T) {
	r, f := prometheus.NewPedanticRegistry(), &fakedb.DB{}
	open(t, r, "shop", f, func(c *livepool.Config) { c.MinIdle = 3 })
	labtest.Eventually(t, "three idle connections are exported", func() bool {
		return value(t, r, "livepool_connections", `pool="shop",state="idle"`) == 3
	})
	check(t, r, map[string]float64{`livepool_opened_total{pool="shop"}`: 3, `livepool_connections_max{pool="shop"}`: 20})
}

// Pings at a checkout and those in the background are told apart.
func TestPingsAreCountedByWhoSentThem(t *testing.T) {
	r, f := prometheus.NewPedanticRegistry(), &fakedb.DB{}
	p := open(t, r, "shop", f, func(c *livepool.Config) { c.PrePing = livepool.PrePingAlways })
	for range 3 {
		if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
			t.Fatal(err)
		}
	}
	check(t, r, map[string]float64{`livepool_pings_total{by="checkout",pool="shop"}`: 2,
		`livepool_pings_total{by="keepalive",pool="shop"}`: 0, `livepool_ping_duration_seconds{pool="shop"}`: 2})
}

// An outage is seen while it lasts.
func TestOutageIsSeen(t *testing.T) {
	r, f := prometheus.NewPedanticRegistry(), &fakedb.DB{OnConnect: func(context.Context, int64) error { return os.ErrDeadlineExceeded }}
	p := open(t, r, "shop", f, func(c *livepool.Config) { c.OutageWait = 0 })
	if _, err := p.ExecContext(t.Context(), "DO 1"); !errors.Is(err, livepool.ErrUnreachable) {
		t.Fatal(err)
	}
	check(t, r, map[string]float64{`livepool_outage{of="connections",pool="shop"}`: 1, `livepool_outage{of="writes",pool="shop"}`: 0,
		`livepool_outages_total{pool="shop"}`: 1})
}

// Several pools are told apart by their names, in a registry that checks all that it is given
// and by the rules of Prometheus for names and helps.
func TestPoolsShareARegistry(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	open(t, r, "shop", &fakedb.DB{}, nil)
	open(t, r, "stock", &fakedb.DB{}, nil)
	if n := len(gather(t, r)["livepool_opened_total"].GetMetric()); n != 2 {
		t.Errorf("%d pools are exported", n)
	}
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Before Watch, and without being the Tracer, a collector does what it can.
func TestCollectorBeforeWatch(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	c := livepoolprom.NewCollector("shop")
	r.MustRegister(c)
	if gather(t, r)["livepool_opened_total"] != nil {
		t.Error("there are figures of no pool")
	}
	c.Watch(labtest.OpenFake(t, &fakedb.DB{}, nil))
	check(t, r, map[string]float64{`livepool_opened_total{pool="shop"}`: 0})
}

// Each number of Stats is exported, or is known not to be.
func TestEachCounterIsExported(t *testing.T) {
	r, f := prometheus.NewPedanticRegistry(), &fakedb.DB{}
	open(t, r, "shop", f, nil)
	told := 0
	for _, family := range gather(t, r) {
		if family.GetType() != dto.MetricType_HISTOGRAM && family.GetName() != "livepool_units_total" {
			told += len(family.GetMetric())
		}
	}
	if fields := numbers(reflect.TypeFor[livepool.Stats]()) - 1; told != fields { // without OpenConnections, the sum of two
		t.Errorf("%d figures of Stats are exported, of %d", told, fields)
	}
}

// The page has each metric, with its labels, and no other; and the dashboard and the alerts
// ask for nothing else.
func TestPageHasEachMetric(t *testing.T) {
	exported := exportedMetrics(t)
	page := read(t, filepath.Join("..", "docs", "metrics.md"))
	var rows []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(livepool_\\w+)(?:\\{(\\w+)\\})?` \\|").FindAllStringSubmatch(page, -1) {
		rows = append(rows, m[1])
		want := strings.Fields(m[2] + " pool")
		slices.Sort(want)
		if labels, ok := exported[m[1]]; !ok || !slices.Equal(labels, want) {
			t.Errorf("the page has %s with the label %q; exported are %v", m[1], m[2], labels)
		}
	}
	for name := range exported {
		if !slices.Contains(rows, name) {
			t.Errorf("the page has no row for %s", name)
		}
	}
}

// exportedMetrics are the names of all metrics with those of their labels.
func exportedMetrics(t *testing.T) map[string][]string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	open(t, r, "shop", &fakedb.DB{}, nil)
	exported := map[string][]string{}
	for name, family := range gather(t, r) {
		for _, l := range family.GetMetric()[0].GetLabel() {
			exported[name] = append(exported[name], l.GetName())
		}
	}
	return exported
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// numbers counts the numbers and times in Stats.
func numbers(stats reflect.Type) (n int) {
	for i := range stats.NumField() {
		switch f := stats.Field(i); f.Type {
		case reflect.TypeFor[sql.DBStats]():
			n += numbers(f.Type)
		case reflect.TypeFor[string]():
		default:
			n++
		}
	}
	return n
}
