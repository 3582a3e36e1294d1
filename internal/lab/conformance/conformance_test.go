package main

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/livepool/livepool/internal/lab/server"
)

// outcomes makes a run of what became of its tests.
func outcomes(of ...string) ran {
	r := ran{outcomes: map[string]string{}, said: map[string]string{}}
	for _, o := range of {
		name, outcome, _ := strings.Cut(o, ":")
		r.outcomes[name] = outcome
	}
	return r
}

func TestADifferenceIsFound(t *testing.T) {
	for _, tt := range []struct {
		name            string
		plain, livepool ran
		unknown         []string
	}{
		{"none", outcomes("A:pass", "B:fail", "C:skip"), outcomes("A:pass", "B:fail", "C:skip"), nil},
		{"fails", outcomes("A:pass", "B:pass"), outcomes("A:pass", "B:fail"), []string{"B"}},
		{"passes", outcomes("A:fail"), outcomes("A:pass"), []string{"A"}},
		{"is skipped", outcomes("A:pass"), outcomes("A:skip"), []string{"A"}},
		{"does not end", outcomes("A:pass", "B:pass"), outcomes("A:pass"), []string{"B"}},
		{"is new", outcomes("A:pass"), outcomes("A:pass", "B:pass"), []string{"B"}},
		{"in a subtest", outcomes("A:pass", "A/b:pass", "A/c:pass"), outcomes("A:fail", "A/b:pass", "A/c:fail"), []string{"A", "A/c"}},
	} {
		c := compare(tt.plain, tt.livepool, nil)
		if !slices.Equal(c.unknown, tt.unknown) || !slices.Equal(c.differences, tt.unknown) || c.tests != c.same+len(tt.unknown) {
			t.Errorf("%s: %+v, want %v to differ", tt.name, c, tt.unknown)
		}
		r := result{comparison: c, plain: tt.plain, livepool: tt.livepool}
		var said bytes.Buffer
		if problems := r.report(&said, false); problems != len(tt.unknown) {
			t.Errorf("%s: %d problems, want %d:\n%s", tt.name, problems, len(tt.unknown), said.String())
		}
	}
	c := compare(outcomes("A:pass", "B:fail", "C:skip"), outcomes("A:pass", "B:fail", "C:skip"), nil)
	if !slices.Equal(c.failed, []string{"B"}) || c.skipped != 1 {
		t.Errorf("%v failed and %d were skipped in both runs, want B and 1", c.failed, c.skipped)
	}
}

func TestAnExplanationIsUsedOrObsolete(t *testing.T) {
	plain := outcomes("A:pass", "A/b:pass", "A/b/c:pass", "Ab:pass")
	for _, tt := range []struct {
		name              string
		livepool          ran
		test              string
		unknown, obsolete []string
	}{
		{"of the test", outcomes("A:fail", "A/b:pass", "A/b/c:pass", "Ab:pass"), "A", nil, nil},
		{"of a subtest, which fails those around it", outcomes("A:fail", "A/b:fail", "A/b/c:fail", "Ab:pass"), "A/b", nil, nil},
		{"of another test", outcomes("A:pass", "A/b:pass", "A/b/c:pass", "Ab:fail"), "A", []string{"Ab"}, []string{"A"}},
		{"of what no longer differs", plain, "A", nil, []string{"A"}},
		{"of a subtest that passes, though the test does not", outcomes("A:fail", "A/b:pass", "A/b/c:pass", "Ab:pass"), "A/b", nil, []string{"A/b"}},
		{"of a test that there is not", plain, "D", nil, []string{"D"}},
	} {
		c := compare(plain, tt.livepool, map[string]string{tt.test: "because"})
		if !slices.Equal(c.unknown, tt.unknown) || !slices.Equal(c.obsolete, tt.obsolete) || len(c.explained)+len(c.obsolete) != 1 {
			t.Errorf("%s: %+v, want unknown %v and obsolete %v", tt.name, c, tt.unknown, tt.obsolete)
		}
		var said bytes.Buffer
		r := result{comparison: c, plain: plain, livepool: tt.livepool}
		if problems := r.report(&said, false); problems != len(tt.unknown)+len(tt.obsolete) {
			t.Errorf("%s: %d problems:\n%s", tt.name, problems, said.String())
		}
	}
}

func TestARunThatMeansNothingIsRefused(t *testing.T) {
	through := func(r ran, pools int) ran { r.pools = pools; return r }
	for _, tt := range []struct {
		name            string
		plain, livepool ran
		refused         bool
	}{
		{"means something", outcomes("A:pass", "B:fail"), through(outcomes("A:pass"), 1), false},
		{"no test", outcomes(), through(outcomes(), 1), true},
		{"all skipped or failed", outcomes("A:skip", "B:fail"), through(outcomes("A:skip", "B:fail"), 1), true},
		{"a crash in the middle", outcomes("A:pass", "B:"), through(outcomes("A:pass", "B:"), 1), true},
		{"not through livepool", outcomes("A:pass"), outcomes("A:pass"), true},
		{"both through livepool", through(outcomes("A:pass"), 1), through(outcomes("A:pass"), 1), true},
	} {
		if err := meansNothing(tt.plain, tt.livepool); (err != nil) != tt.refused {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// What became of a test alone counts, whether it is more or less than what became of it beside others.
func TestWhatIsRunAgainAloneCounts(t *testing.T) {
	plain, livepool := outcomes("A:pass", "B:pass", "C:pass", "C/d:pass", "Ab:pass"), outcomes("A:fail", "B:fail", "C:pass", "C/d:", "Ab:fail")
	again := []string{"A", "B", "C"}
	plain.replace(again, outcomes("A:pass", "B:pass", "C:pass"))
	livepool.replace(again, outcomes("A:pass", "B:fail", "C:pass"))
	if c := compare(plain, livepool, nil); !slices.Equal(c.unknown, []string{"Ab", "B"}) || c.tests != 4 {
		t.Errorf("%+v", c)
	}
}

// A test in which the program crashes has no outcome.
func TestEventsOfATestProgram(t *testing.T) {
	const mark = "\x16"
	r, err := events(t.Context(), strings.NewReader(mark+"=== RUN   TestA\n"+mark+"=== RUN   TestA/b\nsaid by b\n"+mark+"--- PASS: TestA/b (0.00s)\n"+
		mark+"--- FAIL: TestA (0.00s)\n"+mark+"=== RUN   TestB\n"+mark+"--- SKIP: TestB (0.00s)\n"+mark+"=== RUN   TestC\npanic: no\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"TestA": "fail", "TestA/b": "pass", "TestB": "skip", "TestC": ""}; !maps.Equal(r.outcomes, want) {
		t.Errorf("%v, want %v", r.outcomes, want)
	}
	if !strings.Contains(r.said["TestA/b"], "said by b") {
		t.Errorf("TestA/b is said to have said %q", r.said["TestA/b"])
	}
}

func TestAnEditThatFitsNoLongerIsRefused(t *testing.T) {
	e := edit{file: "a.go", from: `(\w+)\.\(\*conn\)`, to: "bare($1).(*conn)", add: "// added\n"}
	if text, err := e.apply("x := c.(*conn)\n"); err != nil || text != "x := bare(c).(*conn)\n// added\n" {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := e.apply("x := c\n"); err == nil {
		t.Errorf("%q", text)
	}
}

// The hooks fit the database/sql of this machine, and each suite is one that can be run.
func TestTableOfSuites(t *testing.T) {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "database/sql").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := makeEdits(map[string]string{}, strings.TrimSpace(string(dir)), sqlEdits); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "examples", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	required := regexp.MustCompile(`(?m)^\t(\S+) v`).FindAllStringSubmatch(string(text), -1)
	names := map[string]bool{}
	for _, s := range suites {
		if names[s.name] {
			t.Errorf("%s is there twice", s.name)
		}
		names[s.name] = true
		if len(s.explanations(server.MariaDB)) != len(s.explained)+len(s.onMariaDB) || len(s.explanations(server.MySQL)) != len(s.explained) {
			t.Errorf("%s: explanations of one server are taken for the other's, or are there twice", s.name)
		}
		isOfIt := func(module []string) bool { return within(s.pkg, module[1]) }
		if s.pkg != "database/sql" && !slices.ContainsFunc(required, isOfIt) {
			t.Errorf("%s: the examples do not require %s, which says the version", s.name, s.pkg)
		}
		for test, why := range s.explanations(server.MariaDB) {
			if !strings.HasPrefix(test, "Test") || len(why) < 20 {
				t.Errorf("%s: %s is explained by %q", s.name, test, why)
			}
		}
	}
}

func TestTableOfResults(t *testing.T) {
	r := result{comparison: compare(outcomes("TestA:pass", "TestB:skip", "TestC:pass"), outcomes("TestA:pass", "TestB:skip", "TestC:fail"), map[string]string{"TestC": "so it is"})}
	r.suite, r.version, r.server = suite{name: "x"}, "v1.0.0", "MariaDB 10.11"
	r.why = map[string]string{"TestC": "so it is"}
	text := page([]result{r, r})
	for _, want := range []string{"| x | v1.0.0 | MariaDB 10.11 | 3 | 2 | 0 | 1 | 1 |\n", "| x | `TestC` | so it is |\n", "| bun | "} {
		if !strings.Contains(text, want) {
			t.Errorf("the page has no %q:\n%s", want, text)
		}
	}
	if strings.Count(text, "so it is") != 1 {
		t.Error("an explanation is there twice")
	}
}
