package main

import (
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Both pools are filled, and found to take memory.
func TestIdleCosts(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	costs, err := idleCosts(t.Context(), s.DSN(), rest{20, 0, 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	writeIdle(&out, "at rest", costs)
	for _, c := range costs {
		if c.perConnection < 1000 || c.empty < 500 || !strings.Contains(out.String(), c.pool) {
			t.Errorf("%s: %+v\n%s", c.pool, *c, &out)
		}
	}
}
