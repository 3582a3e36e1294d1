package repo_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/printer"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var updateAPI = flag.Bool("update-api", false, "write what is exported to testdata/api, once CHANGELOG.md tells of it")

// published are the packages whose exported names are a promise.
var published = append([]string{".", "trace"}, nestedModules...)

// What a package exports changes only with the CHANGELOG: each file in testdata/api has what
// was exported, and which CHANGELOG told of it. Whether a change is one that callers see,
// and so the next version's number, is for the reader of that file's diff.
func TestExportedNamesChangeWithTheChangelog(t *testing.T) {
	atRoot(t)
	changelog := fmt.Sprintf("CHANGELOG %x", sha256.Sum256([]byte(read(t, "CHANGELOG.md"))))
	for _, dir := range published {
		name := filepath.Base(dir)
		if dir == "." {
			name = "livepool"
		}
		file := filepath.Join("internal", "repo", "testdata", "api", name+".txt")
		told, was, _ := strings.Cut(read(t, file), "\n")
		is := exported(t, dir)
		switch {
		case is == was:
		case !*updateAPI:
			t.Errorf("%s exports something else than %s says. Tell of it in CHANGELOG.md, then: go test ./internal/repo -run ExportedNames -update-api\n%s",
				dir, file, difference(was, is))
		case told == changelog:
			t.Errorf("CHANGELOG.md does not tell yet of what has changed in %s:\n%s", dir, difference(was, is))
		default:
			write(t, file, changelog+"\n"+is)
		}
	}
}

// exported are the exported declarations of a package, one after the other, without comments
// and bodies, in the order of their text.
func exported(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var decls []string
	fset := token.NewFileSet()
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.FileExports(parsed)
		for _, decl := range parsed.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil && !isExportedReceiver(d.Recv.List[0].Type) {
					continue
				}
				d.Body = nil
			case *ast.GenDecl:
				if d.Tok == token.IMPORT {
					continue
				}
			}
			var text bytes.Buffer
			if err := printer.Fprint(&text, fset, decl); err != nil {
				t.Fatal(err)
			}
			decls = append(decls, strings.ReplaceAll(text.String(), "\n\n", "\n")+"\n") // where a comment was
		}
	}
	if len(decls) == 0 {
		t.Errorf("%s exports nothing", dir)
	}
	slices.Sort(decls)
	return strings.Join(decls, "")
}

// isExportedReceiver is of T, *T and T[P].
func isExportedReceiver(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.StarExpr:
		return isExportedReceiver(e.X)
	case *ast.IndexExpr:
		return isExportedReceiver(e.X)
	case *ast.Ident:
		return e.IsExported()
	}
	return false
}

// difference has the lines that only one of two texts has.
func difference(was, is string) string {
	before, after := strings.Split(was, "\n"), strings.Split(is, "\n")
	var lines []string
	for _, line := range before {
		if !slices.Contains(after, line) {
			lines = append(lines, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			lines = append(lines, "+ "+line)
		}
	}
	return strings.Join(lines, "\n")
}

// What is compared is what callers can use, all of it and no more.
func TestExported(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.go"), `package a

import "io"

// Public is seen.
type Public struct {
	Field  io.Reader // of callers
	hidden int
}

func (p *Public) Method() error { return nil }
func (p *Public) method()       {}

type private struct{ Field int }

func (private) Method() {}

const (
	Limit  = 1
	secret = 2
	// Most is told of.
	Most = 3
)

func Make() *Public { return &Public{} }
`)
	want := `const (
	Limit	= 1
	Most	= 3
)
func (p *Public) Method() error
func Make() *Public
type Public struct {
	Field io.Reader
	// contains filtered or unexported fields
}
`
	if got := exported(t, dir); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A [Name] in a comment leads somewhere: what `go doc` cannot find stays text in brackets.
func TestCommentsHaveNoDeadLinks(t *testing.T) {
	atRoot(t)
	links := 0
	for _, dir := range published {
		for _, text := range docTexts(t, dir) {
			links += strings.Count(text, `<a href=`)
			if dead := regexp.MustCompile(`\[\*?[A-Z][\w.]*\]`).FindString(text); dead != "" {
				t.Errorf("%s: %s leads nowhere", dir, dead)
			}
		}
	}
	if links == 0 {
		t.Error("there are no links: the test shows nothing")
	}
}

// docTexts are the comments of a package as HTML.
func docTexts(t *testing.T, dir string) (texts []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	fset := token.NewFileSet()
	for _, path := range paths {
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(file.Name.Name, "_test") {
			files = append(files, file)
		}
	}
	pkg, err := doc.NewFromFiles(fset, files, module+"/"+dir)
	if err != nil {
		t.Fatal(err)
	}
	values := func(values []*doc.Value) {
		for _, v := range values {
			texts = append(texts, string(pkg.HTML(v.Doc)))
		}
	}
	funcs := func(funcs []*doc.Func) {
		for _, f := range funcs {
			texts = append(texts, string(pkg.HTML(f.Doc)))
		}
	}
	texts = append(texts, string(pkg.HTML(pkg.Doc)))
	values(append(pkg.Consts, pkg.Vars...))
	funcs(pkg.Funcs)
	for _, typ := range pkg.Types {
		texts = append(texts, string(pkg.HTML(typ.Doc)))
		values(append(typ.Consts, typ.Vars...))
		funcs(append(typ.Funcs, typ.Methods...))
	}
	return texts
}
