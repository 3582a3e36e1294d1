package hosts_test

import (
	"slices"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/hosts"
)

// at is a time of the clock in seconds.
func at(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// step is something that the Set is told, at a time in seconds.
type step func(s *hosts.Set)

func writes(i int, asked, now float64) step {
	return func(s *hosts.Set) {
		last, _ := s.Primary()
		s.TakesWrites(i, last, at(asked), at(now))
	}
}
func demoted(i int, asked, now float64) step {
	return func(s *hosts.Set) { s.Demoted(i, at(asked), at(now)) }
}
func silent(i int, now float64) step {
	return func(s *hosts.Set) { s.Silent(i, at(now)) }
}
func answered(i int) step { return func(s *hosts.Set) { s.Answered(i) } }

// The primary is tried first, then the others as they were listed. Who said nothing is left
// out for as long as that has lasted; but somebody is always tried.
func TestPrimaryIsTriedFirstAndTheSilentAreLeftOut(t *testing.T) {
	for _, tt := range []struct {
		name  string
		told  []step
		now   float64
		order []int
	}{
		{"nothing is known", nil, 10, []int{0, 1, 2}},
		{"the first is the primary", []step{writes(0, 1, 2)}, 10, []int{0, 1, 2}},
		{"the second is", []step{writes(1, 1, 2)}, 10, []int{1, 0, 2}},
		{"the last is", []step{writes(2, 1, 2)}, 10, []int{2, 0, 1}},
		{"another one has become it", []step{writes(2, 1, 2), writes(1, 3, 4)}, 10, []int{1, 0, 2}},
		{"it was demoted, and is the last now", []step{writes(1, 1, 2), demoted(1, 3, 4)}, 10, []int{0, 2, 1}},
		{"so is the first", []step{writes(0, 1, 2), demoted(0, 3, 4)}, 10, []int{1, 2, 0}},
		{"it was demoted before another one", []step{writes(0, 1, 2), demoted(0, 3, 4), writes(2, 5, 6)}, 10, []int{2, 0, 1}},

		{"one was silent, for as long as it is waited for", []step{silent(1, 10)}, 11.24, []int{0, 2}},
		{"that is over", []step{silent(1, 10)}, 11.25, []int{0, 1, 2}},
		{"the primary itself", []step{writes(2, 1, 2), silent(2, 10)}, 10.5, []int{0, 1}},
		{"it is silent still, and left out for as long as it has been", []step{silent(1, 10), silent(1, 12)}, 15.24, []int{0, 2}},
		{"that is over too", []step{silent(1, 10), silent(1, 12)}, 15.25, []int{0, 1, 2}},
		{"it has been for long, and is tried again after 8s", []step{silent(1, 10), silent(1, 12), silent(1, 16), silent(1, 24)}, 31.99, []int{0, 2}},
		{"which are over", []step{silent(1, 10), silent(1, 12), silent(1, 16), silent(1, 24)}, 32, []int{0, 1, 2}},
		{"it was silent an hour ago, and nobody has tried it since", []step{silent(1, 10), silent(1, 3600)}, 3601.25, []int{0, 1, 2}},
		{"it has answered", []step{silent(1, 10), silent(1, 12), answered(1)}, 13, []int{0, 1, 2}},
		{"and is silent once more, since just now", []step{silent(1, 10), answered(1), silent(1, 12)}, 13.25, []int{0, 1, 2}},
		{"all are silent", []step{writes(1, 1, 2), silent(0, 10), silent(1, 10), silent(2, 10)}, 10.5, []int{1, 0, 2}},
		{"all but one", []step{writes(1, 1, 2), silent(0, 10), silent(1, 10)}, 10.5, []int{2}},
	} {
		s := hosts.New(3, hosts.Primary)
		for _, tell := range tt.told {
			tell(s)
		}
		if order := s.Order(at(tt.now)); !slices.Equal(order, tt.order) {
			t.Errorf("%s: %v are tried, want %v", tt.name, order, tt.order)
		}
	}
}

// All others are asked, whatever is known of them, those last that said nothing a moment ago.
func TestOthersAreAllHostsButOne(t *testing.T) {
	s := hosts.New(4, hosts.Primary)
	s.TakesWrites(2, -1, at(1), at(2))
	s.Silent(0, at(10))
	for but, want := range [][]int{{2, 1, 3}, {2, 3, 0}, {1, 3, 0}, {2, 1, 0}} {
		if others := s.Others(but, at(10.5)); !slices.Equal(others, want) || s.IsLeftOut(but, at(10.5)) != (but == 0) {
			t.Errorf("but %d: %v, want %v", but, others, want)
		}
	}
}

// Where any host is right the connections are spread over all: each is first about as often,
// and followed by each of the others about as often. The primary is no better than they.
func TestOtherTargetsAreSpread(t *testing.T) {
	for _, target := range []hosts.Target{hosts.Replica, hosts.PreferReplica, hosts.Any} {
		s := hosts.New(3, target)
		s.TakesWrites(1, -1, at(1), at(2))
		first, pairs := map[int]int{}, map[[2]int]int{}
		for range 3000 {
			order := s.Order(at(10))
			first[order[0]]++
			pairs[[2]int(order[:2])]++
			if sorted := slices.Sorted(slices.Values(order)); !slices.Equal(sorted, []int{0, 1, 2}) {
				t.Fatalf("target %d: %v are tried, want each once", target, order)
			}
		}
		for i := range 3 {
			if n := first[i]; n < 800 || n > 1200 {
				t.Errorf("target %d: host %d is first in %d of 3000 cases", target, i, n)
			}
		}
		for pair, n := range pairs {
			if n < 350 || n > 650 || len(pairs) != 6 {
				t.Errorf("target %d: %v are first in %d of 3000 cases", target, pair, n)
			}
		}
		s.Silent(0, at(10))
		for range 100 {
			if order := s.Order(at(10.5)); len(order) != 2 || slices.Contains(order, 0) {
				t.Fatalf("target %d: %v are tried, though 0 is silent", target, order)
			}
		}
	}
}

// An answer to a question from before the last change tells what was true before it; and so
// does the decision to leave a host that is not the primary any more.
func TestOldAnswersAreIgnored(t *testing.T) {
	type told struct {
		writes  bool // else demoted
		host    int
		asked   float64
		last    int  // which the pool leaves
		isNew   bool // and what Demoted returns
		primary int  // after that
	}
	for _, tt := range []struct {
		name  string
		steps []told // one each second from 10 on
	}{
		{"the first answer", []told{{true, 1, 0, -1, true, 1}}},
		{"the same again", []told{{true, 1, 0, -1, true, 1}, {true, 1, 10.5, 1, false, 1}}},
		{"the same, from before it was known", []told{{true, 1, 0, -1, true, 1}, {true, 1, 9.5, -1, false, 1}}},
		{"another one", []told{{true, 1, 0, -1, true, 1}, {true, 2, 10.5, 1, true, 2}}},
		{"another one, asked before the change", []told{{true, 1, 0, -1, true, 1}, {true, 2, 9.5, 1, false, 1}}},
		{"another one, asked when it changed", []told{{true, 1, 0, -1, true, 1}, {true, 2, 10, 1, false, 1}}},
		{"another one, where none was to be left", []told{{true, 1, 0, -1, true, 1}, {true, 2, 10.5, -1, false, 1}}},
		{"another one, in place of a third", []told{{true, 1, 0, -1, true, 1}, {true, 2, 10.5, 0, false, 1}}},
		{"another one, in place of one that was demoted since", []told{{true, 1, 0, -1, true, 1}, {false, 1, 10.5, 0, true, -1}, {true, 2, 11.5, 1, false, -1}}},
		{"a demotion", []told{{true, 1, 0, -1, true, 1}, {false, 1, 10.5, 0, true, -1}}},
		{"a demotion, asked before the change", []told{{true, 1, 0, -1, true, 1}, {false, 1, 9.5, 0, false, 1}}},
		{"a demotion, asked when it changed", []told{{true, 1, 0, -1, true, 1}, {false, 1, 10, 0, false, 1}}},
		{"a demotion of one that was not the primary", []told{{true, 1, 0, -1, true, 1}, {false, 2, 10.5, 0, false, 1}}},
		{"a demotion where none was", []told{{false, 0, 9, 0, false, -1}}},
		{"the late answer of one that was demoted since", []told{{true, 1, 0, -1, true, 1}, {false, 1, 10.5, 0, true, -1}, {true, 1, 10.7, -1, false, -1}}},
		{"it is taken back", []told{{true, 1, 0, -1, true, 1}, {false, 1, 10.5, 0, true, -1}, {true, 1, 11.5, -1, true, 1}}},
	} {
		s := hosts.New(3, hosts.Primary)
		for i, step := range tt.steps {
			now := at(10 + float64(i))
			if step.writes {
				isPrimary, isNew := s.TakesWrites(step.host, step.last, at(step.asked), now)
				if isPrimary != (step.primary == step.host) || isNew != step.isNew {
					t.Errorf("%s, step %d: primary %v, new %v, want %v, %v", tt.name, i, isPrimary, isNew, step.primary == step.host, step.isNew)
				}
			} else if was := s.Demoted(step.host, at(step.asked), now); was != step.isNew {
				t.Errorf("%s, step %d: was the primary: %v, want %v", tt.name, i, was, step.isNew)
			}
			if primary, known := s.Primary(); known != (step.primary >= 0) || primary != step.primary {
				t.Errorf("%s, step %d: the primary is %d, known %v, want %d", tt.name, i, primary, known, step.primary)
			}
		}
	}
}

// Who watches is told of each change of the primary, and of nothing else.
func TestWatchIsToldOfEachChange(t *testing.T) {
	s := hosts.New(3, hosts.Primary)
	for _, tt := range []struct {
		name    string
		tell    step
		changes bool
		primary int
	}{
		{"one takes writes", writes(1, 1, 2), true, 1},
		{"it says so again", writes(1, 3, 4), false, 1},
		{"an old answer", writes(2, 1, 5), false, 1},
		{"one is silent", silent(1, 6), false, 1},
		{"one answers", answered(1), false, 1},
		{"another one takes writes", writes(2, 7, 8), true, 2},
		{"it is demoted", demoted(2, 9, 10), true, -1},
		{"it was not the primary any more", demoted(2, 11, 12), false, -1},
		{"it takes writes again", writes(2, 13, 14), true, 2},
	} {
		_, changed := s.Watch()
		tt.tell(s)
		told := false
		select {
		case <-changed:
			told = true
		default:
		}
		primary, next := s.Watch()
		if told != tt.changes || primary != tt.primary {
			t.Errorf("%s: told %v, and the primary is %d, want %v, %d", tt.name, told, primary, tt.changes, tt.primary)
		}
		select {
		case <-next:
			t.Errorf("%s: the next watch ends at once", tt.name)
		default:
		}
	}
}

// The primary is not left because it is a little slow; what any other one has to show is less.
func TestPrimaryHasALongerHeadStart(t *testing.T) {
	for _, tt := range []struct {
		name   string
		target hosts.Target
		told   []step
		want   time.Duration // of host 1
	}{
		{"nothing is known", hosts.Primary, nil, 250 * time.Millisecond},
		{"it is the primary", hosts.Primary, []step{writes(1, 1, 2)}, hosts.Silence},
		{"another one is", hosts.Primary, []step{writes(0, 1, 2)}, 250 * time.Millisecond},
		{"it was", hosts.Primary, []step{writes(1, 1, 2), demoted(1, 3, 4)}, 250 * time.Millisecond},
		{"it is, and a replica is wanted", hosts.Replica, []step{writes(1, 1, 2)}, 250 * time.Millisecond},
		{"it is, and any is wanted", hosts.Any, []step{writes(1, 1, 2)}, 250 * time.Millisecond},
	} {
		s := hosts.New(2, tt.target)
		for _, tell := range tt.told {
			tell(s)
		}
		if got := s.HeadStart(1); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
