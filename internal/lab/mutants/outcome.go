package main

// This file reads what a test program prints.

import (
	"regexp"
	"strings"
)

var (
	begun   = regexp.MustCompile(`(?m)^=== RUN +(\S+)$`)
	ended   = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+) `)
	timeout = regexp.MustCompile(`(?m)^panic: test timed out`)
	crashed = regexp.MustCompile(`(?m)^(?:panic|fatal error): (.{0,60})`)
)

// hasRun says whether the tests that a pattern names have run. A pattern may name
// a subtest that does not exist; its parent passes all the same.
func hasRun(out, pattern string) (ran bool) {
	for _, m := range ended.FindAllStringSubmatch(out, -1) {
		if m[1] == "SKIP" {
			return false
		}
		if strings.Count(m[2], "/") >= strings.Count(pattern, "/") {
			ran = true
		}
	}
	return ran
}

// catcher is the test that failed, and how if it did not simply say so.
func catcher(out string) string {
	failed := ""
	for _, m := range ended.FindAllStringSubmatch(out, -1) {
		if m[1] == "FAIL" && (failed == "" || strings.HasPrefix(m[2], failed+"/")) {
			failed = m[2]
		}
	}
	running := failed
	if all := begun.FindAllStringSubmatch(out, -1); running == "" && len(all) > 0 {
		running = all[len(all)-1][1]
	}
	switch {
	case timeout.MatchString(out):
		return running + ", which hung until its timeout"
	case crashed.MatchString(out):
		return running + ", which crashed: " + crashed.FindStringSubmatch(out)[1]
	case failed == "":
		return "the look for goroutines that are left behind, after " + running
	}
	return failed
}

// tail is the end of what was printed.
func tail(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
