// report.go tells what a run came to: while it goes on, as tables at its end, as
// JSON, and the story of each violation.

package soak

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/bench/gauge"
)

// outcome is all that is known after a run.
type outcome struct {
	set        settings
	server     string
	raged      time.Duration // how long the faults went on
	took       time.Duration // with what the units took to end after them
	events     []event
	stats      livepool.Stats
	live       *account
	lists      tally    // what was checked of them
	plain      []*entry // outside units
	looks      int      // at the state of connections
	naive      *account // nil without -naive
	naiveFound []violation
	violations []violation
}

// kept says whether the promises were: and whether the naive way was found
// wanting, without which that would not mean much.
func (o *outcome) kept() bool {
	return len(o.violations) == 0 && (o.naive == nil || len(o.naiveFound) > 0)
}

// account is what the units of a lane were told.
type account struct {
	Units      int            `json:"units"`
	Deliveries int            `json:"deliveries"`
	Applied    int            `json:"nil"`
	Again      int            `json:"nil_without_a_run"` // of those: applied by another delivery before
	Unknown    int            `json:"unknown"`
	Keyed      int            `json:"unknown_with_a_key"`        // of those, without an end of its context
	NoWitness  int            `json:"unknown_without_a_witness"` // of those: a key is not there, on a server that may lack it
	NotApplied map[string]int `json:"not_applied"`
	Examples   []string       `json:"examples,omitempty"` // of the rarer reasons
	ByMode     map[string]int `json:"deliveries_by_option"`
	Attempts   int            `json:"attempts"`
	RunAgain   int            `json:"attempts_after_the_first"`
	Met        map[string]int `json:"errors_met_by_attempts"`
	P50        float64        `json:"nil_p50_ms"`
	P99        float64        `json:"nil_p99_ms"`
	Max        float64        `json:"nil_max_ms"`
	Slowest    string         `json:"slowest"` // the story of a unit
	Conns      int            `json:"connections"`
}

func (r *run) account(all []*delivery, l *lane) *account {
	a := &account{Deliveries: len(all), NotApplied: map[string]int{}, ByMode: map[string]int{}, Met: map[string]int{}, Conns: l.opened()}
	a.Units = len(byUnit(all))
	var took []time.Duration
	var slowest *delivery
	for _, d := range all {
		if d.runs() {
			continue // one that hangs has been told of
		}
		a.ByMode[d.mode.String()]++
		a.Attempts += len(d.attempts)
		a.RunAgain += max(0, len(d.attempts)-1)
		for _, at := range d.attempts {
			for _, note := range at.notes {
				a.Met[serverError(note)]++
			}
		}
		switch {
		case d.err == nil:
			a.Applied++
			took = append(took, d.ended-d.started)
			if slowest == nil || d.ended-d.started > slowest.ended-slowest.started {
				slowest = d
			}
			if len(d.attempts) == 0 {
				a.Again++
			}
		case errors.Is(d.err, livepool.ErrCommitUnknown):
			a.Unknown++
			if d.mode.keyed() && d.ends == 0 {
				a.Keyed++
			}
			if strings.Contains(d.err.Error(), noWitness) {
				a.NoWitness++
			}
		default:
			why, ordinary := reason(d.err)
			if a.NotApplied[why]++; !ordinary && a.NotApplied[why] <= 3 {
				a.Examples = append(a.Examples, fmt.Sprintf("%s: %v", d.name(), d.err))
			}
		}
	}
	if slowest != nil {
		a.Slowest = r.story([]*delivery{slowest})
	}
	slices.Sort(took)
	a.P50, a.P99, a.Max = millis(gauge.Quantile(took, 0.5)), millis(gauge.Quantile(took, 0.99)), millis(gauge.Quantile(took, 1))
	return a
}

// noWitness is how a unit says that the server that has taken over proves nothing.
const noWitness = "may lack what the other had committed"

func millis(d time.Duration) float64 { return math.Round(float64(d)/1e4) / 100 }

// reason names an error coarsely enough to be counted, and says whether it is one
// that the unit brought about itself.
func reason(err error) (why string, ordinary bool) {
	var my *mysql.MySQLError
	text := err.Error()
	switch {
	case errors.Is(err, errOwn):
		return "the unit's own error", true
	case errors.Is(err, errPanic):
		return "the unit's own panic", true
	case errors.Is(err, livepool.ErrSessionDone):
		return "its context ended", true
	case strings.Contains(text, lostTwice):
		return "its connection was lost twice in a row over the same statement", false
	case strings.Contains(text, "pool_max_attempts"):
		return "MaxAttempts used up", false
	case strings.Contains(text, "pool_max_elapsed"):
		return "MaxElapsed used up", false
	case errors.Is(err, livepool.ErrPoolTimeout):
		return "PoolTimeout", false
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "a statement's own context ended", true
	case errors.As(err, &my):
		return fmt.Sprintf("server error %d", my.Number), false
	}
	return "another error", false
}

// serverError names the error of a step, from the text that is kept of it.
func serverError(note string) string {
	if _, text, ok := strings.Cut(note, "Error "); ok {
		number, _, _ := strings.Cut(text, " ")
		return "server error " + strings.TrimSuffix(number, ":")
	}
	for _, s := range []string{"the session has ended", "has ended, and nothing", "the transaction is over", "ended by an earlier error", "context deadline exceeded", "context canceled", "cannot be reached", "connecting to"} {
		if strings.Contains(note, s) {
			return s
		}
	}
	return "lost connections and the like"
}

// tellStories adds to each violation what is known of its unit, and drops what
// was found twice.
func (r *run) tellStories(vs []violation) (told []violation) {
	of := byUnit(r.work.deliveries())
	for _, v := range vs {
		if slices.ContainsFunc(told, func(o violation) bool { return o.Rule == v.Rule && o.Unit == v.Unit && o.Text == v.Text }) {
			continue
		}
		if v.Unit != 0 && v.Story == "" {
			v.Story = r.story(of[v.Unit])
		}
		told = append(told, v)
	}
	return told
}

// story is the history of a unit, and the faults around it.
func (r *run) story(ds []*delivery) string {
	var b strings.Builder
	from, to := time.Duration(math.MaxInt64), time.Duration(0)
	for _, d := range ds {
		d.mu.Lock()
		from, to = min(from, d.started), max(to, d.ended)
		fmt.Fprintf(&b, "  %s\n", d.plan)
		fmt.Fprintf(&b, "    %s to %s: %v\n", at(d.started), at(d.ended), d.err)
		for _, a := range d.attempts {
			fmt.Fprintf(&b, "    attempt %d, %s to %s: %s\n", a.number, at(a.began), at(a.ended), cmp.Or(strings.Join(a.notes, "; "), "no error"))
		}
		fmt.Fprintf(&b, "    AfterCommit of attempts %v\n", d.hooks)
		d.mu.Unlock()
	}
	return b.String() + r.faultsAround(from, to)
}

// faultsAround are those that struck about that time.
func (r *run) faultsAround(from, to time.Duration) string {
	var b strings.Builder
	r.nem.mu.Lock()
	defer r.nem.mu.Unlock()
	for _, e := range r.nem.events {
		if e.to > from-2*time.Second && e.from < to+2*time.Second {
			fmt.Fprintf(&b, "  fault %s to %s: %s\n", at(e.from), at(e.to), e.label)
		}
	}
	return b.String()
}

func at(d time.Duration) string { return fmt.Sprintf("%.3fs", d.Seconds()) }

// plainByOutcome counts what was told of what is outside units.
func (o *outcome) plainByOutcome() map[string]int {
	counts := map[string]int{}
	for _, e := range o.plain {
		switch {
		case e.err == nil:
			counts["nil"]++
		case unreached(e.err):
			counts["failed: the server could not be reached"]++
		case lost(e.err):
			counts["failed: the connection was lost"]++
		default:
			why, _ := reason(e.err)
			counts["failed: "+why]++
		}
	}
	return counts
}

// plainExamples are some of the errors that have no name here.
func (o *outcome) plainExamples() (all []string) {
	for _, e := range o.plain {
		if e.err == nil || unreached(e.err) || lost(e.err) || len(all) == 3 {
			continue
		}
		if why, _ := reason(e.err); why == "another error" {
			all = append(all, fmt.Sprintf("%s: %v", e, e.err))
		}
	}
	return all
}

// byLabel counts the faults.
func (o *outcome) byLabel() map[string]int {
	counts := map[string]int{}
	for _, e := range o.events {
		counts[e.label]++
	}
	return counts
}

func (o *outcome) perMinute() float64 { return float64(len(o.events)) / o.raged.Minutes() }

// write prints the tables and the verdict.
func (o *outcome) write(w io.Writer) {
	fmt.Fprintf(w, "\n%s, %s of faults, %s in all, %d workers, seed %d\n", o.server, o.raged.Round(time.Second), o.took.Round(time.Second), o.set.workers, o.set.seed)
	table(w, fmt.Sprintf("faults: %d, %.0f a minute", len(o.events), o.perMinute()), o.byLabel())
	writeAccount(w, "units on livepool", o.live)
	table(w, "isolation: what was checked", map[string]int{
		"units": o.lists.Units, "lists": o.lists.Lists, "reads": o.lists.Reads, "appends": o.lists.Appends, "pairs of units whose order follows": o.lists.Orders,
	})
	table(w, fmt.Sprintf("outside units: %d statements and transactions; looks at what a borrower finds on its connection: %d", len(o.plain), o.looks), o.plainByOutcome())
	for _, text := range o.plainExamples() {
		fmt.Fprintf(w, "  %.300s\n", text)
	}
	s := o.stats
	table(w, "db.Stats()", map[string]int{
		"Opened": int(s.Opened), "ConnectFailed": int(s.ConnectFailed), "Outages": int(s.Outages), "Deaths": int(s.Deaths), "Swept": int(s.Swept),
		"Stalled": int(s.Stalled), "Killed": int(s.Killed), "KillUnneeded": int(s.KillUnneeded), "KillUnproved": int(s.KillUnproved), "KillFailed": int(s.KillFailed),
		"Retried": int(s.Retried), "Poisoned": int(s.Poisoned), "CommitsUnknown": int(s.CommitsUnknown), "CommitsResolved": int(s.CommitsResolved),
		"SessionsWaited": int(s.SessionsWaited), "SessionsTimedOut": int(s.SessionsTimedOut), "Resent": int(s.Resent), "OpenConnections": s.OpenConnections,
	})
	if o.naive != nil {
		writeAccount(w, "units on plain database/sql, tried again after any error, with no pauses, keys or units inside", o.naive)
		o.writeNaive(w)
	}
	o.writeViolations(w)
	fmt.Fprintln(w)
	if n := len(o.violations); n > 0 {
		fmt.Fprintf(w, "%d VIOLATIONS, seed %d\n", n, o.set.seed)
		return
	}
	fmt.Fprintf(w, "no violation: %d deliveries of %d units did what they were reported to have done, under %d faults\n", o.live.Deliveries, o.live.Units, len(o.events))
}

// writeViolations tells some of each sort in full, and how many there are.
func (o *outcome) writeViolations(w io.Writer) {
	const inFull = 5
	counts := map[string]int{}
	for _, v := range o.violations {
		if counts[v.Rule]++; counts[v.Rule] > inFull {
			continue
		}
		fmt.Fprintf(w, "\nVIOLATION, seed %d: %s\n  unit %d: %s\n%s", o.set.seed, v.Rule, v.Unit, v.Text, v.Story)
	}
	if len(counts) > 0 {
		table(w, "violations", counts)
	}
}

func writeAccount(w io.Writer, title string, a *account) {
	lines := map[string]int{}
	for name, n := range a.NotApplied {
		lines["not applied: "+name] = n
	}
	lines["nil"], lines["unknown"] = a.Applied, a.Unknown
	if a.Keyed > 0 {
		lines["of the unknown ones: with a key, and no end of its context"] = a.Keyed
	}
	if a.NoWitness > 0 {
		lines["of the unknown ones: for the new primary has no witness"] = a.NoWitness
	}
	if a.Again > 0 {
		lines["nil, applied by an earlier delivery"] = a.Again
		lines["nil"] -= a.Again
	}
	table(w, fmt.Sprintf("%s: %d, %d deliveries", title, a.Units, a.Deliveries), lines)
	for _, e := range a.Examples {
		fmt.Fprintf(w, "  %.300s\n", e)
	}
	fmt.Fprintf(w, "  %d attempts, %d of them after the first; on %d connections\n", a.Attempts, a.RunAgain, a.Conns)
	fmt.Fprintf(w, "  latency of nil: p50 %.1f ms, p99 %.1f ms, max %.1f ms, which was\n%s", a.P50, a.P99, a.Max, a.Slowest)
}

// writeNaive tells what was found of the naive way, each sort with an example.
func (o *outcome) writeNaive(w io.Writer) {
	counts, examples := map[string]int{}, map[string]string{}
	for _, v := range o.naiveFound {
		counts[v.Rule]++
		examples[v.Rule] = fmt.Sprintf("unit %d: %.160s", v.Unit, v.Text)
	}
	table(w, fmt.Sprintf("promises that it does not keep: %d times", len(o.naiveFound)), counts)
	for _, rule := range slices.Sorted(maps.Keys(examples)) {
		fmt.Fprintf(w, "  such as %s\n", examples[rule])
	}
	if len(o.naiveFound) == 0 {
		fmt.Fprintln(w, "  NONE FOUND: so this run proves nothing; it was too short, or its faults too few")
	}
}

// table prints names and their numbers, the largest first.
func table(w io.Writer, title string, counts map[string]int) {
	fmt.Fprintf(w, "\n%s\n", title)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Or(counts[b]-counts[a], strings.Compare(a, b)) })
	for _, name := range names {
		fmt.Fprintf(tw, "%d\t  %s\n", counts[name], name)
	}
	tw.Flush()
}

// save writes the same as JSON.
func (o *outcome) save(path string) error {
	text, err := json.MarshalIndent(map[string]any{
		"seed": o.set.seed, "server": o.server, "duration_s": math.Round(o.raged.Seconds()), "took_s": math.Round(o.took.Seconds()), "workers": o.set.workers, "only": o.set.only,
		"faults": map[string]any{"total": len(o.events), "per_minute": math.Round(o.perMinute()), "by_kind": o.byLabel()},
		"units":  o.live, "isolation": o.lists, "plain": o.plainByOutcome(), "looks_at_state": o.looks, "stats": o.stats, "violations": o.violations, "kept": o.kept(),
		"naive": o.naive, "naive_violations": len(o.naiveFound),
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// progress is one line that fits a terminal.
func (r *run) progress() string {
	faults, now := r.nem.doing()
	s := r.pool.Stats()
	line := fmt.Sprintf("%4.0fs %4d faults  nil %d  failed %d  unknown %d  retried %d  violations %d", r.now().Seconds(), faults,
		r.work.applied.Load(), r.work.failed.Load(), r.work.unknown.Load(), s.Retried, r.violationsSoFar())
	if r.naive != nil {
		line += fmt.Sprintf("  naive %d", r.naive.applied.Load())
	}
	return fmt.Sprintf("%s  %s", line, now)
}
