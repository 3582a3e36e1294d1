package repo_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// stories are the packages of the library, from the lowest up. One imports only what is
// in a story below its own.
var stories = [][]string{
	{"/trace", "boundctx", "clock", "dsntext", "fifo", "hosts", "mysqlerr", "spelling", "sqltext", "unitdb", "usercode"},
	{"committable", "driverconn", "outage", "setting", "wire"},
	{"proclist"},
	{"connector"},
	{"the root"},
}

const (
	module     = "github.com/livepool/livepool"
	mostAtRoot = 46   // entries of the root, so that a stranger sees them at once
	mostOfRoot = 3150 // lines of its code: what a user sees, and the unit of work
)

// importsOf are the packages of ours that the files of a directory import, tests left
// out; and how many lines those files have.
func importsOf(t *testing.T, dir string) (imports []string, lines int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines += strings.Count(string(text), "\n")
		parsed, err := parser.ParseFile(token.NewFileSet(), file, text, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if rest, ours := strings.CutPrefix(path, module); ours {
				imports = append(imports, strings.TrimPrefix(rest, "/internal/"))
			}
		}
	}
	return imports, lines
}

// Arrows go downwards only.
func TestPackagesImportOnlyWhatIsBelow(t *testing.T) {
	atRoot(t)
	var below, known []string
	for _, story := range stories {
		for _, name := range story {
			dir := filepath.Join("internal", name)
			switch {
			case name == "the root":
				dir = "."
			case name[0] == '/': // public
				dir = name[1:]
			}
			imports, lines := importsOf(t, dir)
			if lines == 0 {
				t.Errorf("there is no package %s", name)
			}
			for _, imported := range imports {
				if !slices.Contains(below, imported) {
					t.Errorf("%s imports %s, which is not below it", name, imported)
				}
			}
			known = append(known, name)
		}
		below = append(below, story...)
	}
	entries, err := os.ReadDir("internal")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); e.IsDir() && !slices.Contains(append(known, "lab", "repo"), name) {
			t.Errorf("internal/%s has no story", name)
		}
	}
}

// nestedModules are published beside the library.
var nestedModules = []string{"livepooltest", "otel", "prometheus"}

// What is published beside the library uses it as its users do.
func TestNestedModulesImportOnlyWhatIsPublic(t *testing.T) {
	atRoot(t)
	for _, nested := range nestedModules {
		imports, lines := importsOf(t, nested)
		if lines == 0 {
			t.Errorf("there is no package %s", nested)
		}
		for _, imported := range imports {
			if imported != "" && imported != "/trace" {
				t.Errorf("%s imports %s", nested, imported)
			}
		}
	}
}

// The root is what a user sees, and no more.
func TestRootIsSmall(t *testing.T) {
	atRoot(t)
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name() == ".git" || e.Name() == "go.work.sum" }) // which go writes
	if len(entries) > mostAtRoot {
		t.Errorf("%d entries, want at most %d", len(entries), mostAtRoot)
	}
	if _, lines := importsOf(t, "."); lines > mostOfRoot {
		t.Errorf("%d lines of code, want at most %d", lines, mostOfRoot)
	}
}
