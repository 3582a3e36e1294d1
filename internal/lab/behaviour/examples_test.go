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

// The examples of the documentation print what they say. They stand in the root,
// where a reader looks for them, and run on this server.
func TestExamples(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MariaDB)
	run := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-count=1", "-v", "-run", "^Example", ".")
	run.Dir = filepath.Join("..", "..", "..")
	run.Env = append(os.Environ(), "LIVEPOOL_EXAMPLES_DSN="+s.DSN())
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "--- PASS: Example"); n < 14 {
		t.Errorf("%d examples ran, want at least 14\n%s", n, out)
	}
}
