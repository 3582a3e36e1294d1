package main

// This file reads what became of the tests, and compares two runs.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// ran is what became of the tests of one run.
type ran struct {
	outcomes map[string]string // pass, fail or skip, by the test's name; "" if it did not end
	said     map[string]string // what it printed
	pools    int               // that livepool opened
}

// read reads the events of test2json.
func read(events io.Reader) (ran, error) {
	r := ran{outcomes: map[string]string{}, said: map[string]string{}}
	for d := json.NewDecoder(events); ; {
		var e struct {
			Action string `json:"Action"` //nolint:tagliatelle // test2json's name
			Test   string `json:"Test"`   //nolint:tagliatelle // the same
			Output string `json:"Output"` //nolint:tagliatelle // the same
		}
		switch err := d.Decode(&e); {
		case errors.Is(err, io.EOF):
			return r, nil
		case err != nil:
			return r, fmt.Errorf("reading what test2json has made of the output: %w", err)
		}
		switch e.Action {
		case "output":
			r.said[e.Test] += e.Output
		case "run":
			r.outcomes[e.Test] = ""
		case "pass", "fail", "skip":
			if e.Test != "" {
				r.outcomes[e.Test] = e.Action
			}
		}
	}
}

// A comparison is how the two runs of a suite differ. A test counts, and each of its subtests.
type comparison struct {
	tests, same       int
	skipped           int      // of those that are the same
	failed            []string // of those that are the same
	differences       []string // the tests that differ
	explained         []string // the tests that the explanations in use are of
	obsolete, unknown []string // explanations that are no longer needed, and differences without one
}

// compare compares the runs. An explanation of a test is one of its subtests, too.
func compare(plain, livepool ran, explanations map[string]string) (c comparison) {
	names := map[string]bool{}
	for _, r := range []ran{plain, livepool} {
		for name := range r.outcomes {
			names[name] = true
		}
	}
	used := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		c.tests++
		was, is := plain.outcomes[name], livepool.outcomes[name]
		if was == is {
			c.same++
			switch is {
			case "fail":
				c.failed = append(c.failed, name)
			case "skip":
				c.skipped++
			}
			continue
		}
		c.differences = append(c.differences, name)
		known := false
		for test := range explanations {
			if within(name, test) || within(test, name) { // whose failure fails the tests that it is part of
				known, used[test] = true, used[test] || within(name, test)
			}
		}
		if !known {
			c.unknown = append(c.unknown, name)
		}
	}
	for _, test := range slices.Sorted(maps.Keys(explanations)) {
		if used[test] {
			c.explained = append(c.explained, test)
		} else {
			c.obsolete = append(c.obsolete, test)
		}
	}
	return c
}

// within says whether a test is another one, or a subtest of it.
func within(name, test string) bool {
	return name == test || strings.HasPrefix(name, test+"/")
}

// replace puts what became of some tests, and of their subtests, when they were run again alone in
// the place of what became of them beside others.
func (r ran) replace(tests []string, alone ran) {
	maps.DeleteFunc(r.outcomes, func(name, _ string) bool {
		return slices.ContainsFunc(tests, func(test string) bool { return within(name, test) })
	})
	maps.Copy(r.outcomes, alone.outcomes)
	maps.Copy(r.said, alone.said)
}

// meansNothing says why two runs cannot be compared: nothing was tested, not all, or not livepool.
func meansNothing(plain, livepool ran) error {
	passed := 0
	for test, outcome := range plain.outcomes {
		switch outcome {
		case "pass":
			passed++
		case "":
			return fmt.Errorf("the run on plain database/sql ended in the middle of %s:\n%s", test, plain.said[test])
		}
	}
	switch {
	case passed == 0:
		return fmt.Errorf("no test passed on plain database/sql; %d were skipped or failed, and the program said:\n%s", len(plain.outcomes), plain.said[""])
	case plain.pools > 0:
		return fmt.Errorf("the run on plain database/sql opened %d pools through livepool", plain.pools)
	case livepool.pools == 0:
		return errors.New("the run through livepool opened no pool through it")
	}
	return nil
}
