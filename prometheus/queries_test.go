package livepoolprom_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	"go.yaml.in/yaml/v2"
)

// The queries of the dashboard and of the alert rules can be read, and ask for metrics and
// labels that are exported.
func TestQueriesAskForWhatIsExported(t *testing.T) {
	exported := exportedMetrics(t)
	asked := map[string]bool{}
	for title, queries := range map[string][]string{"grafana.json": dashboardQueries(t), "alerts.yml": alertQueries(t)} {
		if len(queries) < 7 {
			t.Errorf("%s has %d queries", title, len(queries))
		}
		for _, query := range queries {
			expr, err := metricsql.Parse(strings.NewReplacer("$__rate_interval", "5m", "$pool", "shop").Replace(query))
			if err != nil {
				t.Errorf("%s: %q: %v", title, query, err)
				continue
			}
			metricsql.VisitAll(expr, func(e metricsql.Expr) {
				switch e := e.(type) {
				case *metricsql.MetricExpr:
					metric, labels := selected(e)
					name := strings.TrimSuffix(metric, "_bucket")
					asked[name] = true
					for _, label := range labels {
						if !slices.Contains(exported[name], label) {
							t.Errorf("%s: %q: no metric %s with the label %s is exported", title, query, name, label)
						}
					}
				case *metricsql.AggrFuncExpr:
					for _, label := range e.Modifier.Args {
						if label != "le" && !anyHas(exported, query, label) {
							t.Errorf("%s: %q: nothing in it has the label %s", title, query, label)
						}
					}
				}
			})
		}
	}
	if len(asked) < 15 {
		t.Errorf("only %d metrics are asked for", len(asked))
	}
}

// selected is the metric that is selected, and the labels by which.
func selected(e *metricsql.MetricExpr) (metric string, labels []string) {
	labels = []string{"pool"} // which all have
	for _, filters := range e.LabelFilterss {
		for _, f := range filters {
			if f.Label == "__name__" {
				metric = f.Value
			} else {
				labels = append(labels, f.Label)
			}
		}
	}
	return metric, labels
}

// anyHas says whether a metric of the query has the label.
func anyHas(exported map[string][]string, query, label string) bool {
	for name, labels := range exported {
		if strings.Contains(query, name) && slices.Contains(labels, label) {
			return true
		}
	}
	return false
}

func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "grafana.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if p.Title == "" || ids[p.ID] {
			t.Errorf("panel %d has no title, or the id of another", p.ID)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			queries = append(queries, target.Expr)
		}
	}
	return queries
}

func alertQueries(t *testing.T) (queries []string) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "alerts.yml")), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s does not say how bad it is and what to do", r.Alert)
			}
			queries = append(queries, r.Expr)
		}
	}
	return queries
}
