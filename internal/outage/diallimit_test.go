package outage_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/outage"
)

// enter lets n callers wait for a turn, and counts those that have one.
func enter(t *testing.T, g *outage.Gate, n int) (in *atomic.Int64) {
	in = new(atomic.Int64)
	for range n {
		go func() {
			if g.Enter(t.Context()) == nil {
				in.Add(1)
			}
		}()
	}
	synctest.Wait()
	return in
}

// Quick handshakes let more be opened at a time, up to the limit; slow ones, a failure
// and a connection found dead, fewer.
func TestDialsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, func(set *outage.Settings) { set.ConnectLimit = 4 })
		in := enter(t, g, 100)
		for _, tt := range []struct {
			does  string
			took  time.Duration
			ok    bool
			first func()
			open  int64 // at a time, afterwards
		}{
			{"nothing yet", -1, false, nil, 2},
			{"a quick one", time.Millisecond, true, nil, 3},
			{"a quick one", time.Millisecond, true, nil, 4},
			{"a quick one at the limit", time.Millisecond, true, nil, 4},
			{"a slow one", time.Second, true, nil, 3},
			{"one that failed for other reasons", 0, false, nil, 3},
			{"a quick one", time.Millisecond, true, nil, 4},
			{"a refusal", 0, false, func() { g.Failed(errAway, s.clock.Now(), outage.None) }, 3}, // 3 are still under way
		} {
			before := in.Load()
			if tt.first != nil {
				tt.first()
			}
			if tt.took >= 0 {
				g.Leave(tt.took, tt.ok)
				in.Add(-1)
			}
			synctest.Wait()
			if in.Load() != tt.open {
				t.Errorf("%s: %d at a time, %d before, want %d", tt.does, in.Load(), before, tt.open)
			}
		}
		g.SlowDials()
		g.Leave(time.Second, true)
		in.Add(-1)
		synctest.Wait()
		if in.Load() != 2 {
			t.Errorf("after a death: %d at a time", in.Load())
		}
		s.fail(outage.NoServer) // sends the others away
		g.Leave(0, false)
		g.Leave(0, false)
	})
}

// A caller that gives up leaves the queue, and its turn to the next.
func TestCallerGivesUpItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGate(t, func(set *outage.Settings) { set.ConnectLimit = 1 })
		enter(t, g, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		in := enter(t, g, 1)
		g.Leave(0, true)
		synctest.Wait()
		if in.Load() != 1 {
			t.Error("the turn is lost")
		}
	})
}
