package main

// This file finds the package that each test is in.

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// tests are the names of the module's tests, with the directories of their
// packages, relative to the module's root.
type tests map[string][]string

var testFunction = regexp.MustCompile(`(?m)^func (Test\w+)\(\w+ \*testing\.T\)`)

// findTests looks through all packages of the module at root, but not through
// modules within it.
func findTests(root string) (tests, error) {
	found := tests{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && isForeign(path):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, m := range testFunction.FindAllSubmatch(text, -1) {
			found[string(m[1])] = append(found[string(m[1])], dir)
		}
		return err
	})
	return found, err
}

// isForeign says whether a directory holds no packages of the module.
func isForeign(dir string) bool {
	name := filepath.Base(dir)
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil || name == "testdata" || strings.HasPrefix(name, ".")
}

// aim is the part of a pattern that is meant for the tests of one package.
type aim struct{ dir, pattern string }

// aims deals the alternatives of a pattern out to the packages that have the tests
// that they name.
func (t tests) aims(pattern string) ([]aim, error) {
	parts := map[string][]string{}
	for part := range strings.SplitSeq(pattern, "|") {
		name, _, _ := strings.Cut(part, "/")
		dirs := t[strings.TrimSuffix(strings.TrimPrefix(name, "^"), "$")]
		if len(dirs) == 0 {
			return nil, fmt.Errorf("there is no test %s", name)
		}
		for _, dir := range dirs {
			parts[dir] = append(parts[dir], part)
		}
	}
	var aims []aim
	for _, dir := range slices.Sorted(maps.Keys(parts)) {
		aims = append(aims, aim{dir, strings.Join(parts[dir], "|")})
	}
	return aims, nil
}
