// report.go is what a run comes to, as text: the tables, the verdict and the
// sentence at the end. The picture is picture.go's, what is counted tally.go's.

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one line of a table: a label and a cell for each lane. The page's
// template needs its fields exported.
type row struct {
	Label string
	Note  string // more, where there is room for it
	Cells []cell
}

type cell struct {
	Lines []string // what it says, most often one
	Bad   bool
	// Of jobs: what half of them took at most, and the slowest of them. 0 elsewhere.
	Median, Max time.Duration
}

func (c cell) text() string { return strings.Join(c.Lines, ", ") }

// noticeable is how much longer the slowest job of one lane takes than that of
// another before a person would call them different.
const noticeable = time.Second

// differs tells whether the lanes do.
func (r row) differs() bool {
	fastest, slowest := r.Cells[0].Max, r.Cells[0].Max
	for _, c := range r.Cells {
		fastest, slowest = min(fastest, c.Max), max(slowest, c.Max)
		if c.text() != r.Cells[0].text() {
			return true
		}
	}
	return slowest-fastest > noticeable
}

// table is rows in the order in which they tell most.
type table struct {
	Title string
	Rows  []row // those that differ between the lanes come first
	Same  []row // nothing is wrong in them, on any lane
}

func tableOf(title string, rows []row) table {
	t := table{Title: title}
	var wrong []row
	for _, r := range rows {
		switch {
		case r.differs():
			t.Rows = append(t.Rows, r)
		case r.Cells[0].Bad:
			wrong = append(wrong, r)
		default:
			t.Same = append(t.Same, r)
		}
	}
	t.Rows = append(t.Rows, wrong...)
	return t
}

// SameText is the line that stands for the rows that are the same.
func (t table) SameText() string {
	var names []string
	var slowest time.Duration
	for _, r := range t.Same {
		name := r.Label
		for _, c := range r.Cells {
			slowest = max(slowest, c.Max)
		}
		if slowest == 0 {
			name += " " + r.Cells[0].text()
		}
		names = append(names, name)
	}
	text := "the same in all: " + strings.Join(names, ", ")
	if slowest > 0 {
		text += ": no job failed, the slowest took " + showLatency(slowest)
	}
	return text
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
func (o *outcome) summary() table {
	took := func(d time.Duration) cell { return cell{Lines: []string{showLatency(d)}} }
	rows := []row{o.newRow("jobs failed", func(l laneOutcome) cell { return fault(failures(l.samples)) })}
	if o.proves() {
		rows = append(rows,
			o.newRow("applied twice", func(l laneOutcome) cell { return fault(l.audit.twice) }),
			o.newRow("failed, yet applied: a retry does it twice", func(l laneOutcome) cell { return fault(l.audit.failedYetDone) }),
			o.newRow("lost after success", func(l laneOutcome) cell { return fault(l.audit.vanished) }),
			o.newRow("money unaccounted for", func(l laneOutcome) cell { return fault(int(l.audit.discrepancy)) }))
	}
	rows = append(rows,
		o.newRow("failed because of idle connections", func(l laneOutcome) cell { return fault(failures(o.atRest(l.samples))) }),
		o.newRow("longest stand-still, jobs waiting", func(l laneOutcome) cell { return took(standStill(l.samples)) }),
		o.newRow("slowest job", func(l laneOutcome) cell { return took(latency(l.samples, 1)) }),
		o.newRow("median job", func(l laneOutcome) cell { return took(latency(l.samples, 0.5)) }),
		o.newRow("connections opened", func(l laneOutcome) cell { return number(l.conns) }))
	for _, kind := range o.failureKinds() {
		rows = append(rows, o.newRow("failed with "+kind, func(l laneOutcome) cell { return number(countFailure(l.samples, kind)) }))
	}
	return tableOf("all in all", rows)
}

// proves tells whether the rows on the server prove anything.
func (o *outcome) proves() bool { return o.site.firstLook == "" }

func number(n int) cell { return cell{Lines: []string{thousands(n)}} }

func fault(n int) cell { return cell{Lines: []string{thousands(n)}, Bad: n != 0} }

// byPhase is the table of what each phase cost each lane.
func (o *outcome) byPhase() table {
	var rows []row
	for i, p := range o.phases {
		r := o.newRow(p.name, func(l laneOutcome) cell { return o.phaseCell(inPhase(l.samples, i)) })
		r.Note = p.what
		if !p.promised {
			r.Label += " *"
		}
		rows = append(rows, r)
	}
	return tableOf("what happened to the connections", rows)
}

func (o *outcome) phaseCell(in []sample) cell {
	c := cell{Median: latency(in, 0.5), Max: latency(in, 1)}
	if n := failures(in); n > 0 {
		c.Lines = append(c.Lines, fmt.Sprintf("%d failed", n))
	}
	if n := appliedTwice(in); n > 0 && o.proves() {
		c.Lines = append(c.Lines, fmt.Sprintf("%d twice", n))
	}
	if c.Bad = c.Lines != nil; !c.Bad {
		c.Lines = []string{"ok"}
	}
	return c
}

const footnote = "* under running jobs: a statement or transaction gets the error, on livepool.Open as on plain database/sql; WithSession runs the job again, for as long as the runner lets it run. twice: applied twice"

// write prints the tables and the verdict, and what else there is to say, and the
// sentence that says it all.
func (o *outcome) write(w io.Writer, more ...string) {
	fmt.Fprintf(w, "%s, %.0f s, the same %s jobs on each side\n\n", o.site, o.took.Seconds(), o.jobs())
	for _, l := range o.lanes {
		fmt.Fprintf(w, "  %-14s %s\n", l.head, l.title)
	}
	fmt.Fprintln(w)
	o.writeTable(w, o.byPhase())
	fmt.Fprintf(w, "%s\n\n", footnote)
	o.writeTable(w, o.summary())
	fmt.Fprintln(w)
	for _, s := range o.skipped {
		fmt.Fprintf(w, "skipped %s\n", s)
	}
	_, verdict := o.verdict()
	fmt.Fprintln(w, verdict)
	if n := o.notice(); n != "" {
		fmt.Fprintln(w, n)
	}
	for _, line := range more {
		fmt.Fprintln(w, line)
	}
	fmt.Fprintf(w, "\n%s\n", o.sentence())
}

func (o *outcome) writeTable(w io.Writer, t table) {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprint(tw, t.Title)
	for _, l := range o.lanes {
		fmt.Fprintf(tw, "\t%s", l.head)
	}
	fmt.Fprintln(tw)
	for _, r := range t.Rows {
		fmt.Fprint(tw, r.Label)
		for _, c := range r.Cells {
			fmt.Fprint(tw, "\t", c.text())
			if c.Max > 0 {
				fmt.Fprint(tw, ", max ", showLatency(c.Max))
			}
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	if t.Same != nil {
		fmt.Fprintln(w, t.SameText())
	}
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
	promised, where := l.samples, ""
	if l.name != "units" {
		promised, where = o.atRest(l.samples), " where it promises to lose none (phases without *)"
	}
	lost := failures(promised)
	where = fmt.Sprintf("of the %s jobs%s", thousands(len(promised)), where)
	wrong := l.audit.twice + l.audit.vanished
	switch {
	case lost > 0:
		return false, fmt.Sprintf("%s LOST %d %s", l.full, lost, where)
	case !o.proves():
		return true, fmt.Sprintf("%s lost none %s", l.full, where)
	case wrong > 0 || l.audit.discrepancy != 0:
		return false, fmt.Sprintf("the ledger of %s is WRONG: %d jobs in it twice or not at all, money off by %d", l.full, wrong, l.audit.discrepancy)
	}
	return true, fmt.Sprintf("%s lost none %s, and its ledger is right to the penny", l.full, where)
}

// notice warns of a run in which the loop that is unsafe was lucky.
func (o *outcome) notice() string {
	retry := o.lane("retry")
	if retry == nil || !o.proves() || retry.audit.twice > 0 {
		return ""
	}
	return "notice: in this run no fault made the retry apply a job twice. That is chance, not safety: it does wherever the answer to a COMMIT is lost"
}

// sentence is the run in one line, livepool first.
func (o *outcome) sentence() string {
	var parts []string
	for _, name := range []string{"units", "livepool", "plain", "retry"} {
		if l := o.lane(name); l != nil {
			parts = append(parts, fmt.Sprintf("%s: %s.", l.full, o.inWords(*l, parts == nil)))
		}
	}
	text := strings.Join(parts, " ")
	if kept, _ := o.verdict(); !kept {
		text = "livepool BROKE its promise. " + text
	}
	return text
}

func (o *outcome) inWords(l laneOutcome, first bool) string {
	text := thousands(failures(l.samples)) + " failed"
	if first {
		text = fmt.Sprintf("%s of %s jobs failed", thousands(failures(l.samples)), o.jobs())
	}
	if !o.proves() {
		return text
	}
	a := l.audit
	if a.failedYetDone > 0 {
		text += fmt.Sprintf(", %d of them applied all the same", a.failedYetDone)
	}
	switch {
	case a.twice > 0:
		text += fmt.Sprintf(", %d applied twice", a.twice)
	case first:
		text += ", none applied twice"
	}
	if a.vanished > 0 {
		text += fmt.Sprintf(", %d lost after success", a.vanished)
	}
	if a.discrepancy != 0 {
		text += fmt.Sprintf(", money off by %d", a.discrepancy)
	}
	return text
}

// lane returns what came of a lane, nil if it did not run.
func (o *outcome) lane(name string) *laneOutcome {
	i := slices.IndexFunc(o.lanes, func(l laneOutcome) bool { return l.name == name })
	if i < 0 {
		return nil
	}
	return &o.lanes[i]
}

// jobs is how many each lane was given.
func (o *outcome) jobs() string { return thousands(len(o.lanes[0].samples)) }
