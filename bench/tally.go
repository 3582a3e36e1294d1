// tally.go counts and measures what the jobs of a run were told, and writes numbers
// as a person does. What is made of them is report.go's affair.

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/livepool/livepool/bench/gauge"
)

// atRest are the samples of the phases that strike idle connections, if any: those
// for which livepool promises without units.
func (o *outcome) atRest(samples []sample) []sample {
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

func appliedTwice(samples []sample) (n int) {
	for _, s := range samples {
		if s.applied > 1 {
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

// standStill returns the longest time in which jobs of a lane waited and none of them
// succeeded. Jobs that have failed wait no more: a lane that fails at once never stands
// still, and its failures tell what that is worth.
func standStill(samples []sample) (longest time.Duration) {
	type event struct {
		at    time.Duration
		jobs  int // +1: one arrives; -1: one is done
		moved bool
	}
	var events []event
	for _, s := range samples {
		events = append(events, event{s.arrived, 1, false}, event{s.arrived + s.latency, -1, !s.failed()})
	}
	slices.SortFunc(events, func(a, b event) int { return cmp.Or(cmp.Compare(a.at, b.at), b.jobs-a.jobs) })
	var waiting int
	var since time.Duration
	for _, e := range events {
		before := waiting
		waiting += e.jobs
		switch {
		case before == 0:
			since = e.at
		case e.moved, waiting == 0:
			longest = max(longest, e.at-since)
			since = e.at
		}
	}
	return longest
}

func showLatency(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case ms >= 1000:
		return fmt.Sprintf("%.1f s", ms/1000)
	case ms >= 10:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f ms", ms)
	}
}

// thousands writes 1344 as 1,344.
func thousands(n int) string {
	if n < 0 {
		return "-" + thousands(-n)
	}
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
