package hosts_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/hosts"
)

// start is the head start of each host in these tests.
const start = 250 * time.Millisecond

func headStart(int) time.Duration { return start }

// act is what comes of a host that is tried.
type act struct {
	after time.Duration // 0: it says nothing until its context has ended
	fails bool
	// answers: the server has said why.
	answers bool
	// late: it succeeds all the same, so long after its context has ended.
	late time.Duration
	// patience for it.
	patience time.Duration
}

var (
	errRefused = errors.New("refused")
	errSilent  = errors.New("silent")
)

// ground is where hosts with these acts are raced.
type ground struct {
	acts   []act
	began  time.Time
	starts []string // "host at" of each try
	ends   map[int]time.Duration
	causes map[int]error
	losses chan int // the hosts whose values were dropped
}

func newGround(acts ...act) *ground {
	return &ground{acts: acts, began: time.Now(), ends: map[int]time.Duration{}, causes: map[int]error{}, losses: make(chan int, len(acts))}
}

func (g *ground) patience(host int) time.Duration { return g.acts[host].patience }

// race races them, waits for the losers, and says how long it took without them.
func (g *ground) race(ctx context.Context, order ...int) (winner *hosts.Result[int], failed []hosts.Result[int], took time.Duration) {
	type end struct {
		host  int
		at    time.Duration
		cause error
	}
	ended, starts := make(chan end, len(g.acts)), make(chan string, len(g.acts))
	try := func(ctx context.Context, host int, answered func()) (int, error) {
		starts <- fmt.Sprintf("%d at %s", host, time.Since(g.began))
		f := g.acts[host]
		defer func() { ended <- end{host, time.Since(g.began), context.Cause(ctx)} }()
		var done <-chan time.Time
		if f.after > 0 {
			done = time.After(f.after)
		}
		select {
		case <-done:
		case <-ctx.Done():
			if f.late > 0 {
				time.Sleep(f.late)
				return host, nil
			}
			return 0, errSilent
		}
		if f.answers {
			answered()
		}
		if f.fails {
			return 0, errRefused
		}
		return host, nil
	}
	winner, failed, losers := hosts.Race(ctx, order, headStart, g.patience, try, func(host int) { g.losses <- host })
	took = time.Since(g.began)
	losers()
	close(starts)
	close(ended)
	close(g.losses)
	for s := range starts {
		g.starts = append(g.starts, s)
	}
	for e := range ended {
		g.ends[e.host], g.causes[e.host] = e.at, e.cause
	}
	return winner, failed, took
}

// text is what came of those that failed: "host why", and a ! behind the silent ones.
func text(failed []hosts.Result[int]) string {
	var parts []string
	for _, f := range failed {
		part := fmt.Sprintf("%d %v", f.Host, f.Err)
		if f.Silent {
			part += "!"
		}
		parts = append(parts, part)
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// Each host has its head start; the next one is tried at once if the last has failed. The
// first that succeeds wins, whichever that is.
func TestFirstHostThatSucceedsWins(t *testing.T) {
	const ms = time.Millisecond
	refuses := act{after: 10 * ms, fails: true}
	for _, tt := range []struct {
		name   string
		acts   []act
		winner int // -1: none
		took   time.Duration
		starts string
		failed string
	}{
		{"the first, in time", []act{{after: 100 * ms}, {after: 1}}, 0, 100 * ms, "0 at 0s", ""},
		{"the first, just in time", []act{{after: 249 * ms}, {after: 1}}, 0, 249 * ms, "0 at 0s", ""},
		{"the second, while the first is slow", []act{{after: time.Second}, {after: 10 * ms}}, 1, 260 * ms, "0 at 0s, 1 at 250ms", "0 <nil>!"},
		{"the first, after its head start", []act{{after: 300 * ms}, {after: time.Second}}, 0, 300 * ms, "0 at 0s, 1 at 250ms", ""},
		{"the third, while two are slow", []act{{}, {}, {after: 10 * ms}}, 2, 510 * ms, "0 at 0s, 1 at 250ms, 2 at 500ms", "0 <nil>!, 1 <nil>!"},
		{"the second, at once after the first has failed", []act{refuses, {after: 10 * ms}}, 1, 20 * ms, "0 at 0s, 1 at 10ms", "0 refused"},
		{"the second has a head start of its own then", []act{refuses, {after: 200 * ms}, {after: 1}}, 1, 210 * ms, "0 at 0s, 1 at 10ms", "0 refused"},
		{"the third, at once after the second, while the first is slow", []act{{}, refuses, {after: 10 * ms}}, 2, 270 * ms, "0 at 0s, 1 at 250ms, 2 at 260ms", "0 <nil>!, 1 refused"},
		{"the first, after long, where the other cannot be reached", []act{{after: 3 * time.Second}, refuses}, 0, 3 * time.Second, "0 at 0s, 1 at 250ms", "1 refused"},
		{"none", []act{refuses, refuses}, -1, 20 * ms, "0 at 0s, 1 at 10ms", "0 refused, 1 refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				order := make([]int, len(tt.acts))
				for i := range order {
					order[i] = i
				}
				g := newGround(tt.acts...)
				winner, failed, took := g.race(t.Context(), order...)
				if winner == nil != (tt.winner < 0) || winner != nil && (winner.Host != tt.winner || winner.Value != tt.winner) {
					t.Errorf("%+v wins, want %d", winner, tt.winner)
				}
				if starts := strings.Join(g.starts, ", "); took != tt.took || starts != tt.starts {
					t.Errorf("it took %s, and tried %s, want %s, %s", took, starts, tt.took, tt.starts)
				}
				if got := text(failed); got != tt.failed {
					t.Errorf("failed: %s, want %s", got, tt.failed)
				}
			})
		})
	}
}

func TestHostsAreTriedInTheGivenOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(act{after: 1, fails: true}, act{after: 1}, act{after: 1, fails: true}, act{after: 1})
		if winner, _, _ := g.race(t.Context(), 2, 0, 3); winner == nil || winner.Host != 3 {
			t.Errorf("%+v wins, want 3", winner)
		}
	})
}

// The winner is not waited with: the others are cancelled, and know by what.
func TestWinnerCancelsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(act{late: time.Second}, act{after: 50 * time.Millisecond})
		_, _, took := g.race(t.Context(), 0, 1)
		won := start + 50*time.Millisecond
		if took != won {
			t.Errorf("the winner was had after %s, want %s", took, won)
		}
		if g.ends[0] != won+time.Second || !errors.Is(g.causes[0], hosts.ErrNotNeeded) {
			t.Errorf("the loser ended after %s, because %v; want it cancelled when it lost, and losers to wait for it", g.ends[0], g.causes[0])
		}
	})
}

// A loser that brings a connection all the same must not leave it open.
func TestLoserThatSucceedsIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(act{late: time.Second}, act{}, act{after: 50 * time.Millisecond})
		winner, _, _ := g.race(t.Context(), 0, 1, 2)
		var dropped []int
		for host := range g.losses {
			dropped = append(dropped, host)
		}
		if winner == nil || winner.Host != 2 || !slices.Equal(dropped, []int{0}) {
			t.Errorf("%+v wins, and %v are dropped, want 2 and [0]", winner, dropped)
		}
	})
}

// A host that says nothing is waited for as long as nobody else has answered either: then the
// network, or all of them, may be slow.
func TestSilentHostIsGivenUpOnceAnotherHasAnswered(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name   string
		acts   []act
		limit  time.Duration // of the context; 0: none
		took   time.Duration
		failed string
	}{
		{"after Silence", []act{{}, {after: 10 * ms, fails: true, answers: true}}, 0, hosts.Silence, "0 <nil>!, 1 refused"},
		{"after four times the other's answer", []act{{}, {after: 500 * ms, fails: true, answers: true}}, 0, 2 * time.Second, "0 <nil>!, 1 refused"},
		{"after what is known of it", []act{{patience: 3 * time.Second}, {after: 10 * ms, fails: true, answers: true}}, 0, 3 * time.Second, "0 <nil>!, 1 refused"},
		{"each from its own beginning", []act{{}, {}, {after: 10 * ms, fails: true, answers: true}}, 0, start + hosts.Silence, "0 <nil>!, 1 <nil>!, 2 refused"},
		{"not because of a failure that is no answer", []act{{}, {after: 10 * ms, fails: true}}, 5 * time.Second, 5 * time.Second, "0 <nil>!, 1 refused"},
		{"not if all are silent", []act{{}, {}}, 5 * time.Second, 5 * time.Second, "0 <nil>!, 1 <nil>!"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
				if tt.limit > 0 {
					cancel()
					ctx, cancel = context.WithTimeout(t.Context(), tt.limit)
				}
				defer cancel()
				order := make([]int, len(tt.acts))
				for i := range order {
					order[i] = i
				}
				winner, failed, took := newGround(tt.acts...).race(ctx, order...)
				if winner != nil || took != tt.took {
					t.Errorf("%+v wins after %s, want none, after %s", winner, took, tt.took)
				}
				if got := text(failed); got != tt.failed {
					t.Errorf("failed: %s, want %s", got, tt.failed)
				}
			})
		})
	}
}

// Where that time is over when the first one answers, the others are not waited for at all.
func TestSilentHostIsGivenUpAtOnceByALateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(act{}, act{}, act{}, act{}, act{}, act{after: 10 * time.Millisecond, fails: true, answers: true})
		g.race(t.Context(), 0, 1, 2, 3, 4, 5)
		answered := 5*start + 10*time.Millisecond
		for host, want := range []time.Duration{answered, start + hosts.Silence, 2*start + hosts.Silence, 3*start + hosts.Silence, 4*start + hosts.Silence} {
			if g.ends[host] != want {
				t.Errorf("host %d was given up after %s, want %s", host, g.ends[host], want)
			}
		}
	})
}

// A host that succeeds late, but before it is given up, wins.
func TestSlowHostWinsBeforeItIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(act{after: 990 * time.Millisecond}, act{after: 10 * time.Millisecond, fails: true, answers: true})
		winner, failed, _ := g.race(t.Context(), 0, 1)
		if winner == nil || winner.Host != 0 || text(failed) != "1 refused" {
			t.Errorf("%+v wins, and failed: %s; want 0, 1 refused", winner, text(failed))
		}
	})
}

// Who was tried for less than its head start when another one won is not silent: it has had no
// time to speak.
func TestLoserWithinItsHeadStartIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGround(act{after: 300 * time.Millisecond}, act{})
		if winner, failed, _ := g.race(t.Context(), 0, 1); winner == nil || winner.Host != 0 || len(failed) != 0 {
			t.Errorf("%+v wins, and failed: %s; want 0, and nothing said of 1", winner, text(failed))
		}
	})
}

// The end of the context ends every try. What that says of the hosts the caller knows.
func TestEndOfTheContextEndsARace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		winner, failed, took := newGround(act{}, act{}).race(ctx, 0, 1)
		if winner != nil || took != 400*time.Millisecond || text(failed) != "0 <nil>!, 1 <nil>!" {
			t.Errorf("%+v wins after %s, failed: %s; want none, after 400ms, and both silent", winner, took, text(failed))
		}
	})
}

// A host that is tried after another one has answered is given up like those before: a replica
// that says its role at once must not have its caller wait for a dead one until the time is up.
func TestHostTriedAfterAnAnswerIsGivenUpToo(t *testing.T) {
	for range 20 { // it was a matter of chance
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, failed, took := newGround(act{after: 10 * time.Millisecond, fails: true, answers: true}, act{}).race(ctx, 0, 1)
			if want := hosts.Silence + 10*time.Millisecond; took != want || text(failed) != "0 refused, 1 <nil>!" {
				t.Errorf("it took %s, failed: %s; want %s, and 1 given up as silent", took, text(failed), want)
			}
		})
	}
}

// A dialer that ignores its context has nobody wait but losers, which drops what it brings.
func TestHostThatIgnoresItsContextIsNotWaitedFor(t *testing.T) {
	const deaf = 2 * time.Minute
	for _, tt := range []struct {
		name  string
		other act
		limit time.Duration
		took  time.Duration
	}{
		{"the context ends", act{}, 5 * time.Second, 5 * time.Second},
		{"it is given up", act{after: 10 * time.Millisecond, fails: true, answers: true}, time.Minute, hosts.Silence},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
				defer cancel()
				g := newGround(act{late: deaf}, tt.other)
				winner, _, took := g.race(ctx, 0, 1)
				if winner != nil || took != tt.took || len(g.losses) != 1 {
					t.Errorf("%+v wins after %s, %d dropped; want none after %s, and one", winner, took, len(g.losses), tt.took)
				}
			})
		})
	}
}

// A try that ends its goroutine has failed.
func TestHostWhoseGoroutineEndsHasFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		try := func(_ context.Context, host int, _ func()) (int, error) {
			if host == 0 {
				runtime.Goexit()
			}
			return host, nil
		}
		winner, failed, losers := hosts.Race(t.Context(), []int{0, 1}, headStart, headStart, try, func(int) {})
		losers()
		if winner == nil || winner.Host != 1 || len(failed) != 1 || failed[0].Err == nil {
			t.Errorf("%+v wins, failed: %s; want 1, and the error of 0", winner, text(failed))
		}
	})
}
