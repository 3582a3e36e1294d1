package hosts_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/hosts"
)

// fakeHost is what a host does when it is tried.
type fakeHost struct {
	after    time.Duration // until it answers
	err      error         // nil: it is right
	answered bool          // a failure that is an answer
	stubborn bool          // it succeeds though its context has ended
}

var errRefused = errors.New("refused")

const never = time.Hour

// raceOf runs a race of all hosts, and returns the winner (-1 for none), how long it took,
// what came of the others, and which values were dropped.
func raceOf(ctx context.Context, all []fakeHost) (winner int, took time.Duration, failed map[int]hosts.Result[int], dropped []int) {
	var order []int
	for i := range all {
		order = append(order, i)
	}
	start := time.Now()
	won, failures, losers := hosts.Race(ctx, order, func(int) time.Duration { return 250 * time.Millisecond },
		func(ctx context.Context, i int, answered func()) (int, error) {
			h := all[i]
			select {
			case <-time.After(h.after):
			case <-ctx.Done():
				if h.stubborn {
					return i, nil
				}
				return 0, ctx.Err()
			}
			if h.answered || h.err == nil {
				answered()
			}
			return i, h.err
		}, func(i int) { dropped = append(dropped, i) })
	took = time.Since(start)
	losers()
	failed = map[int]hosts.Result[int]{}
	for _, f := range failures {
		failed[f.Host] = f
	}
	winner = -1
	if won != nil {
		winner = won.Value
	}
	return winner, took, failed, dropped
}

// Who wins a race, and when.
func TestRace(t *testing.T) {
	ms := time.Millisecond
	for _, tt := range []struct {
		name   string
		hosts  []fakeHost
		winner int
		took   time.Duration
		silent []int // passed over, or given up
	}{
		{"the first is right", []fakeHost{{after: 10 * ms}, {}}, 0, 10 * ms, nil},
		{"the first fails at once", []fakeHost{{err: errRefused}, {after: 10 * ms}}, 1, 10 * ms, nil},
		{"the first says nothing", []fakeHost{{after: never}, {after: 10 * ms}}, 1, 260 * ms, []int{0}},
		{"the first is slow, and comes before the second", []fakeHost{{after: 300 * ms}, {after: 100 * ms}}, 0, 300 * ms, nil},
		{"two say nothing", []fakeHost{{after: never}, {after: never}, {after: 10 * ms}}, 2, 510 * ms, []int{0, 1}},
		{"a failure has the next one begin at once, before its turn", []fakeHost{{after: never}, {after: 10 * ms, err: errRefused}, {after: 10 * ms}}, 2, 270 * ms, []int{0}},
		{"none is right", []fakeHost{{err: errRefused, answered: true}, {after: 20 * ms, err: errRefused, answered: true}}, -1, 20 * ms, nil},
		{"one says nothing, and the other is not right", []fakeHost{{after: never}, {after: 10 * ms, err: errRefused, answered: true}}, -1, hosts.Silence, []int{0}},
		{"one says nothing, and the other answers slowly", []fakeHost{{after: never}, {after: 500 * ms, err: errRefused, answered: true}}, -1, 2000 * ms, []int{0}},
		{"one is slow, and the other cannot be reached", []fakeHost{{after: 3000 * ms}, {err: errRefused}}, 0, 3000 * ms, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				winner, took, failed, dropped := raceOf(t.Context(), tt.hosts)
				var silent []int
				for i := range tt.hosts {
					if failed[i].Silent {
						silent = append(silent, i)
					}
				}
				if winner != tt.winner || took != tt.took || !slices.Equal(silent, tt.silent) || dropped != nil {
					t.Errorf("host %d won after %s, %v were silent, %v dropped; want host %d after %s, %v silent", winner, took, silent, dropped, tt.winner, tt.took, tt.silent)
				}
			})
		})
	}
}

// What a loser brings all the same is dropped.
func TestRaceDropsWhatComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		winner, _, _, dropped := raceOf(t.Context(), []fakeHost{{after: never, stubborn: true}, {}})
		if winner != 1 || !slices.Equal(dropped, []int{0}) {
			t.Errorf("host %d won, dropped %v", winner, dropped)
		}
	})
}

// The end of the context ends the race.
func TestRaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		winner, took, failed, _ := raceOf(ctx, []fakeHost{{after: never}, {after: never}})
		if winner != -1 || took != 100*time.Millisecond || !errors.Is(failed[0].Err, context.DeadlineExceeded) || failed[0].Silent {
			t.Errorf("host %d won after %s: %+v", winner, took, failed)
		}
	})
}
