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
	someOutcome().write(&b, "picture: here")
	got := b.String()
	for _, want := range []string{
		"black hole                         1 failed, max 2.0 s    ok, max 1.0 s",
		"mid <work> *                       1 failed, max 4.0 ms   1 failed, max 5.0 ms",
		"skipped restart: the server is yours",
		"livepool.Open lost none of the 2 jobs",
		"\npicture: here\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if last := "\nlivepool.Open: 1 of 3 jobs failed, none applied twice. Plain database/sql: 2 failed.\n"; !strings.HasSuffix(got, last) {
		t.Errorf("it does not end with %q:\n%s", last, got)
	}
}

func TestSummary(t *testing.T) {
	got := map[string][]string{}
	table := someOutcome().summary()
	for _, r := range append(table.Rows, table.Same...) {
		for _, c := range r.Cells {
			got[r.Label] = append(got[r.Label], c.text())
		}
	}
	for label, want := range map[string][]string{
		"jobs failed":                        {"2", "1"},
		"failed with job timeout":            {"1", "0"},
		"failed with invalid connection":     {"1", "1"},
		"failed because of idle connections": {"1", "0"},
		"applied twice":                      {"0", "0"},
		"longest stand-still, jobs waiting":  {"1.0 s", "1.0 s"},
		"median job":                         {"4.0 ms", "5.0 ms"},
		"slowest job":                        {"2.0 s", "1.0 s"},
	} {
		if !slices.Equal(got[label], want) {
			t.Errorf("%s: %v, want %v", label, got[label], want)
		}
	}
}

// What differs between the lanes is read first, what went wrong in the same way in
// all comes below, and what went well in all is one line.
func TestDifferencesFirst(t *testing.T) {
	r := func(label string, bad bool, texts ...string) row {
		r := row{Label: label}
		for _, s := range texts {
			r.Cells = append(r.Cells, cell{Lines: []string{s}, Bad: bad})
		}
		return r
	}
	slow := r("slow", false, "ok", "ok")
	slow.Cells[0].Max, slow.Cells[1].Max = time.Millisecond, 2*time.Second
	near := r("near", false, "ok", "ok")
	near.Cells[0].Max, near.Cells[1].Max = time.Millisecond, time.Second
	got := tableOf("", []row{r("wrong", true, "3", "3"), near, r("differs", true, "0", "1"), slow})
	var labels []string
	for _, r := range got.Rows {
		labels = append(labels, r.Label)
	}
	if want := []string{"differs", "slow", "wrong"}; !slices.Equal(labels, want) {
		t.Errorf("rows are %v, want %v", labels, want)
	}
	if want := "the same in all: near: no job failed, the slowest took 1.0 s"; got.SameText() != want {
		t.Errorf("%q, want %q", got.SameText(), want)
	}
	if got, want := tableOf("", []row{r("lost", false, "0", "0")}).SameText(), "the same in all: lost 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestStandStill(t *testing.T) {
	s := func(arrived, latency time.Duration, failure string) sample {
		return sample{arrived: arrived * time.Second, latency: latency * time.Second, failure: failure}
	}
	for _, tt := range []struct {
		name    string
		samples []sample
		want    time.Duration
	}{
		{"no job", nil, 0},
		{"one", []sample{s(1, 3, "")}, 3},
		{"nobody waits in between", []sample{s(0, 1, ""), s(9, 2, "")}, 2},
		{"others succeed meanwhile", []sample{s(0, 9, ""), s(1, 1, ""), s(3, 2, ""), s(4, 2, "")}, 3},
		{"others fail meanwhile", []sample{s(0, 9, ""), s(1, 1, "x"), s(3, 2, "x"), s(4, 2, "x")}, 9},
		{"all hang until they fail", []sample{s(0, 1, ""), s(1, 10, "x"), s(2, 10, "x"), s(20, 1, "")}, 11},
		{"one fails as the next arrives", []sample{s(0, 5, "x"), s(5, 5, "")}, 10},
		{"fails at once", []sample{s(0, 0, "x"), s(5, 0, "x"), s(9, 1, "")}, 1},
		{"in the order in which they are done", []sample{s(4, 1, ""), s(0, 4, "")}, 4},
	} {
		if got := standStill(tt.samples); got != tt.want*time.Second {
			t.Errorf("%s: %v, want %v s", tt.name, got, int(tt.want))
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
		{"a unit lost under running jobs", func(_ *outcome, live *laneOutcome) { live.contender = contenders[3] }, false},
	} {
		o := someOutcome()
		tt.change(o, &o.lanes[1])
		kept, text := o.verdict()
		if kept != tt.kept {
			t.Errorf("%s: %v, %s", tt.name, kept, text)
		}
		if says := !strings.Contains(o.sentence(), "BROKE"); says != tt.kept {
			t.Errorf("%s: the last sentence is %q", tt.name, o.sentence())
		}
	}
}

// fullOutcome has all lanes, and 1,344 jobs on each.
func fullOutcome() *outcome {
	o := someOutcome()
	o.lanes = nil
	for i, a := range []audit{{failedYetDone: 8}, {twice: 8}, {}, {}} {
		l := laneOutcome{contender: contenders[i], samples: make([]sample, 1344), audit: a}
		for j := range []int{130, 52, 0, 0}[i] {
			l.samples[j].failure = "x"
		}
		o.lanes = append(o.lanes, l)
	}
	return o
}

func TestSentence(t *testing.T) {
	others := " livepool.Open: 0 failed. Plain database/sql: 130 failed, 8 of them applied all the same. Retry on any error: 52 failed, 8 applied twice."
	for _, tt := range []struct {
		name   string
		change func(units *laneOutcome)
		want   string
	}{
		{"well", func(*laneOutcome) {}, "livepool.WithSession: 0 of 1,344 jobs failed, none applied twice."},
		{"broken", func(units *laneOutcome) {
			units.samples[7].failure = "x"
			units.audit = audit{twice: 2, vanished: 3, discrepancy: -40}
		}, "livepool BROKE its promise. livepool.WithSession: 1 of 1,344 jobs failed, 2 applied twice, 3 lost after success, money off by -40."},
	} {
		o := fullOutcome()
		tt.change(&o.lanes[3])
		if got := o.sentence(); got != tt.want+others {
			t.Errorf("%s:\n%q, want\n%q", tt.name, got, tt.want+others)
		}
	}
}

// Who sees a run in which the retry was lucky is told that it was luck.
func TestNoticeOfLuck(t *testing.T) {
	o := fullOutcome()
	if got := o.notice(); got != "" {
		t.Errorf("applied twice, and the notice is %q", got)
	}
	o.lanes[1].audit.twice = 0
	for what, got := range map[string]string{"the text": written(o), "the page": drawn(t, o)} {
		if !strings.Contains(got, "chance, not safety") {
			t.Errorf("no notice in %s", what)
		}
	}
	o.site.firstLook = embeddedCaveat
	if got := o.notice(); got != "" {
		t.Errorf("rows prove nothing, and the notice is %q", got)
	}
}

func written(o *outcome) string {
	var b strings.Builder
	o.write(&b)
	return b.String()
}

func drawn(t *testing.T, o *outcome) string {
	t.Helper()
	dir := t.TempDir()
	if err := o.draw(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, pageName))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestPage(t *testing.T) {
	text := drawn(t, someOutcome())
	for _, want := range []string{
		"mid &lt;work&gt; *", "they vanish", "skipped restart", "livepool.<wbr>Open", "</html>",
		`<td class="bad"><b>1 failed</b><span>med 3.0 ms</span><span>max 2.0 s</span><i style="width: 20.0%"></i></td>`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if strings.Contains(text, "://") {
		t.Error("there is an address in a page that shall need nothing outside it")
	}
}

func TestDrawing(t *testing.T) {
	o := someOutcome()
	o.lanes[0].samples[2].applied = 2
	svg := o.svg()
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
	}
	for what, want := range map[string]int{`class="cell bad"`: 3, `class="cell ok"`: 1, ">1 failed<": 3, ">1 twice<": 1, ">mid &lt;work&gt; *<": 1} {
		if got := strings.Count(svg, what); got != want {
			t.Errorf("%d of %s, want %d", got, what, want)
		}
	}
}

func TestParagraph(t *testing.T) {
	var d drawing
	long := strings.Repeat("x", column)
	d.paragraph("", long+" y "+long+"z")
	var lines []string
	for line := range strings.Lines(d.b.String()) {
		_, text, _ := strings.Cut(line, ">")
		lines = append(lines, strings.TrimSuffix(text, "</text>\n"))
	}
	if want := []string{long, "y", long, "z"}; !slices.Equal(lines, want) || d.y != 4*line {
		t.Errorf("%q, %v high", lines, d.y)
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
	if got := appliedTwice(samples); got != 2 {
		t.Errorf("%d samples say that their job was applied twice, want 2", got)
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
