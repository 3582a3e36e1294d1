package behaviour_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/trace"
)

// tally counts what a tracer is told of units and kills.
type tally struct {
	mu       sync.Mutex
	outcomes map[trace.Outcome]int
	killed   int
}

func (r *tally) TraceUnitStart(ctx context.Context, _ trace.UnitStart) context.Context { return ctx }

func (r *tally) TraceUnitEnd(_ context.Context, end trace.UnitEnd) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcomes[end.Outcome]++
}

func (r *tally) TraceEvent(_ context.Context, event trace.Event) {
	if e, ok := event.(trace.Kill); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.killed += e.Killed
	}
}

// What became of units is told as it is on the server: applied, found applied, not applied
// and killed there.
func TestTracerIsToldWhatBecameOfUnits(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	r := &tally{outcomes: map[trace.Outcome]int{}}
	p := openWith(t, s.DSN(), func(c *livepool.Config) { c.Tracer = r })
	for range 2 {
		if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("once")); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.VerifyCommit()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "INSERT INTO t (v) SELECT SLEEP(60)")
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	labtest.Eventually(t, "a kill is told", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.killed == 1
	})
	for outcome, want := range map[trace.Outcome]int{trace.Applied: 2, trace.AlreadyApplied: 1, trace.NotApplied: 1, trace.Unknown: 0} {
		if n := r.outcomes[outcome]; n != want {
			t.Errorf("%d units are told to be %s, want %d", n, outcome, want)
		}
	}
}
