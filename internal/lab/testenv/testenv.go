// Package testenv says what a test does on a machine that lacks something it needs. It does
// not look for that something.
package testenv

import (
	"fmt"
	"os"
	"testing"
)

// Missing skips the test because of what the machine lacks, and says so where a person who
// runs the tests without -v sees it too. Under CI=true nothing may be skipped: there it fails.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must not skip this test: %s", reason)
	}
	fmt.Fprintf(os.Stderr, "SKIPPED %s: %s\n", t.Name(), reason)
	t.Skip(reason)
}
