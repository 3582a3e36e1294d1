package livepoolprom_test

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v2"
)

// The queries of the dashboard and of the alert rules can be read, ask for metrics, labels and
// values of labels that are exported, and take the rate or increase of counters and of nothing
// else.
func TestQueriesAskForWhatIsExported(t *testing.T) {
	metrics := exportedMetrics(t)
	asked := map[string]bool{}
	for _, query := range append(dashboardQueries(t), alertQueries(t)...) {
		expr, err := metricsql.Parse(strings.NewReplacer("$__rate_interval", "5m", "$pool", "orders").Replace(query))
		if err != nil {
			t.Errorf("%q: %v", query, err)
			continue
		}
		for _, problem := range problems(metrics, expr) {
			t.Errorf("%q: %s", query, problem)
		}
		maps.Copy(asked, metricsOf(expr))
	}
	for name := range metrics {
		if seldom := []string{"livepool_queue_duration_seconds", "livepool_connections_reused_total", "livepool_stall_checks_total", "livepool_ping_duration_seconds"}; !asked[name] && !slices.Contains(seldom, name) {
			t.Errorf("nobody asks for %s", name)
		}
	}
}

// The test of the queries finds what is wrong in one.
func TestWrongQueriesAreFound(t *testing.T) {
	metrics := exportedMetrics(t)
	for query, want := range map[string]string{
		`increase(livepool_death_total[1h]) > 0`:                                         "no metric livepool_death_total",
		`rate(livepool_kills_total{result="killed"}[1h])`:                                "no label result",
		`rate(livepool_kills_total{outcome=~"killed|lost"}[1h])`:                         `no outcome="lost"`,
		`livepool_deaths_total > 5`:                                                      "no rate of livepool_deaths_total",
		`sum by (le) (livepool_unit_duration_seconds_bucket)`:                            "no rate of livepool_unit_duration_seconds",
		`increase(livepool_connections[1h])`:                                             "the rate of livepool_connections, which is no counter",
		`sum by (reason) (rate(livepool_kills_total[1h]))`:                               "no label reason",
		`sum by (pool) (livepool_outage) > on (missing) sum by (pool) (livepool_outage)`: "no label missing",
	} {
		expr, err := metricsql.Parse(query)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(problems(metrics, expr), ", "); !strings.HasPrefix(got, want) {
			t.Errorf("%s: found %q, want %q", query, got, want)
		}
	}
}

// problems are what is wrong with a query.
func problems(metrics map[string]exported, query metricsql.Expr) (found []string) {
	rates := map[metricsql.Expr]bool{} // what the rate is taken of
	metricsql.VisitAll(query, func(e metricsql.Expr) {
		if f, ok := e.(*metricsql.FuncExpr); ok && (f.Name == "rate" || f.Name == "increase") {
			metricsql.VisitAll(f, func(e metricsql.Expr) { rates[e] = true })
		}
	})
	hasLabels := func(e metricsql.Expr, labels []string) {
		for _, label := range labels {
			for name := range metricsOf(e) {
				if metrics[name].labels[label] == nil && (label != "le" || metrics[name].kind != dto.MetricType_HISTOGRAM) {
					found = append(found, "no label "+label+" of "+name)
				}
			}
		}
	}
	metricsql.VisitAll(query, func(e metricsql.Expr) {
		switch e := e.(type) {
		case *metricsql.MetricExpr:
			found = append(found, problemsOf(metrics, e, rates[e])...)
		case *metricsql.AggrFuncExpr:
			hasLabels(e, e.Modifier.Args)
		case *metricsql.BinaryOpExpr:
			for _, side := range []metricsql.Expr{e.Left, e.Right} {
				hasLabels(side, e.GroupModifier.Args)
				if a, ok := side.(*metricsql.AggrFuncExpr); ok {
					for _, label := range e.GroupModifier.Args {
						if !slices.Contains(a.Modifier.Args, label) {
							found = append(found, "no label "+label+" is left on a side")
						}
					}
				}
			}
		}
	})
	return found
}

// problemsOf are what is wrong with a selection of a metric's series.
func problemsOf(metrics map[string]exported, e *metricsql.MetricExpr, inRate bool) (found []string) {
	name := nameOf(e)
	metric, ok := metrics[name]
	switch isGauge := metric.kind == dto.MetricType_GAUGE; {
	case !ok:
		return []string{"no metric " + name}
	case isGauge && inRate:
		found = append(found, "the rate of "+name+", which is no counter")
	case !isGauge && !inRate:
		found = append(found, "no rate of "+name)
	}
	for _, filter := range slices.Concat(e.LabelFilterss...) {
		values, ok := metric.labels[filter.Label]
		if filter.Label == "__name__" || filter.Label == "pool" {
			continue
		}
		if !ok {
			found = append(found, "no label "+filter.Label+" of "+name)
			continue
		}
		for value := range strings.SplitSeq(filter.Value, "|") {
			if !slices.Contains(values, value) {
				found = append(found, "no "+filter.Label+`="`+value+`" of `+name)
			}
		}
	}
	return found
}

// metricsOf are the names of the metrics that a query asks for.
func metricsOf(query metricsql.Expr) map[string]bool {
	names := map[string]bool{}
	metricsql.VisitAll(query, func(e metricsql.Expr) {
		if m, ok := e.(*metricsql.MetricExpr); ok && nameOf(m) != "" {
			names[nameOf(m)] = true
		}
	})
	return names
}

// nameOf is the name under which the metric is exported, "" for none.
func nameOf(e *metricsql.MetricExpr) string {
	for _, filter := range slices.Concat(e.LabelFilterss...) {
		if filter.Label == "__name__" {
			return strings.TrimSuffix(filter.Value, "_bucket")
		}
	}
	return ""
}

// dashboardQueries also checks that each panel is a whole one, whose data source and pool are
// those that the reader has chosen.
func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			ID          int
			Type, Title string
			Datasource  struct{ UID string }
			Targets     []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Name, Type, Query string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "grafana.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if isRow := p.Type == "row"; p.Title == "" || ids[p.ID] || isRow != (len(p.Targets) == 0) || !isRow && p.Datasource.UID != "${datasource}" {
			t.Errorf("the panel %d has no title, the id of another one, no query, or a data source of its own", p.ID)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			queries = append(queries, target.Expr)
			if selections := regexp.MustCompile(`livepool_\w+`).FindAllString(target.Expr, -1); strings.Count(target.Expr, `pool=~"$pool"`) != len(selections) {
				t.Errorf("%q is not of the pool that is chosen", target.Expr)
			}
		}
	}
	var variables []string
	for _, v := range dashboard.Templating.List {
		variables = append(variables, v.Name+": "+v.Type+" "+v.Query)
	}
	if want := []string{"datasource: datasource prometheus", "pool: query label_values(livepool_connections_max, pool)"}; !slices.Equal(variables, want) {
		t.Errorf("the variables are %q, want %q", variables, want)
	}
	return queries
}

// alertQueries also checks that each rule says how bad it is, and what to do.
func alertQueries(t *testing.T) (queries []string) {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "alerts.yml")), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if s := r.Labels["severity"]; s != "page" && s != "ticket" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s does not say how bad it is and what to do", r.Alert)
			}
			queries = append(queries, r.Expr)
		}
	}
	return queries
}
