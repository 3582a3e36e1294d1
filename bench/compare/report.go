package compare

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is all that is known after a run.
type report struct {
	When       string            `json:"when"`
	Took       string            `json:"took"`
	Go         string            `json:"go"`
	CPUs       int               `json:"cpus"`
	System     string            `json:"system"`
	Modules    map[string]string `json:"modules"`    // the drivers that are compared
	Contenders map[string]string `json:"contenders"` // what each is, with versions
	Short      bool              `json:"short"`
	LeftOut    string            `json:"left_out,omitempty"` // who, and why
	Servers    []*onServer       `json:"servers"`
	Hot        []*hotCell        `json:"hot"`
	Verdicts   []verdictOf       `json:"verdicts"`

	order  []string // of the contenders
	broken string   // what livepool must not do, and did
}

type onServer struct {
	Server string   `json:"server"`
	Tables []*table `json:"tables"`
}

// verdictOf is what became of a contender's jobs in a scenario.
type verdictOf struct {
	Title     string `json:"title"`
	Contender string `json:"contender"`
	verdict
}

// modules are what is compared, as the program was built with them.
var modules = []string{"github.com/go-sql-driver/mysql", "github.com/go-mysql-org/go-mysql"}

func newReport(r *run) *report {
	rep := &report{
		When: r.start.UTC().Format(time.DateOnly), Go: runtime.Version(), CPUs: runtime.NumCPU(), System: runtime.GOOS + "/" + runtime.GOARCH,
		Modules: map[string]string{}, Contenders: map[string]string{}, Short: r.set.short,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if slices.Contains(modules, m.Path) {
				rep.Modules[m.Path] = m.Version
			}
		}
	}
	return rep
}

// verdict keeps what became of jobs, and whether livepool kept its word.
func (r *report) verdict(title string, e entry, v verdict) {
	r.Verdicts = append(r.Verdicts, verdictOf{title, e.name, v})
	if e.units && v.broken() {
		r.broken = fmt.Sprintf("%s BROKE ITS PROMISE: %s: %d units lost, %d applied twice", e.name, title, v.Lost, v.Twice)
	}
}

// Versions is a line about the machine and the programs.
func (r *report) Versions() string {
	text := fmt.Sprintf("%s, %s, %d CPUs", r.Go, r.System, r.CPUs)
	for _, path := range slices.Sorted(maps.Keys(r.Modules)) {
		text += fmt.Sprintf(", %s %s", strings.TrimPrefix(path, "github.com/"), r.Modules[path])
	}
	for _, s := range r.Servers {
		text += ", " + s.Server
	}
	return text
}

// Caveats are what a reader must know before the figures.
func (r *report) Caveats() (all []string) {
	if r.Short {
		all = append(all, "A short run: it shows that the comparison works, and compares nothing.")
	}
	if r.broken != "" {
		all = append(all, r.broken)
	}
	if r.LeftOut != "" {
		all = append(all, r.LeftOut)
	}
	return append(all, "Jobs run under a context that has no deadline: where a job hangs, one with a deadline fails at that deadline instead.",
		"In the scenarios with faults all contenders work at the same time and meet the same fault; the figures of the hot path are measured one at a time.")
}

// write prints the tables.
func (r *report) write(w io.Writer) {
	fmt.Fprintf(w, "\n%s; it took %s\n", r.Versions(), r.Took)
	for _, c := range r.Caveats() {
		fmt.Fprintln(w, c)
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, name := range r.order {
		fmt.Fprintf(tw, "  %s\t%s\n", name, r.Contenders[name])
	}
	tw.Flush()
	for _, s := range r.Servers {
		for _, t := range s.Tables {
			fmt.Fprintf(w, "\n%s (%s)\n%s\n", t.Title, s.Server, t.What)
			t.write(w)
		}
	}
}

func (t *table) write(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	head := []string{"  "}
	for _, c := range t.Columns {
		head = append(head, c.Name)
	}
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	for _, r := range t.Rows {
		line := []string{"  " + r.Contender}
		for _, c := range r.Cells {
			line = append(line, c.Text)
		}
		if r.Missing != "" {
			line = append(line, "- "+r.Missing)
		}
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	tw.Flush()
	fmt.Fprintln(w, t.Verdict())
}

// Verdict says where others are better.
func (t *table) Verdict() string {
	better := t.Better()
	if len(better) == 0 {
		return "No other contender is better than livepool in any of these figures."
	}
	return "Better than livepool: " + strings.Join(better, "; ") + "."
}

// save writes the page, the JSON and the figures for benchstat.
func (r *report) save(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "compare.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "compare.txt"), []byte(r.benchstat()), 0o644); err != nil {
		return err
	}
	page, err := r.page()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, pageName), page, 0o644)
}

// benchstat is the hot path in the format of Go's benchmarks, a line for each round:
// benchstat -col /contender compare.txt sets the contenders side by side.
func (r *report) benchstat() string {
	var b strings.Builder
	fmt.Fprintf(&b, "goos: %s\ngoarch: %s\npkg: github.com/livepool/livepool/bench/compare\ngo: %s\ncpus: %d\n", runtime.GOOS, runtime.GOARCH, r.Go, r.CPUs)
	for _, path := range slices.Sorted(maps.Keys(r.Modules)) {
		fmt.Fprintf(&b, "%s: %s\n", path[strings.LastIndex(path, "/")+1:], r.Modules[path])
	}
	for _, name := range r.order {
		fmt.Fprintf(&b, "contender-%s: %s\n", word(name), r.Contenders[name])
	}
	var on string
	for _, c := range r.Hot {
		if c.Server != on {
			fmt.Fprintf(&b, "server: %s\n", c.Server)
			on = c.Server
		}
		for i, ns := range c.NSPerOp {
			fmt.Fprintf(&b, "Benchmark%s/context=%s/callers=%d/contender=%s-%d\t%d\t%.0f ns/op\n",
				strings.ToUpper(c.Operation[:1])+c.Operation[1:], c.Context, c.Callers, word(c.Contender), r.CPUs, c.Count[i], ns)
		}
	}
	return b.String()
}

// word is a name without blanks.
func word(name string) string {
	return cmp.Or(strings.ToLower(strings.NewReplacer(", ", "-", " ", "-").Replace(name)), "none")
}
