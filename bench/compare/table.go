package compare

import (
	"fmt"
	"strconv"
	"time"

	"github.com/livepool/livepool/bench/gauge"
)

// table is what a scenario came to: a row for each contender.
type table struct {
	Scenario string   `json:"scenario"`
	Title    string   `json:"title"`
	What     string   `json:"what"`
	Columns  []column `json:"columns"`
	Rows     []row    `json:"rows"`
	charts   []int    // the columns that are drawn
}

type column struct {
	Name string  `json:"name"`
	Unit string  `json:"unit,omitempty"`
	more bool    // more is better; else less is
	note bool    // it counts for nothing
	near float64 // differences up to this share are none,
	by   float64 // nor those up to this amount
}

// wait is a column of seconds.
func wait(name string) column { return column{Name: name, Unit: "s", near: 0.2, by: 0.2} }

// row has a cell for each column, or the reason why it has none.
type row struct {
	Contender string `json:"contender"`
	Missing   string `json:"missing,omitempty"`
	Cells     []cell `json:"cells,omitempty"`
	lane      entry
}

// cell is a figure. One without a value is no figure, only text.
type cell struct {
	Value *float64 `json:"value,omitempty"`
	Text  string   `json:"text"`
	Low   float64  `json:"low,omitempty"` // quartiles, where it is a median
	High  float64  `json:"high,omitempty"`
}

func text(s string) cell { return cell{Text: s} }

func number(v float64, format string) cell { return cell{Value: &v, Text: fmt.Sprintf(format, v)} }

func count(n int) cell {
	v := float64(n)
	return cell{Value: &v, Text: strconv.Itoa(n)}
}

// never is a wait whose end was not seen within some time. In a chart and in comparisons
// it counts as that time.
func never(within time.Duration) cell {
	v := within.Seconds()
	return cell{Value: &v, Text: fmt.Sprintf("no end within %.0f s", v)}
}

func waited(d time.Duration, ever bool, within time.Duration) cell {
	if !ever {
		return never(within)
	}
	return number(d.Seconds(), "%.2f s")
}

// spread is a median with its quartiles.
type spread struct{ low, median, high float64 }

func spreadOf(values []float64) spread {
	return spread{gauge.Quantile(values, 0.25), gauge.Quantile(values, 0.5), gauge.Quantile(values, 0.75)}
}

// ratios are each round's value to that of another in the same round.
func ratios(values, to []float64) (all []float64) {
	for i := range min(len(values), len(to)) {
		all = append(all, values[i]/to[i])
	}
	return all
}

// took shows nanoseconds.
func took(ns float64) string {
	switch {
	case ns >= 1e9:
		return fmt.Sprintf("%.2f s", ns/1e9)
	case ns >= 1e6:
		return fmt.Sprintf("%.2f ms", ns/1e6)
	}
	return fmt.Sprintf("%.1f µs", ns/1e3)
}

// Better says in which figures another contender is better than every way of using
// livepool that is in the table, beyond the noise.
func (t *table) Better() (all []string) {
	for i, c := range t.Columns {
		var best *row
		for n, r := range t.Rows {
			if r.lane.live && r.value(i) != nil && (best == nil || c.beats(r.Cells[i], best.Cells[i])) {
				best = &t.Rows[n]
			}
		}
		for _, r := range t.Rows {
			if best != nil && !c.note && !r.lane.live && r.value(i) != nil && c.beats(r.Cells[i], best.Cells[i]) {
				all = append(all, fmt.Sprintf("%s: %s has %s, livepool %s", c.Name, r.Contender, r.Cells[i].short(), best.Cells[i].short()))
			}
		}
	}
	return all
}

func (r row) value(i int) *float64 {
	if i >= len(r.Cells) {
		return nil
	}
	return r.Cells[i].Value
}

// beats: by more than the noise, and where there are quartiles, by more than those.
func (c column) beats(a, b cell) bool {
	if c.more {
		return *a.Value > *b.Value*(1+c.near)+c.by
	}
	return *a.Value < *b.Value*(1-c.near)-c.by && (a.High == 0 || a.High < b.Low)
}

// short is the figure alone: of a ratio without the time.
func (c cell) short() string {
	if c.High > 0 {
		return fmt.Sprintf("× %.2f", *c.Value)
	}
	return c.Text
}

// IsLive says whether it is livepool's.
func (r row) IsLive() bool { return r.lane.live }
