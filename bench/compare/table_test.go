package compare

import (
	"slices"
	"strings"
	"testing"
)

func TestSpreadAndRatios(t *testing.T) {
	if got := spreadOf([]float64{5, 1, 3, 2, 4}); got != (spread{2, 3, 4}) {
		t.Errorf("spread %+v", got)
	}
	// Each round against the same round of the other, so that a slow round harms neither.
	if got := ratios([]float64{2, 20, 3}, []float64{4, 40}); !slices.Equal(got, []float64{0.5, 0.5}) {
		t.Errorf("ratios %v", got)
	}
}

func rowsOf(cells map[string]cell) (rows []row) {
	for _, name := range []string{"plain", "livepool", "livepool units"} {
		if c, ok := cells[name]; ok {
			rows = append(rows, row{Contender: name, Cells: []cell{c}, lane: entry{live: strings.HasPrefix(name, "livepool")}})
		}
	}
	return rows
}

func TestReportSaysWhereOthersAreBetter(t *testing.T) {
	less, more := column{Name: "wait", near: 0.2}, column{Name: "rate", more: true, near: 0.03}
	ratio := func(low, median, high float64) cell { return cell{Value: &median, Text: "x", Low: low, High: high} }
	for _, tt := range []struct {
		name   string
		column column
		cells  map[string]cell
		better bool
	}{
		{"less is better", less, map[string]cell{"plain": number(1, "%.0f"), "livepool": number(2, "%.0f")}, true},
		{"by so little that it does not matter", column{near: 0.2, by: 0.2}, map[string]cell{"plain": number(0.1, "%.1f"), "livepool": number(0.2, "%.1f")}, false},
		{"within the noise", less, map[string]cell{"plain": number(1.9, "%.1f"), "livepool": number(2, "%.1f")}, false},
		{"against the best of livepool", less, map[string]cell{"plain": number(1, "%.0f"), "livepool": number(2, "%.0f"), "livepool units": number(0.5, "%.1f")}, false},
		{"more is better", more, map[string]cell{"plain": number(110, "%.0f"), "livepool": number(100, "%.0f")}, true},
		{"and less is not", more, map[string]cell{"plain": number(90, "%.0f"), "livepool": number(100, "%.0f")}, false},
		{"a count", column{Name: "failed"}, map[string]cell{"plain": count(0), "livepool": count(1)}, true},
		{"that counts for nothing", column{Name: "jobs", note: true}, map[string]cell{"plain": count(0), "livepool": count(1)}, false},
		{"quartiles apart", column{near: 0.03}, map[string]cell{"plain": ratio(0.7, 0.8, 0.85), "livepool": ratio(0.9, 1, 1.1)}, true},
		{"quartiles that overlap", column{near: 0.03}, map[string]cell{"plain": ratio(0.7, 0.8, 0.95), "livepool": ratio(0.9, 1, 1.1)}, false},
		{"no figure", less, map[string]cell{"plain": text("none"), "livepool": count(1)}, false},
		{"no figure of livepool", less, map[string]cell{"plain": count(1), "livepool": text("none")}, false},
		{"a wait without an end", less, map[string]cell{"plain": number(3, "%.0f"), "livepool": never(seconds(30))}, true},
	} {
		table := table{Columns: []column{tt.column}, Rows: rowsOf(tt.cells)}
		better := table.Better()
		if (len(better) > 0) != tt.better {
			t.Errorf("%s: %q", tt.name, better)
		}
		if tt.better && !strings.Contains(table.Verdict(), "plain has") {
			t.Errorf("%s: the verdict names nobody: %s", tt.name, table.Verdict())
		}
	}
}

func TestDurationsAreReadable(t *testing.T) {
	for ns, want := range map[float64]string{52_345: "52.3 µs", 1_234_567: "1.23 ms", 2e9: "2.00 s"} {
		if got := took(ns); got != want {
			t.Errorf("%v ns is shown as %s, want %s", ns, got, want)
		}
	}
}
