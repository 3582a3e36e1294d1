package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

const root = "../../.."

// The table fits the library: what it breaks is there, once, and so are the tests
// that it names.
func TestTableFitsTheLibrary(t *testing.T) {
	tests, err := findTests(root)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range mutants {
		if seen[m.breaks] {
			t.Errorf("%q is there twice", m.breaks)
		}
		seen[m.breaks] = true
		text, err := os.ReadFile(filepath.Join(root, m.file))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.apply(string(text)); err != nil {
			t.Errorf("%s: %v", m.breaks, err)
		}
		if m.from == m.to {
			t.Errorf("%s: nothing is changed", m.breaks)
		}
		if _, err := tests.aims(m.test); err != nil {
			t.Errorf("%s: %v", m.breaks, err)
		}
		if _, err := regexp.Compile(m.test); err != nil {
			t.Errorf("%s: %v", m.breaks, err)
		}
	}
}

// Each alternative of a pattern goes to the package that has its test.
func TestPatternsAreDealtOut(t *testing.T) {
	all := tests{"TestA": {"."}, "TestB": {"internal/b"}, "TestC": {".", "internal/b"}}
	for _, tt := range []struct {
		pattern string
		want    []aim
	}{
		{"TestA", []aim{{".", "TestA"}}},
		{"TestA$|^TestB/x$", []aim{{".", "TestA$"}, {"internal/b", "^TestB/x$"}}},
		{"TestB|TestC/x", []aim{{".", "TestC/x"}, {"internal/b", "TestB|TestC/x"}}},
		{"TestA|TestD", nil},
	} {
		if got, err := all.aims(tt.pattern); !slices.Equal(got, tt.want) || (err == nil) != (tt.want != nil) {
			t.Errorf("%s: %v, %v, want %v", tt.pattern, got, err, tt.want)
		}
	}
}

func TestWhatATestProgramSays(t *testing.T) {
	for _, tt := range []struct {
		name, out, pattern string
		ran                bool
		caught             string
	}{
		{"passes", "=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\n", "TestA", true, ""},
		{"passes, without the subtest", "=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\n", "TestA/b", false, ""},
		{"is skipped", "=== RUN   TestA\n=== RUN   TestA/b\n--- PASS: TestA (0.00s)\n    --- SKIP: TestA/b (0.00s)\nPASS\n", "TestA/b", false, ""},
		{"is not there", "testing: warning: no tests to run\nPASS\n", "TestA", false, ""},
		{"fails", "=== RUN   TestA\n=== RUN   TestA/b\n--- FAIL: TestA (0.00s)\n    --- PASS: TestA/a (0.00s)\n    --- FAIL: TestA/b (0.00s)\nFAIL\n", "TestA", true, "TestA/b"},
		{"hangs", "=== RUN   TestA\npanic: test timed out after 2m0s\n", "TestA", false, "TestA, which hung until its timeout"},
		{"panics", "=== RUN   TestA\nfatal error: all goroutines are asleep - deadlock!\n", "TestA", false, "TestA, which crashed: all goroutines are asleep - deadlock!"},
		{"leaves goroutines behind", "=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\ngoleak: Errors on successful test run\n", "TestA", true,
			"the look for goroutines that are left behind, after TestA"},
	} {
		if got := hasRun(tt.out, tt.pattern); got != tt.ran {
			t.Errorf("%s: has run: %v", tt.name, got)
		}
		if got := catcher(tt.out); tt.caught != "" && got != tt.caught {
			t.Errorf("%s: caught by %q, want %q", tt.name, got, tt.caught)
		}
	}
}
