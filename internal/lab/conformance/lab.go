package main

// This file makes the program that has the tests of a suite.

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// lab is where suites are run.
type lab struct {
	root    string // of the library
	sqlDir  string // of database/sql
	scratch string
}

func openLab(ctx context.Context) (l *lab, err error) {
	l = &lab{}
	for pkg, dir := range map[string]*string{"github.com/livepool/livepool": &l.root, "database/sql": &l.sqlDir} {
		if *dir, err = command(ctx, ".", "go", "list", "-f", "{{.Dir}}", pkg); err != nil {
			return nil, err
		}
	}
	l.scratch, err = os.MkdirTemp("", "conformance-")
	return l, err
}

// command runs a program and returns what it prints.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0") // no C compiler for databases that are not in use
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.Bytes())
	}
	return strings.TrimSpace(string(out)), err
}

// A program has the tests of a suite.
type program struct {
	suite
	version string
	scratch string // of its own
	clause  string // of the package that sets the hooks
	source  string // where the compiler finds the package
	dir     string // a copy of that directory, in which the tests run
}

func (p program) path() string { return filepath.Join(p.scratch, "suite.test") }

// inExamples runs go with the modules that the examples require, in a copy of their go.mod, to which
// it adds what the tests of the suite need.
func (l *lab) inExamples(ctx context.Context, p program, args ...string) (string, error) {
	args = append([]string{args[0], "-mod=mod", "-modfile=" + filepath.Join(p.scratch, "go.mod")}, args[1:]...)
	return command(ctx, filepath.Join(l.root, "examples"), "go", args...)
}

// fetch has go fetch the package of a suite and copies it. A module is compiled from the copy,
// because go takes no overlay for what it has fetched; the standard library from where it is.
func (l *lab) fetch(ctx context.Context, s suite) (p program, err error) {
	p.suite = s
	if p.scratch, err = os.MkdirTemp(l.scratch, "suite-"); err != nil {
		return p, err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(l.root, "examples", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(p.scratch, name), text, 0o600)
		}
		if err != nil {
			return p, err
		}
	}
	found, err := l.inExamples(ctx, p, "list", "-f", "{{.Name}}\n{{.Dir}}\n{{with .Module}}{{.Dir}}\n{{.Version}}\n{{.Path}}{{end}}", s.pkg)
	if err != nil {
		return p, err
	}
	facts, copied := strings.Split(found, "\n"), filepath.Join(p.scratch, "copy")
	p.clause, p.source = facts[0], facts[1]
	if len(facts) == 2 {
		p.dir = copied
		if p.version, err = command(ctx, ".", "go", "env", "GOVERSION"); err != nil {
			return p, err
		}
		return p, os.CopyFS(copied, os.DirFS(p.source))
	}
	p.version = facts[3]
	p.dir = filepath.Join(copied, strings.TrimPrefix(p.source, facts[2]))
	p.source = p.dir
	if err := os.CopyFS(copied, os.DirFS(facts[2])); err != nil {
		return p, err
	}
	_, err = command(ctx, ".", "go", "mod", "edit", "-replace="+facts[4]+"="+copied, filepath.Join(p.scratch, "go.mod"))
	return p, err
}

// build makes the program of a suite.
func (l *lab) build(ctx context.Context, s suite) (program, error) {
	p, err := l.fetch(ctx, s)
	if err != nil {
		return p, err
	}
	if s.outside {
		p.clause += "_test"
	}
	texts := map[string]string{
		filepath.Join(p.source, "livepool_conformance_test.go"):          strings.Replace(throughLivepool, "PACKAGE", p.clause, 1),
		filepath.Join(l.root, "internal", "connector", "conformance.go"): bare,
	}
	if err := makeEdits(texts, l.sqlDir, sqlEdits); err != nil {
		return p, err
	}
	if err := makeEdits(texts, p.source, s.edits); err != nil {
		return p, err
	}
	overlay, err := writeOverlay(p.scratch, texts)
	if err != nil {
		return p, err
	}
	_, err = l.inExamples(ctx, p, "test", "-c", "-vet=off", "-overlay="+overlay, "-o", p.path(), s.pkg)
	return p, err
}
