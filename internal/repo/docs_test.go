package repo_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/committable"
)

// pages are the README and the pages of docs.
func pages(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob(filepath.Join("docs", "*.md"))
	if err != nil || len(docs) == 0 {
		t.Fatal("there are no pages in docs", err)
	}
	return append(docs, "README.md")
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Every Go block of the documentation compiles, and its tests pass. For the libraries that some use,
// internal/lab/testdata/stubs has as much as they need.
func TestDocumentedBlocksCompile(t *testing.T) {
	t.Parallel()
	atRoot(t)
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, page := range pages(t) {
		blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(read(t, page), -1)
		if len(blocks) == 0 && page == "README.md" {
			t.Error("the README holds no Go block")
		}
		for i, block := range blocks {
			name := "block.go"
			if strings.Contains(block[1], `"testing"`) {
				name = "block_test.go"
			}
			write(t, filepath.Join(dir, strings.TrimSuffix(filepath.Base(page), ".md")+strconv.Itoa(i), name), block[1])
		}
	}
	mod := strings.Replace(read(t, "go.mod"), "module github.com/livepool/livepool", "module documented", 1) +
		"\nrequire github.com/livepool/livepool v0.0.0\nreplace github.com/livepool/livepool => " + root + "\n"
	for _, stub := range []string{"github.com/jmoiron/sqlx", "github.com/hibiken/asynq", "gorm.io/gorm", "gorm.io/driver/mysql"} {
		at := filepath.Join(t.TempDir(), filepath.Base(stub))
		if err := os.CopyFS(at, os.DirFS(filepath.Join("internal", "lab", "testdata", "stubs", filepath.FromSlash(stub)))); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(at, "go.mod"), "module "+stub+"\n\ngo 1.25\n")
		mod += "require " + stub + " v0.0.0\nreplace " + stub + " => " + at + "\n"
	}
	sums := read(t, "go.sum")
	for _, nested := range nestedModules {
		mod += "require " + module + "/" + nested + " v0.0.0\nreplace " + module + "/" + nested + " => " + filepath.Join(root, nested) + "\n"
		sums += read(t, filepath.Join(nested, "go.sum"))
	}
	write(t, filepath.Join(dir, "go.mod"), mod)
	write(t, filepath.Join(dir, "go.sum"), sums)
	for _, command := range []string{"vet", "test"} { // test builds no package without tests
		run := exec.Command("go", command, "-mod=mod", "./...")
		run.Dir = dir
		run.Env = append(os.Environ(), "GOWORK=off")
		if out, err := run.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", command, err, out)
		}
	}
}

// Whoever has a minute reads the README to its end.
func TestReadmeIsShort(t *testing.T) {
	atRoot(t)
	if n := len(strings.Fields(read(t, "README.md"))); n > 1200 {
		t.Errorf("the README has %d words, want at most 1,200: move something to docs", n)
	}
}

// docs/settings.md has a block for each parameter, with its field, its default and what
// it takes, and names the other fields.
func TestEverySettingIsDocumented(t *testing.T) {
	atRoot(t)
	text := read(t, filepath.Join("docs", "settings.md"))
	defaults := livepool.NewConfig().String()
	shown := regexp.MustCompile(`(pool_\w+)=(\S*)`).FindAllStringSubmatch(defaults, -1)
	if len(shown) < 20 {
		t.Fatalf("the settings are %q", defaults)
	}
	for _, param := range shown {
		block := regexp.MustCompile(`\n### ` + param[1] + "\n\n`(\\w+)` · default `([^`]+)` · \\S.*\n\n\\w").FindStringSubmatch(text)
		if block == nil {
			t.Errorf("there is no block for %s, with its field, its default and what it takes", param[1])
			continue
		}
		if _, ok := reflect.TypeFor[livepool.Config]().FieldByName(block[1]); !ok {
			t.Errorf("%s is said to be the field %s", param[1], block[1])
		}
		cfg, err := livepool.ParseDSN("/?" + param[1] + "=" + block[2])
		if err != nil {
			t.Errorf("the default of %s is said to be %s: %v", param[1], block[2], err)
		} else if !slices.Contains(strings.Fields(cfg.String()), param[0]) {
			t.Errorf("the default of %s is said to be %s, and is %s", param[1], block[2], param[2])
		}
	}
	if blocks := strings.Count(text, "\n### pool_"); blocks != len(shown) {
		t.Errorf("%d blocks for %d parameters", blocks, len(shown))
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[livepool.Config]()) {
		if field.IsExported() && !strings.Contains(text, "`"+field.Name+"`") {
			t.Errorf("the field %s is not named", field.Name)
		}
	}
}

// section is what a page has under a heading, with the headings below it.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(read(t, page), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %q", page, heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// docs/operations.md has a row for each counter, and for nothing else.
func TestEveryCounterIsDocumented(t *testing.T) {
	atRoot(t)
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?`) \\|").FindAllStringSubmatch(section(t, filepath.Join("docs", "operations.md"), "Counters"), -1) {
		for name := range strings.SplitSeq(row[1], ", ") {
			documented = append(documented, strings.Trim(name, "`"))
		}
	}
	var counters []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[livepool.Stats]()) {
		if !field.Anonymous {
			counters = append(counters, field.Name)
		}
	}
	slices.Sort(documented)
	slices.Sort(counters)
	if !slices.Equal(documented, counters) {
		t.Errorf("documented are\n%v\nand there are\n%v", documented, counters)
	}
}

// logLine is a line that the library logs: its text without "livepool: ", with % for what
// is not fixed; its level, if that is fixed.
type logLine struct{ level, text string }

// loggers are the methods that log, and at which level.
var loggers = map[string]string{"Debug": "DEBUG", "Info": "INFO", "Warn": "WARN", "Error": "ERROR", "Log": "", "LogAttrs": "", "logNews": ""}

// logLines are all of them, as the source has them.
func logLines(t *testing.T) (lines []logLine) {
	t.Helper()
	var files []string
	for _, dir := range []string{".", "internal/*"} {
		found, err := filepath.Glob(filepath.Join(filepath.FromSlash(dir), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	add := func(level string, e ast.Expr, prefix string) {
		if text, found := strings.CutPrefix(prefix+fixedText(e), "livepool: "); found && strings.Trim(text, "%") != "" {
			lines = append(lines, logLine{level, text})
		}
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if called, ok := n.Fun.(*ast.SelectorExpr); ok {
					level, logs := loggers[called.Sel.Name]
					for _, arg := range n.Args {
						if logs {
							add(level, arg, "")
						}
					}
				}
			case *ast.ValueSpec: // tables of texts
				for i, name := range n.Names {
					if i >= len(n.Values) {
						continue
					}
					table, ok := n.Values[i].(*ast.CompositeLit)
					switch {
					case !ok:
					case name.Name == "shortageTexts":
						ast.Inspect(table, func(n ast.Node) bool {
							if text, ok := n.(*ast.BasicLit); ok {
								add("", text, "")
							}
							return true
						})
					case name.Name == "setterWarnings":
						for _, e := range table.Elts {
							add("WARN", e, "livepool: ")
						}
					}
				}
			}
			return true
		})
	}
	return lines
}

// fixedText is the text of an expression, with % for what is not fixed.
func fixedText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return text
		}
	case *ast.BinaryExpr:
		return fixedText(e.X) + fixedText(e.Y)
	case *ast.CallExpr:
		if called, ok := e.Fun.(*ast.SelectorExpr); ok && called.Sel.Name == "Sprintf" {
			return fixedText(e.Args[0])
		}
	}
	return "%"
}

// docs/operations.md has a row for each line that is logged, with its level, and for
// nothing else.
func TestEveryLogLineIsDocumented(t *testing.T) {
	atRoot(t)
	lines := logLines(t)
	if len(lines) < 30 {
		t.Fatalf("%d lines were found in the source", len(lines))
	}
	rows := regexp.MustCompile("(?m)^\\| ([A-Z]+) \\| `(.*?)` \\| \\S").FindAllStringSubmatch(read(t, filepath.Join("docs", "operations.md")), -1)
	used := make([]bool, len(rows))
	for _, line := range lines {
		i := slices.IndexFunc(rows, func(row []string) bool {
			return strings.HasPrefix(strings.TrimLeft(line.text, "% "), row[2]) && (line.level == "" || line.level == row[1])
		})
		if i < 0 {
			t.Errorf("docs/operations.md has no row for the line %+v", line)
			continue
		}
		used[i] = true
	}
	for i, row := range rows {
		if !used[i] {
			t.Errorf("docs/operations.md has a row for a line that is never logged: %s", row[0])
		}
	}
}

// The DBA creates the table that CreateCommitTable creates.
func TestCommitTableIsDocumented(t *testing.T) {
	atRoot(t)
	ddl := section(t, filepath.Join("docs", "operations.md"), "The commit table")
	table := committable.New("livepool_commits", "", true)
	squash := func(text string) string { return strings.Join(strings.Fields(strings.ReplaceAll(text, "`", "")), " ") }
	if !strings.Contains(squash(ddl), squash(table.DDL())) {
		t.Errorf("docs/operations.md does not have %s", table.DDL())
	}
}

// slug is the anchor of a heading, as the forge makes it.
func slug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

// Each link inside the repository leads somewhere, and the README leads to each page,
// which says first what it is for.
func TestLinksResolve(t *testing.T) {
	atRoot(t)
	all := append(pages(t), "CHANGELOG.md", "CONTRIBUTING.md", filepath.Join(".github", "SECURITY.md"))
	blocks := regexp.MustCompile("(?s)```.*?```")
	anchors := func(page string) (found []string) {
		for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(blocks.ReplaceAllString(read(t, page), ""), -1) {
			found = append(found, slug(m[1]))
		}
		return found
	}
	fromReadme := map[string]bool{}
	for _, page := range all {
		text := blocks.ReplaceAllString(read(t, page), "")
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
			path, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(path, "://") {
				continue
			}
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), filepath.FromSlash(path))
			}
			if page == "README.md" {
				fromReadme[target] = true
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
			} else if anchor != "" && !slices.Contains(anchors(target), anchor) {
				t.Errorf("%s: %s: there is no such heading", page, m[1])
			}
		}
	}
	for _, page := range pages(t) {
		if !regexp.MustCompile(`^# [^\n]+\n\n[A-Za-z]`).MatchString(read(t, page)) {
			t.Errorf("%s does not begin with what it is for", page)
		}
		if page != "README.md" && !fromReadme[page] {
			t.Errorf("the README does not lead to %s", page)
		}
	}
}

// Each test that the track record names is there.
func TestTrackRecordNamesTests(t *testing.T) {
	atRoot(t)
	record := section(t, filepath.Join("docs", "reliability.md"), "Track record")
	tests := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		code, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllSubmatch(code, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| 20\d\d-\d\d \|.*$`).FindAllString(record, -1)
	if len(rows) < 30 {
		t.Errorf("the track record has %d rows", len(rows))
	}
	for _, row := range rows {
		cells := strings.Split(row, " | ")
		named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)(?:/[^`]*)?`").FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(named) == 0 {
			t.Errorf("no test is named: %s", row)
		}
		for _, name := range named {
			if !tests[name[1]] {
				t.Errorf("there is no test %s: %s", name[1], row)
			}
		}
	}
}
