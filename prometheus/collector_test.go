package livepoolprom_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	livepoolprom "github.com/livepool/livepool/prometheus"
	"github.com/livepool/livepool/trace"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

// open opens a pool on f that is exported to r under a name.
func open(t testing.TB, r *prometheus.Registry, name string, f *fakedb.DB, change func(*livepool.Config)) *livepool.Pool {
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

func gather(t testing.TB, r *prometheus.Registry) map[string]*dto.MetricFamily {
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

// value is that of a series, written as name{a="b",c="d"} without the label pool; for a
// histogram, how many values it has. It is -1 if there is no such series.
func value(t testing.TB, r *prometheus.Registry, wanted string) float64 {
	t.Helper()
	for name, family := range gather(t, r) {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if l.GetName() != "pool" {
					labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
			}
			is := name
			if labels != nil {
				is += "{" + strings.Join(labels, ",") + "}"
			}
			if is == wanted { // one of the three, and the others are nil, which have 0
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return -1
}

// unit runs a unit of one statement whose function then returns result, which may be nil.
func unit(t *testing.T, p *livepool.Pool, result error, options ...livepool.SessionOption) {
	t.Helper()
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if err := labtest.Work(ctx, s); err != nil {
			return err
		}
		return result
	}, options...)
	if !errors.Is(err, result) {
		t.Errorf("the unit returned %v, want %v", err, result)
	}
}

var errOwn = errors.New("the function's own")

// What a pool has done is exported.
func TestWhatHappensIsExported(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*livepool.Config)
		do     func(t *testing.T, p *livepool.Pool, f *fakedb.DB)
		want   map[string]float64
	}{
		{"units by their outcome, and how long they took", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB) {
			for range 3 {
				unit(t, p, nil)
			}
			unit(t, p, errOwn)
			f.OnCommit = func(*fakedb.Conn) error { return fakedb.ErrGone }
			if err := p.WithSession(t.Context(), labtest.Work); !errors.Is(err, livepool.ErrCommitUnknown) {
				t.Error(err)
			}
		}, map[string]float64{
			`livepool_units_total{outcome="applied"}`: 3, `livepool_units_total{outcome="not_applied"}`: 1,
			`livepool_units_total{outcome="already_applied"}`: 0, `livepool_units_total{outcome="unknown"}`: 1,
			"livepool_unit_duration_seconds": 5, "livepool_acquire_duration_seconds": 5, "livepool_queue_duration_seconds": 5,
			"livepool_held_duration_seconds": 5, "livepool_commit_duration_seconds": 4, "livepool_connect_duration_seconds": 1,
			"livepool_commits_unknown_total": 1, "livepool_commits_resolved_total": 0, "livepool_deaths_total": 1,
			"livepool_connections_opened_total": 1, `livepool_connections{state="in_use"}`: 0,
		}},

		{"a unit whose connection died", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB) {
			unit(t, p, nil)
			f.Kill()
			unit(t, p, nil)
		}, map[string]float64{
			`livepool_units_total{outcome="applied"}`: 2, "livepool_unit_duration_seconds": 2, "livepool_acquire_duration_seconds": 3,
			"livepool_retries_total": 1, "livepool_deaths_total": 1, "livepool_connections_opened_total": 2,
		}},

		{"a unit that sends nothing, and has no connection", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
			if err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { return nil }); err != nil {
				t.Error(err)
			}
		}, map[string]float64{
			`livepool_units_total{outcome="applied"}`: 1, "livepool_acquire_duration_seconds": 0, "livepool_commit_duration_seconds": 0,
			"livepool_connections_opened_total": 0,
		}},

		{"connections that are ready before anybody needs them", func(c *livepool.Config) { c.MinIdle = 3 },
			func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
				labtest.Eventually(t, "three connections are idle", func() bool { return p.Stats().Idle == 3 })
				held, _ := fakedb.Take(t, p.DB, 1)
				t.Cleanup(func() { held[0].Close() })
				labtest.Eventually(t, "three others are idle", func() bool { return p.Stats().Idle == 3 })
			}, map[string]float64{
				`livepool_connections{state="idle"}`: 3, `livepool_connections{state="in_use"}`: 1, "livepool_connections_max": 20,
				"livepool_connections_opened_total": 4, "livepool_connect_duration_seconds": 4,
			}},

		{"pings for which callers waited", func(c *livepool.Config) { c.PrePing = livepool.PrePingAlways },
			func(t *testing.T, p *livepool.Pool, f *fakedb.DB) {
				for range 3 {
					unit(t, p, nil)
				}
				f.Kill()
				unit(t, p, nil)
			}, map[string]float64{
				"livepool_pings_total": 3, "livepool_keepalive_pings_total": 0, "livepool_ping_duration_seconds": 3,
				`livepool_connections_closed_total{reason="ping"}`: 1, "livepool_retries_total": 0,
			}},

		{"a server that cannot be reached", func(c *livepool.Config) { c.OutageWait = 0 },
			func(t *testing.T, p *livepool.Pool, f *fakedb.DB) {
				f.OnConnect = func(context.Context, int64) error {
					return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
				}
				if _, err := p.ExecContext(t.Context(), "DO 1"); !errors.Is(err, livepool.ErrUnreachable) {
					t.Error(err)
				}
			}, map[string]float64{
				`livepool_outage{missing="connections"}`: 1, `livepool_outage{missing="writes"}`: 0, "livepool_outages_total": 1,
				"livepool_connect_failures_total": 1,
			}},

		{"a unit that waits for a place in vain", func(c *livepool.Config) {
			c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 50*time.Millisecond
		}, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if err := labtest.Work(ctx, s); err != nil {
					return err
				}
				unit(t, p, livepool.ErrPoolTimeout, livepool.MaxAttempts(1))
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}, map[string]float64{
			`livepool_waits_total{for="place"}`: 1, "livepool_wait_timeouts_total": 1, `livepool_units_total{outcome="not_applied"}`: 1,
			`livepool_units_total{outcome="applied"}`: 1, "livepool_acquire_duration_seconds": 2, "livepool_held_duration_seconds": 1,
		}},

		{"a connection that is held for too long", func(c *livepool.Config) { c.LeakAfter = time.Millisecond },
			func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
				held, _ := fakedb.Take(t, p.DB, 1)
				defer held[0].Close()
				labtest.Eventually(t, "it is told", func() bool { return p.Stats().Leaks > 0 })
			}, map[string]float64{"livepool_leaks_total": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, f := prometheus.NewPedanticRegistry(), &fakedb.DB{}
			p := open(t, r, "orders", f, tt.change)
			tt.do(t, p, f)
			for series, want := range tt.want {
				if got := value(t, r, series); got != want {
					t.Errorf("%s is %v, want %v", series, got, want)
				}
			}
		})
	}
}

// Without a pool there is nothing to tell, and without the Tracer nothing of units: a zero
// would say that there are none. What was told before Watch is not lost.
func TestOnlyWhatIsKnownIsExported(t *testing.T) {
	for _, tt := range []struct {
		name            string
		tracer, watches bool
		stats, units    float64 // what is exported of them, -1 for nothing
	}{
		{"without the tracer", false, true, 1, -1},
		{"before Watch", true, false, -1, -1},
		{"with both", true, true, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, c := prometheus.NewPedanticRegistry(), livepoolprom.NewCollector("orders")
			r.MustRegister(c)
			p := labtest.OpenFake(t, &fakedb.DB{}, func(cfg *livepool.Config) {
				if tt.tracer {
					cfg.Tracer = trace.All{c}
				}
			})
			unit(t, p, nil)
			if tt.watches {
				c.Watch(p)
			}
			if got := value(t, r, "livepool_connections_opened_total"); got != tt.stats {
				t.Errorf("connections opened are %v, want %v", got, tt.stats)
			}
			if got := value(t, r, `livepool_units_total{outcome="applied"}`); got != tt.units {
				t.Errorf("units applied are %v, want %v", got, tt.units)
			}
			if families := len(gather(t, r)); !tt.watches && families > 0 {
				t.Errorf("%d metrics of no pool", families)
			}
		})
	}
}

// Several pools are told apart by their names, in a registry that compares all that it gets
// with what was described; and names and helps are as Prometheus wants them.
func TestPoolsShareARegistry(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	for _, name := range []string{"orders", "stock"} {
		unit(t, open(t, r, name, &fakedb.DB{}, nil), nil)
	}
	for _, family := range gather(t, r) {
		pools := map[string]int{}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "pool" {
					pools[l.GetValue()]++
				}
			}
		}
		if pools["orders"] == 0 || pools["stock"] != pools["orders"] {
			t.Errorf("%s has %v series of the pools", family.GetName(), pools)
		}
	}
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if err := r.Register(livepoolprom.NewCollector("stock")); err == nil {
		t.Error("two pools have the same name")
	}
}

// Scrapes and units do not disturb each other, and what was counted does not go back.
func TestScrapesWhileUnitsRun(t *testing.T) {
	const units = 1000
	r := prometheus.NewPedanticRegistry()
	p := open(t, r, "orders", &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 2, 0 })
	wait := labtest.StartUnits(t.Context(), units, p, labtest.Work)
	before := map[string]float64{}
	for range 20 {
		for name, family := range gather(t, r) {
			for _, m := range family.GetMetric() {
				series, now := name+fmt.Sprint(m.GetLabel()), m.GetCounter().GetValue() // 0 of those that are none
				if now < before[series] {
					t.Errorf("%s went back from %v to %v", series, before[series], now)
				}
				before[series] = now
			}
		}
	}
	labtest.CheckNoErrors(t, wait())
	for _, series := range []string{`livepool_units_total{outcome="applied"}`, "livepool_unit_duration_seconds", "livepool_held_duration_seconds"} {
		if got := value(t, r, series); got != units {
			t.Errorf("%s is %v, want %d", series, got, units)
		}
	}
}

// Each duration is told as seconds, by the metric that is its own.
func TestDurationsAreSeconds(t *testing.T) {
	r, c := prometheus.NewPedanticRegistry(), livepoolprom.NewCollector("orders")
	r.MustRegister(c)
	c.Watch(labtest.OpenFake(t, &fakedb.DB{}, nil))
	ctx := c.TraceUnitStart(t.Context(), trace.UnitStart{})
	c.TraceAcquireEnd(ctx, trace.AcquireEnd{Took: 2 * time.Second, Queued: time.Second})
	c.TraceConnectEnd(ctx, trace.ConnectEnd{Took: 3 * time.Second})
	for _, event := range []trace.Event{trace.Release{Held: 4 * time.Second}, trace.Commit{Took: 5 * time.Second}, trace.Ping{Took: 6 * time.Second}, trace.Retry{Wait: time.Second}} {
		c.TraceEvent(ctx, event)
	}
	c.TraceUnitEnd(ctx, trace.UnitEnd{Took: 1500 * time.Millisecond, Outcome: trace.Applied})
	metrics := gather(t, r)
	for what, want := range map[string]float64{"unit": 1.5, "queue": 1, "acquire": 2, "connect": 3, "held": 4, "commit": 5, "ping": 6} {
		name := "livepool_" + what + "_duration_seconds"
		if got := metrics[name].GetMetric()[0].GetHistogram().GetSampleSum(); got != want {
			t.Errorf("%s has %vs, want %vs", name, got, want)
		}
	}
}

// What is told is told in the middle of a unit: it costs no allocation.
func TestTellingAllocatesNothing(t *testing.T) {
	c := livepoolprom.NewCollector("orders")
	ctx, commit := t.Context(), trace.Event(trace.Commit{Took: time.Millisecond})
	if n := testing.AllocsPerRun(100, func() {
		c.TraceUnitEnd(c.TraceUnitStart(ctx, trace.UnitStart{}), trace.UnitEnd{Took: time.Millisecond, Outcome: trace.Applied})
		c.TraceAcquireEnd(c.TraceAcquireStart(ctx, trace.AcquireStart{}), trace.AcquireEnd{Took: time.Millisecond})
		c.TraceEvent(ctx, commit)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// exported is what there is of each metric: its type, and the values of each of its labels.
type exported struct {
	kind   dto.MetricType
	labels map[string][]string
}

// exportedMetrics are all of them by their names.
func exportedMetrics(t *testing.T) map[string]exported {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	unit(t, open(t, r, "orders", &fakedb.DB{}, nil), nil)
	metrics := map[string]exported{}
	for name, family := range gather(t, r) {
		e := exported{family.GetType(), map[string][]string{}}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				e.labels[l.GetName()] = append(e.labels[l.GetName()], l.GetValue())
			}
		}
		metrics[name] = e
	}
	return metrics
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// docs/metrics.md has a row for each metric, with its label and the values of that, and for
// nothing else.
func TestEachMetricIsDocumented(t *testing.T) {
	metrics := exportedMetrics(t)
	for _, row := range regexp.MustCompile("(?m)^\\| `(livepool_\\w+)(?:\\{(\\w+)\\})?` \\|(.*)\\|$").FindAllStringSubmatch(read(t, "..", "docs", "metrics.md"), -1) {
		name, label := row[1], row[2]
		metric, ok := metrics[name]
		if !ok {
			t.Errorf("the page has %s, which is not exported, or has it twice", name)
		}
		delete(metrics, name)
		for has, values := range metric.labels {
			if has != "pool" && has != label || label == "" && len(metric.labels) > 1 {
				t.Errorf("the page has the label %q for %s, not %s", label, name, has)
			}
			for _, value := range values {
				if has != "pool" && !strings.Contains(row[3], "`"+value+"`") {
					t.Errorf("the page does not name %s=%q of %s", has, value, name)
				}
			}
		}
		if label != "" && metric.labels[label] == nil {
			t.Errorf("%s has no label %s", name, label)
		}
	}
	for name := range metrics {
		t.Errorf("the page has no row for %s", name)
	}
}
