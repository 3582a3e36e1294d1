package main

import (
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A mutant that does not compile shows nothing.
func TestMutantsCompile(t *testing.T) {
	list := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", "./...")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		exports[name] = file
	}
	files := token.NewFileSet()
	imports := importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	for _, m := range mutants {
		dir := filepath.Join(root, filepath.Dir(m.file))
		pkg, err := build.ImportDir(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		var parsed []*ast.File
		for _, name := range pkg.GoFiles {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			broken := string(text)
			if name == filepath.Base(m.file) {
				if broken, err = m.apply(broken); err != nil {
					t.Fatal(err)
				}
			}
			file, err := parser.ParseFile(files, name, broken, parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("%s: %v", m.breaks, err)
				continue
			}
			parsed = append(parsed, file)
		}
		check := types.Config{Importer: imports}
		if _, err := check.Check(dir, files, parsed, nil); err != nil {
			t.Errorf("%s: %v", m.breaks, err)
		}
	}
}
