package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../../.."

// The table fits the library: what it breaks is there, once, and so are the tests
// that it names.
func TestTableFitsTheLibrary(t *testing.T) {
	tests := testNames(t)
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
		if name, _, _ := strings.Cut(strings.TrimSuffix(m.test, "$"), "/"); !tests[name] {
			t.Errorf("%s: there is no test %s", m.breaks, name)
		}
		if _, err := regexp.Compile(m.test); err != nil {
			t.Errorf("%s: %v", m.breaks, err)
		}
	}
}

// testNames are the tests of the library.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests: %v", err)
	}
	names := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			names[m[1]] = true
		}
	}
	return names
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
