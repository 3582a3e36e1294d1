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
	begin = "<!-- %s, written by: go test ./examples/internal/storm -run Table -update -->\n"
	end   = "<!-- the end of what is written -->\n"
)

// The page has the tables as they are here.
func TestTable(t *testing.T) {
	page := filepath.Join("..", "..", "..", "docs", "frameworks.md")
	was, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(was)
	for name, table := range map[string]string{"frameworks": frameworks(t), "migrations": tools(t)} {
		begin := fmt.Sprintf(begin, name)
		before, rest, found := strings.Cut(text, begin)
		_, after, foundEnd := strings.Cut(rest, end)
		if !found || !foundEnd {
			t.Fatal("docs/frameworks.md does not say where the table is of", name)
		}
		text = before + begin + table + end + after
	}
	switch {
	case text == string(was):
	case *update:
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Error("docs/frameworks.md is out of date; run: go test ./examples/internal/storm -run Table -update")
	}
}

func frameworks(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| framework | on the pool | in a unit | its own transactions, in a unit | prepared statements | remarks |\n|---|---|---|---|---|---|\n")
	for _, f := range Frameworks {
		var v string
		if f.Generated == "" {
			v = version(t, "../../go.mod", f.Module)
		} else {
			v = readVersion(t, filepath.Join("..", "..", f.Dir, f.Generated), `(?m)^// +`+f.Name+` (v\S+)`)
		}
		fmt.Fprintf(&b, "| [%s](../examples/%s/main.go) %s | %s | %s | %s | %s | %s |\n",
			f.Name, f.Dir, strings.TrimPrefix(v, "v"), f.Pool, f.Unit, f.Nested, f.Prepared, f.Remarks)
	}
	return b.String()
}

func tools(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| tool | what it is given | its lock | a restart of the server | remarks |\n|---|---|---|---|---|\n")
	for _, tool := range Tools {
		fmt.Fprintf(&b, "| [%s](../examples/%s/main.go) %s | %s | %s | %s | %s |\n",
			tool.Name, tool.Dir, strings.TrimPrefix(version(t, "../../go.mod", tool.Module), "v"), tool.Use, tool.Lock, tool.Restart, tool.Remarks)
	}
	return b.String()
}

// Each row says something in each column, and has an example that is tested as the table says.
func TestEachRowIsTested(t *testing.T) {
	names, calls := map[string]string{}, map[string]string{} // by directory
	for _, f := range Frameworks {
		names[f.Dir], calls[f.Dir] = f.Name, fmt.Sprintf("storm.Test(t, %q, ", f.Name)
		if slices.Contains([]string{f.Pool, f.Unit, f.Nested, f.Prepared}, "") {
			t.Errorf("%s: the row is not complete", f.Name)
		}
	}
	for _, tool := range Tools {
		names[tool.Dir], calls[tool.Dir] = tool.Name, fmt.Sprintf("storm.TestMigrations(t, %q, ", tool.Name)
		if slices.Contains([]string{tool.Use, tool.Lock, tool.Restart}, "") {
			t.Errorf("%s: the row is not complete", tool.Name)
		}
	}
	byName := func(a, b string) int { return cmp.Compare(strings.ToLower(a), strings.ToLower(b)) }
	if !slices.IsSortedFunc(Frameworks, func(a, b Framework) int { return byName(a.Name, b.Name) }) ||
		!slices.IsSortedFunc(Tools, func(a, b Tool) int { return byName(a.Name, b.Name) }) {
		t.Error("the rows are not sorted by name")
	}
	tests, err := filepath.Glob(filepath.Join("..", "..", "*", "main_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, file := range tests {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Base(filepath.Dir(file))
		switch {
		case !strings.Contains(string(text), "storm.Test"):
		case calls[dir] == "" || !strings.Contains(string(text), calls[dir]):
			t.Errorf("examples/%s does not test %q, or that has no row", dir, names[dir])
		default:
			tested++
		}
	}
	if tested != len(Frameworks)+len(Tools) {
		t.Errorf("%d examples are tested, and the tables have %d rows", tested, len(Frameworks)+len(Tools))
	}
}
