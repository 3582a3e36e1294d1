package compare

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// hotCell is one figure of the hot path: an operation, from so many callers, on one
// contender.
type hotCell struct {
	Server    string    `json:"server"`
	Operation string    `json:"operation"`
	Context   string    `json:"context"`
	Callers   int       `json:"callers"`
	Contender string    `json:"contender"`
	NSPerOp   []float64 `json:"ns_per_op"` // of each round: its time by its operations, all callers together
	Count     []int     `json:"operations"`
	Failed    int       `json:"failed,omitempty"`
}

var contexts = []struct {
	name, title string
	endless     bool
}{{"ends", "under a context that can end", false}, {"endless", "under a context that cannot end", true}}

var operations = []struct{ kind, title string }{
	{kindQuery, "a query by primary key"}, {kindExec, "DO 1"}, {kindJob, "a transaction with one insert"},
}

// hotPath measures in short blocks, one contender after the other, in an order that
// changes with each round, so that neither a drift of the machine nor the place in the
// round favours one.
func hotPath(ctx context.Context, s *stage) ([]table, error) {
	cells := map[string]*hotCell{}
	missing := map[string]string{}
	for _, callers := range s.scale.callers {
		lanes, err := s.open(ctx, false, min(callers, s.scale.most))
		if err != nil {
			return nil, err
		}
		for _, c := range contexts {
			for _, op := range operations {
				s.enter("%s: hot path: %s, %d callers, %s", s.title(), op.title, callers, c.title)
				if err = s.measure(ctx, lanes, op.kind, callers, c.endless, func(l *lane) *hotCell {
					key := fmt.Sprint(c.name, op.kind, callers, l.entry.name)
					if cells[key] == nil {
						cells[key] = &hotCell{Server: s.title(), Operation: op.kind, Context: c.name, Callers: callers, Contender: l.entry.name}
						s.report.Hot = append(s.report.Hot, cells[key])
					}
					return cells[key]
				}); err != nil {
					break
				}
			}
		}
		for _, l := range lanes {
			if l.missing != "" {
				missing[l.entry.name] = l.missing
			}
		}
		closeLanes(lanes)
		if err != nil {
			return nil, err
		}
	}
	var tables []table
	for _, op := range operations {
		for _, c := range contexts {
			t := s.hotTable(op.kind, c.endless, func(callers int, e entry) *hotCell { return cells[fmt.Sprint(c.name, op.kind, callers, e.name)] }, missing)
			t.Title = fmt.Sprintf("Nothing is wrong: %s, %s", op.title, c.title)
			tables = append(tables, t)
		}
	}
	return tables, nil
}

// measure plays the rounds of one operation; the first warms up.
func (s *stage) measure(ctx context.Context, lanes []*lane, kind string, callers int, endless bool, cell func(*lane) *hotCell) error {
	rng := rand.New(rand.NewPCG(1, 0))
	id := int64(1)
	for round := range s.scale.rounds + 1 {
		for _, i := range rng.Perm(len(lanes)) {
			l := lanes[i]
			if l.missing != "" || kind != kindJob && l.same || endless && !l.goes {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			start := time.Now()
			a, err := l.Do(ctx, order{Kind: kind, Callers: callers, Seconds: s.scale.block.Seconds(), FirstID: id, Deadline: 10, endless: endless}, func(answer) {})
			elapsed := time.Since(start)
			switch done := a.Operations - a.Failed; {
			case err != nil:
				l.missing = err.Error()
			case a.Unsupported || round == 0:
			case done == 0:
				l.missing = fmt.Sprintf("%s from %d callers: all %d operations failed", kind, callers, a.Operations)
			default:
				c := cell(l)
				c.NSPerOp = append(c.NSPerOp, float64(elapsed)/float64(done))
				c.Count = append(c.Count, done)
				c.Failed += a.Failed
			}
		}
		id += 1_000_000
	}
	return nil
}

// hotTable has a column for each number of callers.
func (s *stage) hotTable(kind string, endless bool, at func(callers int, e entry) *hotCell, missing map[string]string) table {
	t := table{
		What: fmt.Sprintf("Time for each operation, all callers together, on at most %d connections: the median of %d blocks of %s. In brackets the ratio to %q of the same round, "+
			"with its quartiles; below 1 is faster. Differences of less than 3 %% are noise.", s.scale.most, s.scale.rounds, s.scale.block, tuned),
	}
	for i, callers := range s.scale.callers {
		name := fmt.Sprintf("%d callers", callers)
		if callers == 1 {
			name = "1 caller"
		}
		t.Columns = append(t.Columns, column{Name: name, Unit: "× " + tuned, near: 0.03})
		t.charts = append(t.charts, i)
	}
	for _, e := range s.entries {
		if kind != kindJob && e.same || endless && !e.goes {
			continue
		}
		r := row{Contender: e.name, lane: e, Missing: missing[e.name]}
		for _, callers := range s.scale.callers {
			c, to := at(callers, e), at(callers, entry{name: tuned})
			if c == nil || to == nil {
				r.Cells = append(r.Cells, text("not measured"))
				continue
			}
			r.Cells = append(r.Cells, c.cell(to))
			r.Missing = ""
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

func (c *hotCell) cell(to *hotCell) cell {
	ratio := spreadOf(ratios(c.NSPerOp, to.NSPerOp))
	shown := fmt.Sprintf("%s [%.2f, %.2f–%.2f]", took(spreadOf(c.NSPerOp).median), ratio.median, ratio.low, ratio.high)
	if c.Failed > 0 {
		shown += fmt.Sprintf(", %d failed", c.Failed)
	}
	return cell{Value: &ratio.median, Text: shown, Low: ratio.low, High: ratio.high}
}
