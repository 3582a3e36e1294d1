package storm

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table into docs/frameworks.md")

const (
	begin = "<!-- written by: go test ./examples/internal/storm -run Table -update -->\n"
	end   = "<!-- the end of what is written -->\n"
)

// The page has the table as it is here.
func TestTable(t *testing.T) {
	page := filepath.Join("..", "..", "..", "docs", "frameworks.md")
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, foundEnd := strings.Cut(rest, end)
	if !found || !foundEnd {
		t.Fatal("docs/frameworks.md does not say where the table is")
	}
	want := before + begin + table(t) + end + after
	switch {
	case want == string(text):
	case *update:
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Error("docs/frameworks.md is out of date; run: go test ./examples/internal/storm -run Table -update")
	}
}

func table(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| framework | on the pool | in a unit | its own transactions, in a unit | prepared statements | remarks |\n|---|---|---|---|---|---|\n")
	for _, f := range Frameworks {
		fmt.Fprintf(&b, "| [%s](../examples/%s/main.go) %s | %s | %s | %s | %s | %s |\n",
			f.Name, f.Dir, strings.TrimPrefix(version(t, "../../go.mod", f.Module), "v"), f.Pool, f.Unit, f.Nested, f.Prepared, f.Remarks)
	}
	return b.String()
}

// Each row says something in each column, and has an example that is tested as the table says.
func TestEachRowIsTested(t *testing.T) {
	if !slices.IsSortedFunc(Frameworks, func(a, b Framework) int {
		return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name))
	}) {
		t.Error("the rows are not sorted by name")
	}
	tested := 0
	dirs, err := filepath.Glob(filepath.Join("..", "..", "*", "main_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range dirs {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "storm.Test(") {
			tested++
		}
	}
	if tested != len(Frameworks) {
		t.Errorf("%d examples are tested, and the table has %d rows", tested, len(Frameworks))
	}
	for _, f := range Frameworks {
		text, err := os.ReadFile(filepath.Join("..", "..", f.Dir, "main_test.go"))
		if err != nil {
			t.Error(err)
		} else if !strings.Contains(string(text), fmt.Sprintf("storm.Test(t, %q, ", f.Name)) {
			t.Errorf("examples/%s does not test %s", f.Dir, f.Name)
		}
		if slices.Contains([]string{f.Pool, f.Unit, f.Nested, f.Prepared}, "") {
			t.Errorf("%s: the row is not complete", f.Name)
		}
	}
}
