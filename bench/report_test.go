package main

import (
	"context"
	"database/sql/driver"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// someOutcome is a run of two phases, of which livepool promises for the first.
// Plain lost a job in each, livepool one in the second.
func someOutcome() *outcome {
	at := func(id, phase int, ms int, failure string) sample {
		return sample{
			job: job{id: id}, phase: phase, failure: failure,
			arrived: time.Duration(id) * time.Second, latency: time.Duration(ms) * time.Millisecond,
		}
	}
	return &outcome{
		site:   &site{title: "a server"},
		phases: []phase{{name: "black hole", what: "they vanish", promised: true}, {name: "mid <work>", what: "they break"}},
		marks: []mark{
			{phase: 0, begin: 0, from: 500 * time.Millisecond, to: time.Second, end: 2 * time.Second},
			{phase: 1, begin: 2 * time.Second, end: 5 * time.Second},
		},
		skipped: []string{"restart: the server is yours"},
		took:    5 * time.Second,
		lanes: []laneOutcome{
			{contender: contenders[0], samples: []sample{at(1, 0, 2000, "job timeout"), at(2, 0, 3, ""), at(3, 1, 4, "invalid connection")}, audit: audit{lost: 2}},
			{contender: contenders[2], samples: []sample{at(1, 0, 1000, ""), at(2, 0, 2, ""), at(3, 1, 5, "invalid connection")}, audit: audit{lost: 1}},
		},
	}
}

func TestReport(t *testing.T) {
	var b strings.Builder
	someOutcome().write(&b)
	got := b.String()
	for _, want := range []string{
		"1 black hole                       1 FAILED, max 2.00 s   ok, max 1.00 s",
		"2 mid <work> *                     1 FAILED, max 4.0 ms   1 FAILED, max 5.0 ms",
		"skipped restart: the server is yours",
		"livepool lost none of the 2 jobs",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestSummary(t *testing.T) {
	got := map[string][]string{}
	for _, r := range someOutcome().summary() {
		for _, c := range r.Cells {
			got[r.Label] = append(got[r.Label], c.Text)
		}
	}
	for label, want := range map[string][]string{
		"jobs":                       {"3", "3"},
		"succeeded":                  {"1", "2"},
		"failed":                     {"2", "1"},
		"job timeout":                {"1", "0"},
		"invalid connection":         {"1", "1"},
		"failed in phases without *": {"1", "0"},
		"failed and not done":        {"2", "1"},
		"latency p50":                {"4.0 ms", "5.0 ms"},
		"latency max":                {"2.00 s", "1.00 s"},
	} {
		if !slices.Equal(got[label], want) {
			t.Errorf("%s: %v, want %v", label, got[label], want)
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(o *outcome, live *laneOutcome)
		kept   bool
	}{
		{"none lost", func(*outcome, *laneOutcome) {}, true},
		{"one lost where it promises", func(_ *outcome, live *laneOutcome) { live.samples[0].failure = "bad connection" }, false},
		{"applied twice", func(_ *outcome, live *laneOutcome) { live.audit.twice = 1 }, false},
		{"succeeded, not applied", func(_ *outcome, live *laneOutcome) { live.audit.vanished = 1 }, false},
		{"money missing", func(_ *outcome, live *laneOutcome) { live.audit.discrepancy = -1 }, false},
		{"money missing on a server that loses rows", func(o *outcome, live *laneOutcome) {
			live.audit.discrepancy = -1
			o.site.firstLook = embeddedCaveat
		}, true},
		{"plain lost one more", func(o *outcome, _ *laneOutcome) { o.lanes[0].samples[1].failure = "x" }, true},
	} {
		o := someOutcome()
		tt.change(o, &o.lanes[1])
		if kept, text := o.verdict(); kept != tt.kept {
			t.Errorf("%s: %v, %s", tt.name, kept, text)
		}
	}
}

func TestPicture(t *testing.T) {
	o := someOutcome()
	svg := o.svg()
	if err := xml.Unmarshal([]byte(svg), new(struct{})); err != nil {
		t.Errorf("not well-formed: %v", err)
	}
	for what, want := range map[string]int{"<circle": 3, "<path": 3, ">1 failed<": 3, "#fecaca": 2} {
		if got := strings.Count(svg, what); got != want {
			t.Errorf("%d of %s, want %d", got, what, want)
		}
	}
	dir := t.TempDir()
	if err := o.draw(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, pageName))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"they vanish", "mid &lt;work&gt; *", "skipped restart", "</html>"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if links := strings.Count(string(text), "://"); links != 1 { // the SVG's own namespace
		t.Errorf("%d addresses in a page that shall need nothing outside it", links-1)
	}
}

func TestLatencyAxis(t *testing.T) {
	if top, bottom := y(100, slowest), y(100, fastest); top != 100 || bottom != 100+strip {
		t.Errorf("the axis is from %v to %v", top, bottom)
	}
	if y(0, time.Hour) != 0 || y(0, 0) != strip {
		t.Error("what is off the axis is not at its end")
	}
}

func TestFailureOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{fmt.Errorf("a: %w", context.DeadlineExceeded), "job timeout (10s)"},
		{&mysql.MySQLError{Number: 1927, Message: "killed"}, "server error 1927"},
		{mysql.ErrInvalidConn, "invalid connection"},
		{driver.ErrBadConn, "bad connection"},
		{syscall.ECONNREFUSED, "connection refused"},
		{io.ErrUnexpectedEOF, "unexpected EOF"},
		{errors.New("else"), "else"},
	} {
		if got := failureOf(tt.err); got != tt.want {
			t.Errorf("failureOf(%v) = %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestCheckSamples(t *testing.T) {
	s := func(id int, kind jobKind, failure string) sample {
		return sample{job: job{id: id, kind: kind}, failure: failure}
	}
	samples := []sample{
		s(1, deposit, ""), s(2, note, ""), s(3, lookup, ""), // as it should be
		s(4, deposit, "x"), s(5, lookup, "x"), // lost
		s(6, note, "x"),    // failed, and there
		s(7, deposit, ""),  // twice
		s(8, deposit, "x"), // failed, and there twice
		s(9, note, ""),     // vanished
	}
	got := checkSamples(samples, map[int]int{1: 1, 2: 1, 6: 1, 7: 2, 8: 2})
	if want := (audit{lost: 2, failedYetDone: 1, twice: 2, vanished: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestMakeJobs(t *testing.T) {
	jobsOf := func(seed uint64) []job { return makeJobs(rand.New(rand.NewPCG(seed, 0)), 10, 200) }
	jobs := jobsOf(1)
	if !slices.Equal(jobs, jobsOf(1)) {
		t.Error("the same seed made other jobs")
	}
	kinds := map[jobKind]int{}
	for i, j := range jobs {
		if j.id != 10+i || j.account < 0 || j.account >= accounts || j.amount < 1 {
			t.Errorf("job %d is %+v", i, j)
		}
		kinds[j.kind]++
	}
	if len(kinds) != 3 || kinds[deposit] < kinds[note] {
		t.Errorf("kinds: %v", kinds)
	}
}
