package main

import (
	"encoding/csv"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// figures are those of a run in which two equal pools differ by noise.
func figures(noise float64) []measurement {
	row := func(operation, pool string, took time.Duration, ratio, allocs float64) hotRow {
		return hotRow{operation: operation, pool: pool, took: measured{took, ratio}, allocs: allocs}
	}
	return []measurement{
		{"no-op driver", []hotRow{row("Exec", "plain", 100, 1, 2), row("Exec", "livepool", 120, 1.2, 2)}},
		{"a server, of ours", []hotRow{
			row("point query", "plain", 40_000, 1, 8), row("point query", plainAgain, 40_100, 1+noise, 8),
			row("point query", "livepool, pre-ping off", 40_200, 1.0046, 7),
		}},
	}
}

func readHistory(t *testing.T, path string) [][]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines, err := csv.NewReader(f).ReadAll() // fails if a line has other fields than the first
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// Each run adds its lines below those of the others, under one heading.
func TestHistoryGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.csv")
	for range 2 {
		h, err := openHistory(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.add(figures(0.01)...); err != nil {
			t.Fatal(err)
		}
	}
	lines := readHistory(t, path)
	if !slices.Equal(lines[0], historyColumns) {
		t.Errorf("the first line is %q, want the names of the columns", lines[0])
	}
	if want := 1 + 2*3; len(lines) != want {
		t.Fatalf("there are %d lines, want %d: %q", len(lines), want, lines)
	}
	for _, i := range []int{3, 6} {
		if _, err := time.Parse(time.DateOnly, lines[i][0]); err != nil || slices.Contains(lines[i][:4], "") {
			t.Errorf("date, commit, Go or processor are missing: %q", lines[i])
		}
		want := []string{"a server, of ours", "point query", "livepool, pre-ping off", "40000", "40200", "1.005", "8", "7"}
		if got := lines[i][4:]; !slices.Equal(got, want) {
			t.Errorf("line %d says %q, want %q", i, got, want)
		}
	}
}

// What was measured on a machine that is not quiet is not kept, not in part either.
func TestHistoryWantsAQuietMachine(t *testing.T) {
	for _, noise := range []float64{-0.03, 0.03} {
		path := filepath.Join(t.TempDir(), "history.csv")
		h, err := openHistory(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.add(figures(noise)...); err == nil || !strings.Contains(err.Error(), "not quiet") {
			t.Errorf("noise of %v: error is %v", noise, err)
		}
		if text, err := os.ReadFile(path); err != nil || len(text) != 0 {
			t.Errorf("noise of %v: the file holds %q, %v", noise, text, err)
		}
	}
}

// A file that is something else is left as it is, and one that cannot be written
// is known before the measuring.
func TestHistoryIsRefusedAtOnce(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other.csv")
	if err := os.WriteFile(other, []byte("a,b\n1,2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{other, filepath.Join(t.TempDir(), "no", "such", "directory.csv")} {
		if _, err := openHistory(t.Context(), path); err == nil {
			t.Errorf("%s is taken", path)
		}
	}
	if code, err := dispatch(t.Context(), nil, options{history: other}); err == nil || code != exitNoRun {
		t.Errorf("-history without hot ends with %d, %v", code, err)
	}
}

// The commit says if what was measured is not what it holds.
func TestCommitOfAHistory(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		if got := commit(t.Context(), "history.csv"); got != "unknown" {
			t.Errorf("without git the commit is %q", got)
		}
		return
	}
	for _, name := range []string{"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"} { // as a hook of git sets them
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(dir))
	if got := commit(t.Context(), "history.csv"); got != "unknown" {
		t.Errorf("outside of a repository the commit is %q", got)
	}
	change := func(name string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(time.Now().String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change("code.go")
	change("history.csv")
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"}} {
		if out, err := exec.CommandContext(t.Context(), "git", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	clean := commit(t.Context(), "history.csv")
	if len(clean) != 12 {
		t.Errorf("the commit is %q, want 12 digits", clean)
	}
	change("history.csv")
	if got := commit(t.Context(), filepath.Join(dir, "history.csv")); got != clean {
		t.Errorf("with new figures the commit is %q, want %q", got, clean)
	}
	change("code.go")
	if got := commit(t.Context(), "history.csv"); got != clean+"+changes" {
		t.Errorf("with changed code the commit is %q, want %q", got, clean+"+changes")
	}
}
