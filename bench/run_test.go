package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/testenv"
)

// playPhases is a short run on a real server, of some phases of the plan.
func playPhases(t *testing.T, names ...string) (*run, *outcome) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	s, err := findSite(t.Context(), testWriter{t}, "", "mariadb")
	if err != nil {
		testenv.Missing(t, "%v", err)
	}
	t.Cleanup(func() { s.close() })
	r, err := newRun(t.Context(), s, load{jobs: 40, span: 200 * time.Millisecond, seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	var phases []phase
	for _, p := range plan {
		if slices.Contains(names, p.name) {
			phases = append(phases, p)
		}
	}
	marks, err := r.play(t.Context(), phases)
	if err != nil {
		t.Fatal(err)
	}
	o := &outcome{site: s, phases: phases, marks: marks, took: r.now()}
	if o.lanes, err = r.audit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r, o
}

// A server that takes no writes for a while, or no connections, fails the jobs of
// the plain pool at once. Units wait for it.
func TestServerAway(t *testing.T) {
	_, o := playPhases(t, "switch of roles", "outage")
	if kept, verdict := o.verdict(); !kept {
		t.Error(verdict)
	}
	for i, lasts := range []time.Duration{switching, outage} {
		if n := failures(inPhase(o.lanes[0].samples, i)); n == 0 {
			t.Errorf("%s cost the plain pool nothing: the fault did not strike", o.phases[i].name)
		}
		if got := standStill(inPhase(o.lanes[3].samples, i)); got < lasts/2 || got > jobTimeout {
			t.Errorf("%s: units stood still for %s, want about %s", o.phases[i].name, got, lasts)
		}
	}
}

// Every job is accounted for, and livepool loses none to connections that were closed
// or reset while idle. Where the answer to COMMIT is lost, a retry on any error does
// the job twice, and a unit once.
func TestRun(t *testing.T) {
	r, o := playPhases(t, "calm", "killed", "restart", "forgotten", "COMMIT unanswered")
	if kept, verdict := o.verdict(); !kept {
		t.Error(verdict)
	}
	for _, l := range o.lanes {
		if got, want := len(l.samples), len(o.phases)*40; got != want {
			t.Errorf("%s: %d jobs, want %d", l.name, got, want)
		}
		if l.audit.discrepancy != 0 {
			t.Errorf("%s: money off by %d", l.name, l.audit.discrepancy)
		}
		if !strings.Contains(r.progress(), l.name) {
			t.Errorf("no %s in the progress line %q", l.name, r.progress())
		}
	}
	if n := failures(inPhase(o.lanes[0].samples, 3)); n == 0 {
		t.Error("a forgotten connection cost the plain pool nothing: the fault did not strike")
	}
	for i, want := range []struct{ failedYetDone, twice bool }{{true, false}, {false, true}, {true, false}, {false, false}} {
		if a := o.lanes[i].audit; a.failedYetDone > 0 != want.failedYetDone || a.twice > 0 != want.twice {
			t.Errorf("%s: after lost answers to COMMIT %d failed and are done, %d are done twice", o.lanes[i].name, a.failedYetDone, a.twice)
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func TestPlanFor(t *testing.T) {
	private := &site{kill: func() error { return nil }}
	if phases, skipped := planFor(private); len(phases) != len(plan) || skipped != nil {
		t.Errorf("a private server: %d phases, skipped %q", len(phases), skipped)
	}
	for _, s := range []*site{{}, {firstLook: embeddedCaveat}} {
		phases, skipped := planFor(s)
		if len(phases) != len(plan)-3 || len(skipped) != 3 {
			t.Errorf("a server that must not be restarted: %d phases, skipped %q", len(phases), skipped)
		}
	}
}

func TestOwnSite(t *testing.T) {
	s, err := ownSite("u:p@tcp(db.example:3306)/shop?interpolateParams=true")
	if err != nil {
		t.Fatal(err)
	}
	if s.kill != nil || s.start != nil {
		t.Error("somebody's own server would be restarted")
	}
	dsn := laneDSN(s.mysql, "127.0.0.1:1")
	for _, want := range []string{"tcp(127.0.0.1:1)/shop", "wait_timeout=4", "interpolateParams=true"} {
		if !strings.Contains(dsn, want) {
			t.Errorf("no %s in %s", want, dsn)
		}
	}
	for _, bad := range []string{"nonsense", "u@unix(/s)/shop", "u@tcp(h:1)/"} {
		if _, err := ownSite(bad); err == nil {
			t.Errorf("-dsn %s was accepted", bad)
		}
	}
}

func TestPreferredKinds(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if kinds := preferredKinds(); kinds[0] != server.MariaDB || len(kinds) != 2 {
		t.Errorf("kinds: %v", kinds)
	}
}
