package compare

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// sample is a report with one table of each sort.
func sample() *report {
	run, err := newRun(settings{short: true}, io.Discard)
	if err != nil {
		panic(err)
	}
	r := run.report
	r.Modules = map[string]string{"github.com/go-sql-driver/mysql": "v1.10.1"} // a test binary does not have its own
	r.Contenders["plain"] = `<script>alert("x")</script>`
	r.Hot = []*hotCell{{Server: "MariaDB", Operation: kindQuery, Context: "ends", Callers: 8, Contender: tuned, NSPerOp: []float64{100, 200}, Count: []int{7, 8}}}
	fast, slow := 1.0, 9.0
	r.Servers = []*onServer{{"MariaDB 10.11", []*table{{
		Title: "A & B", What: "what happens", Columns: []column{{Name: "wait", Unit: "s"}}, charts: []int{0},
		Rows: []row{
			{Contender: "plain", Cells: []cell{{Value: &fast, Text: "1 s"}}},
			{Contender: "livepool", Cells: []cell{{Value: &slow, Text: "9 s"}}, lane: entry{live: true}},
			{Contender: "hikaricp", Missing: "no java here"},
		},
	}}}}
	return r
}

func TestReportTellsAllInEachForm(t *testing.T) {
	r := sample()
	dir := t.TempDir()
	if err := r.save(dir); err != nil {
		t.Fatal(err)
	}
	var terminal strings.Builder
	r.write(&terminal)
	forms := map[string]string{"terminal": terminal.String()}
	for _, name := range []string{pageName, "compare.json", "compare.txt"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		forms[name] = string(text)
	}
	for name, text := range forms {
		for _, want := range []string{r.Go, "mysql", "v1.10.1", "livepool verified"} {
			if name == "compare.txt" {
				want = strings.ReplaceAll(want, " ", "-")
			}
			if !strings.Contains(text, want) {
				t.Errorf("%s does not have %q", name, want)
			}
		}
	}
	for _, name := range []string{"terminal", pageName} {
		for _, want := range []string{"no java here", "plain has 1 s, livepool 9 s", "compares nothing"} {
			if !strings.Contains(forms[name], want) {
				t.Errorf("%s does not have %q", name, want)
			}
		}
	}
	var again report
	if err := json.Unmarshal([]byte(forms["compare.json"]), &again); err != nil || again.CPUs != r.CPUs || *again.Servers[0].Tables[0].Rows[1].Cells[0].Value != 9 {
		t.Errorf("the JSON reads as %+v, %v", again, err)
	}
}

func TestPageStandsAlone(t *testing.T) {
	text, err := sample().page()
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, outside := range []string{"src=", "href=", "url(", "@import", "<script", "http:", "https:"} {
		if strings.Contains(page, outside) {
			t.Errorf("the page has %q", outside)
		}
	}
	for _, want := range []string{"@media print", "viewport", "<svg ", "A &amp; B", "&lt;script&gt;", `<tr class="live">`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
}

// A bar is as long as its figure is large, one that is far longer than the others is cut
// off, and a contender without a figure says so.
func TestChart(t *testing.T) {
	bars := func(values ...float64) (widths []string, svg string) {
		table := table{Columns: []column{{Name: "wait"}}, Rows: []row{{Contender: "none", Missing: "gone"}}}
		for i := range values {
			table.Rows = append(table.Rows, row{Contender: "c", Cells: []cell{number(values[i], "%.0f s")}})
		}
		svg = string(table.chart(0))
		for _, m := range regexp.MustCompile(`<rect [^>]*width="([0-9.]+)"`).FindAllStringSubmatch(svg, -1) {
			widths = append(widths, m[1])
		}
		return widths, svg
	}
	const longest = "120.0" // chartWidth less names and figures
	if w, svg := bars(1, 2); len(w) != 2 || w[0] != "60.0" || w[1] != longest || !strings.Contains(svg, "no figure") {
		t.Errorf("bars %v in %s", w, svg)
	}
	if w, svg := bars(1, 1, 1, 100); len(w) != 4 || w[3] != longest || w[0] != "30.0" || !strings.Contains(svg, "» 100 s") {
		t.Errorf("bars %v in %s", w, svg)
	}
	if w, _ := bars(0, 0); len(w) != 2 || w[0] != "1.0" {
		t.Errorf("bars %v of nothing", w)
	}
}

func TestBenchstatFormat(t *testing.T) {
	text := sample().benchstat()
	lines := regexp.MustCompile(`(?m)^Benchmark(\S+)-\d+\t(\d+)\t(\d+) ns/op$`).FindAllStringSubmatch(text, -1)
	if len(lines) != 2 || lines[0][1] != "Query/context=ends/callers=8/contender=plain-tuned" || lines[1][2] != "8" || lines[1][3] != "200" {
		t.Errorf("lines %q of\n%s", lines, text)
	}
}

func TestBrokenPromiseIsTold(t *testing.T) {
	r := sample()
	r.verdict("restarts", entry{name: "plain with a retry"}, verdict{Twice: 3})
	if r.broken != "" {
		t.Errorf("a promise that nobody made: %s", r.broken)
	}
	r.verdict("restarts", entry{name: "livepool units", units: true}, verdict{Failed: 3, Unknown: 1})
	if r.broken != "" {
		t.Errorf("no promise: %s", r.broken)
	}
	r.verdict("restarts", entry{name: "livepool units", units: true}, verdict{Twice: 1})
	if !strings.Contains(r.broken, "livepool units BROKE ITS PROMISE") || !strings.Contains(strings.Join(r.Caveats(), "\n"), r.broken) {
		t.Errorf("told is %q, caveats %q", r.broken, r.Caveats())
	}
}
