// report.go is what a run comes to, as text: the tables and the verdict. The
// picture is picture.go's.

package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/livepool/livepool/bench/gauge"
)

// row is one line of a table: a label and a cell for each lane. The page's
// template needs its fields exported.
type row struct {
	Label string
	Note  string // more, where there is room for it
	Minor bool   // a part of the row above
	Cells []cell
}

type cell struct {
	Text string
	Bad  bool
}

// newRow makes a row of what value says of each lane.
func (o *outcome) newRow(label string, value func(laneOutcome) cell) row {
	r := row{Label: label}
	for _, l := range o.lanes {
		r.Cells = append(r.Cells, value(l))
	}
	return r
}

// summary is the table of a whole run, for the terminal and the page alike.
func (o *outcome) summary() []row {
	rows := []row{o.newRow("jobs", func(l laneOutcome) cell { return number(len(l.samples)) })}
	if o.site.firstLook == "" { // whose rows prove nothing
		rows = append(rows, o.auditRows()...)
	}
	rows = append(rows,
		o.newRow("succeeded", func(l laneOutcome) cell { return number(len(l.samples) - failures(l.samples)) }),
		o.newRow("failed", func(l laneOutcome) cell { return fault(failures(l.samples)) }))
	for _, kind := range o.failureKinds() {
		r := o.newRow(kind, func(l laneOutcome) cell { return number(countFailure(l.samples, kind)) })
		r.Minor = true
		rows = append(rows, r)
	}
	rows = append(rows, o.newRow("failed in phases without *", func(l laneOutcome) cell { return fault(failures(o.promised(l.samples))) }))
	for _, q := range []struct {
		name string
		q    float64
	}{{"latency p50", 0.5}, {"latency p99", 0.99}, {"latency max", 1}} {
		rows = append(rows, o.newRow(q.name, func(l laneOutcome) cell { return cell{Text: showLatency(latency(l.samples, q.q))} }))
	}
	return append(rows, o.newRow("connections opened", func(l laneOutcome) cell { return number(l.conns) }))
}

// auditRows is what the ledger says.
func (o *outcome) auditRows() []row {
	return []row{
		o.newRow("done twice", func(l laneOutcome) cell { return fault(l.audit.twice) }),
		o.newRow("failed yet done: a retry does it twice", func(l laneOutcome) cell { return fault(l.audit.failedYetDone) }),
		o.newRow("failed and not done", func(l laneOutcome) cell { return fault(l.audit.lost) }),
		o.newRow("succeeded yet not done", func(l laneOutcome) cell { return fault(l.audit.vanished) }),
		o.newRow("money unaccounted for", func(l laneOutcome) cell { return fault(int(l.audit.discrepancy)) }),
	}
}

func number(n int) cell { return cell{Text: fmt.Sprint(n)} }

func fault(n int) cell { return cell{Text: fmt.Sprint(n), Bad: n != 0} }

// byPhase is the table of what each phase cost each lane.
func (o *outcome) byPhase() []row {
	var rows []row
	for i, p := range o.phases {
		label := fmt.Sprintf("%d %s", i+1, p.name)
		if !p.promised {
			label += " *"
		}
		r := o.newRow(label, func(l laneOutcome) cell {
			in := inPhase(l.samples, i)
			n, slowest := failures(in), showLatency(latency(in, 1))
			if n > 0 {
				return cell{fmt.Sprintf("%d FAILED, max %s", n, slowest), true}
			}
			return cell{Text: "ok, max " + slowest}
		})
		r.Note = p.what
		rows = append(rows, r)
	}
	return rows
}

const footnote = "* faults strike running jobs: a statement or transaction gets the error, on livepool as on plain database/sql; a unit of work runs again, for as long as the runner lets its job run"

// write prints the tables and the verdict.
func (o *outcome) write(w io.Writer) {
	fmt.Fprintf(w, "%s, %.0fs, the same %d jobs on each side\n\n", o.site, o.took.Seconds(), len(o.lanes[0].samples))
	for _, l := range o.lanes {
		fmt.Fprintf(w, "  %-9s %s\n", l.name, l.title)
	}
	fmt.Fprintln(w)
	o.writeTable(w, "what happened to the connections", o.byPhase())
	fmt.Fprintf(w, "%s\n\n", footnote)
	o.writeTable(w, "all in all", o.summary())
	fmt.Fprintln(w)
	for _, s := range o.skipped {
		fmt.Fprintf(w, "skipped %s\n", s)
	}
	_, verdict := o.verdict()
	fmt.Fprintln(w, verdict)
}

func (o *outcome) writeTable(w io.Writer, title string, rows []row) {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprint(tw, title)
	for _, l := range o.lanes {
		fmt.Fprintf(tw, "\t%s", l.name)
	}
	fmt.Fprintln(tw)
	for _, r := range rows {
		indent := ""
		if r.Minor {
			indent = "  "
		}
		fmt.Fprint(tw, indent, r.Label)
		for _, c := range r.Cells {
			fmt.Fprint(tw, "\t", c.Text)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// verdict says whether livepool kept its promise, in both lanes that are its own.
func (o *outcome) verdict() (kept bool, text string) {
	kept = true
	var texts []string
	for _, l := range o.lanes {
		if l.name != "livepool" && l.name != "units" {
			continue
		}
		ok, text := o.verdictOn(l)
		kept = kept && ok
		texts = append(texts, text)
	}
	return kept, strings.Join(texts, "\n")
}

func (o *outcome) verdictOn(l laneOutcome) (kept bool, text string) {
	lost := failures(o.promised(l.samples))
	wrong := l.audit.twice + l.audit.vanished
	where := fmt.Sprintf("of the %d jobs where it promises to lose none (phases without *)", len(o.promised(l.samples)))
	switch {
	case lost > 0:
		return false, fmt.Sprintf("%s LOST %d %s", l.name, lost, where)
	case o.site.firstLook != "":
		return true, l.name + " lost none " + where
	case wrong > 0 || l.audit.discrepancy != 0:
		return false, fmt.Sprintf("the ledger of %s is WRONG: %d jobs in it twice or not at all, money off by %d", l.name, wrong, l.audit.discrepancy)
	}
	return true, l.name + " lost none " + where + ", and its ledger is right to the penny"
}

// promised are the samples of the phases for which livepool promises.
func (o *outcome) promised(samples []sample) []sample {
	return slices.DeleteFunc(slices.Clone(samples), func(s sample) bool { return !o.phases[s.phase].promised })
}

// failureKinds are the kinds of failure on any lane, the commonest first.
func (o *outcome) failureKinds() []string {
	counts := map[string]int{}
	for _, l := range o.lanes {
		for _, s := range l.samples {
			if s.failed() {
				counts[s.failure]++
			}
		}
	}
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(counts[b]-counts[a], strings.Compare(a, b))
	})
}

func failures(samples []sample) (n int) {
	for _, s := range samples {
		if s.failed() {
			n++
		}
	}
	return n
}

func countFailure(samples []sample, kind string) (n int) {
	for _, s := range samples {
		if s.failure == kind {
			n++
		}
	}
	return n
}

func inPhase(samples []sample, phase int) []sample {
	return slices.DeleteFunc(slices.Clone(samples), func(s sample) bool { return s.phase != phase })
}

func latency(samples []sample, q float64) time.Duration {
	all := make([]time.Duration, len(samples))
	for i, s := range samples {
		all[i] = s.latency
	}
	return gauge.Quantile(all, q)
}

func showLatency(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
