// Package netns runs a test in a network of its own, where it can take the loopback interface
// down: a true black hole, in which the kernel itself loses every packet and retransmits, as
// no proxy can show. It needs Linux, and the kernel's leave to make user namespaces or root.
package netns

// This file is what is the same everywhere: a test runs itself again, inside. How to get
// inside, and the interface, are in netns_linux.go.

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/testenv"
)

// The child is told by these which test it is there for, and which network to be out of.
const envTest, envOutside = "LIVEPOOL_NETNS_TEST", "LIVEPOOL_NETNS_OUTSIDE"

// Run runs f in a child process with a network of its own, in which there is only a loopback
// interface, and makes its outcome that of t. What t did before Run, the child does as well:
// call it first thing. Where the kernel refuses, the test is skipped.
func Run(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Getenv(envTest) == t.Name() {
		if err := enter(os.Getenv(envOutside)); err != nil {
			testenv.Missing(t, "no network of its own: %v", err)
		}
		f(t)
		return
	}
	out, err := runInside(func() *exec.Cmd { return again(t) })
	if err != nil && len(out) == 0 {
		testenv.Missing(t, "no network of its own (are user namespaces allowed?): %v", err)
	}
	t.Logf("inside:\n%s", out)
	name := regexp.QuoteMeta(t.Name())
	switch {
	case err != nil:
		t.Fatalf("failed inside: %v", err)
	case regexp.MustCompile(`(?m)^\s*--- SKIP: ` + name + ` `).Match(out):
		testenv.Missing(t, "skipped inside:\n%s", out)
	case !regexp.MustCompile(`(?m)^\s*--- PASS: ` + name + ` `).Match(out):
		t.Fatal("did not run inside")
	}
}

// again is the command that runs this one test once more.
func again(t *testing.T) *exec.Cmd {
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	args := []string{"-test.run=" + strings.Join(pattern, "/"), "-test.v", "-test.count=1"}
	if deadline, ok := t.Deadline(); ok {
		// A little less than ours, so that it is the child who tells where it hangs.
		args = append(args, fmt.Sprintf("-test.timeout=%v", time.Until(deadline)*9/10))
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), envTest+"="+t.Name(), envOutside+"="+current())
	return cmd
}

// LoopbackDown makes the network of a test under Run a black hole: all that is sent is lost,
// and nobody is told, until LoopbackUp. A new dial fails at once as unreachable.
func LoopbackDown(t testing.TB) {
	t.Helper()
	if err := setLoopback(false); err != nil {
		t.Fatal(err)
	}
}

// LoopbackUp heals the network; the connections there were go on.
func LoopbackUp(t testing.TB) {
	t.Helper()
	if err := setLoopback(true); err != nil {
		t.Fatal(err)
	}
}
