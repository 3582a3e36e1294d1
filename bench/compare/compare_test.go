package compare

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/testenv"
)

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"-server", "oracle"}, {"-scenario", "("}, {"-scenario", "no such"}, {"more"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	set, err := parse([]string{"-short", "-server", "both", "-scenario", "lock|crowd"}, io.Discard)
	if err != nil || !set.short || len(set.kinds) != 2 || set.scenario.MatchString("hot path") || !set.scenario.MatchString("orphaned lock") {
		t.Errorf("settings %+v, %v", set, err)
	}
}

// A short run on a real server, with some of the contenders: each scenario makes its table,
// whose rows are of all that take part, and a peer that does not start is left out with its
// reason.
func TestShortRun(t *testing.T) {
	set, err := parse([]string{"-short", "-scenario", "hot|idle past|restarts|lock|recycle|crowd"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRun(set, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	r.entries = slices.DeleteFunc(r.entries, func(e entry) bool {
		return !slices.Contains([]string{tuned, "go-mysql", "livepool units"}, e.name)
	})
	r.addEntry(entry{name: "absent", open: func(ctx context.Context, t target) (contender, error) {
		return startProcess(ctx, t, io.Discard, func(...string) *exec.Cmd { return exec.Command("sh", "-c", "echo no such language >&2; exit 3") })
	}})
	rep, err := r.play(t.Context())
	if errors.Is(err, server.ErrUnavailable) {
		testenv.Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Servers) != 1 || len(rep.Servers[0].Tables) != len(operations)*len(contexts)+5 {
		t.Fatalf("servers %+v", rep.Servers)
	}
	for _, table := range rep.Servers[0].Tables {
		for _, row := range table.Rows {
			switch {
			case row.Contender == "absent":
				if !strings.Contains(row.Missing, "no such language") || row.Cells != nil && row.value(0) != nil {
					t.Errorf("%s: %+v", table.Title, row)
				}
			case row.Missing == errNone.Error() && table.Scenario == "recycle" && row.Contender != "livepool units":
			case row.Missing != "" || len(row.Cells) != len(table.Columns):
				t.Errorf("%s: %+v", table.Title, row)
			}
		}
	}
	if rep.broken != "" || len(rep.Verdicts) != 2*3 {
		t.Errorf("%q, verdicts %+v", rep.broken, rep.Verdicts)
	}
	for _, v := range rep.Verdicts {
		if v.OK == 0 || v.Stray > 0 {
			t.Errorf("verdict %+v", v)
		}
	}
	for _, c := range rep.Hot {
		if len(c.NSPerOp) != r.scale.rounds || c.NSPerOp[0] <= 0 {
			t.Errorf("hot %+v", c)
		}
	}
	if err := rep.save(t.TempDir()); err != nil {
		t.Error(err)
	}
}
