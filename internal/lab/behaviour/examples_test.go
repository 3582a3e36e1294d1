package behaviour_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Each example of the documentation prints what it says. They stand in the root,
// where a reader looks for them, and run on this server.
func TestExamples(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	text, err := os.ReadFile(filepath.Join(root, "example_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Count(string(text), "\nfunc Example") // one that has no output would not run
	s := servertest.Run(t, server.MariaDB)
	run := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-count=1", "-v", "-run", "^Example", ".")
	run.Dir = root
	run.Env = append(os.Environ(), "LIVEPOOL_EXAMPLES_DSN="+s.DSN())
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "--- PASS: Example"); n != want || n < 14 {
		t.Errorf("%d examples ran, want all %d, and at least 14\n%s", n, want, out)
	}
}
