package hosts_test

import (
	"slices"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/hosts"
)

// The primary is tried first, the others as they were listed.
func TestOrderBeginsWithThePrimary(t *testing.T) {
	s := hosts.New(4, hosts.Primary)
	if got := s.Order(0); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("before anything is known: %v", got)
	}
	s.TakesWrites(2, 1, 1)
	if got := s.Order(2); !slices.Equal(got, []int{2, 0, 1, 3}) {
		t.Errorf("host 2 is the primary: %v", got)
	}
	s.Demoted(2, 3, 3)
	if got := s.Order(4); !slices.Equal(got, []int{0, 1, 3, 2}) {
		t.Errorf("it was demoted: %v", got)
	}
	s.TakesWrites(1, 5, 6)
	if got := s.Order(7); !slices.Equal(got, []int{1, 0, 2, 3}) {
		t.Errorf("host 1 is the primary: %v", got)
	}
}

// Where several hosts are right the connections are spread over them.
func TestOrderIsSpreadOverReplicas(t *testing.T) {
	s := hosts.New(3, hosts.Replica)
	first := map[int]int{}
	for range 300 {
		order := s.Order(0)
		first[order[0]]++
		if slices.Sort(order); !slices.Equal(order, []int{0, 1, 2}) {
			t.Fatalf("the order is %v", order)
		}
	}
	for i := range 3 {
		if first[i] < 30 {
			t.Errorf("host %d was the first %d times of 300", i, first[i])
		}
	}
}

// A host that says nothing is left out for as long as it has been silent, but not for ever,
// and not if that leaves none.
func TestSilentHostsAreLeftOut(t *testing.T) {
	s := hosts.New(2, hosts.Primary)
	now := time.Minute
	for _, leftOut := range []time.Duration{hosts.Silence, 2 * hosts.Silence, 4 * hosts.Silence, 8 * time.Second, 8 * time.Second} {
		s.Silent(0, now)
		if got := s.Order(now + leftOut - 1); !slices.Equal(got, []int{1}) {
			t.Errorf("at %s: %v, want it left out for %s", now, got, leftOut)
		}
		now += leftOut
		if got := s.Order(now); !slices.Equal(got, []int{0, 1}) {
			t.Errorf("after %s: %v", leftOut, got)
		}
	}
	s.Silent(0, now)
	s.Silent(1, now)
	if got := s.Order(now); len(got) != 2 {
		t.Errorf("all are silent: %v", got)
	}
	s.Answered(0)
	if got := s.Order(now); !slices.Equal(got, []int{0}) {
		t.Errorf("one has answered: %v", got)
	}
	s.Silent(0, now+time.Second)
	if got := s.Order(now + time.Second + hosts.Silence); len(got) != 2 {
		t.Errorf("silent for the first time again: %v", got)
	}
}

// What a host said to an old question changes nothing.
func TestOldAnswersAreIgnored(t *testing.T) {
	s := hosts.New(2, hosts.Primary)
	if last, isNew := s.TakesWrites(0, 10, 11); last != -1 || !isNew {
		t.Errorf("the first primary: last %d, new %v", last, isNew)
	}
	if _, isNew := s.TakesWrites(0, 12, 13); isNew {
		t.Error("the same primary is news")
	}
	if s.Demoted(1, 20, 20) {
		t.Error("a host that is not the primary was demoted")
	}
	if s.Demoted(0, 11, 21) {
		t.Error("demoted by an answer to a question from before it was the primary")
	}
	if last, isNew := s.TakesWrites(1, 11, 22); last != -1 || isNew {
		t.Errorf("another primary by an old answer: last %d, new %v", last, isNew)
	}
	if last, isNew := s.TakesWrites(1, 30, 31); last != 0 || !isNew {
		t.Errorf("another primary: last %d, new %v", last, isNew)
	}
	if !s.Demoted(1, 32, 33) {
		t.Error("the primary was not demoted")
	}
	if _, known := s.Primary(); known {
		t.Error("a primary is known")
	}
	if _, isNew := s.TakesWrites(1, 32, 34); isNew {
		t.Error("the primary again by an answer to a question from before its demotion")
	}
}

// Whoever watches is told of each change.
func TestWatch(t *testing.T) {
	s := hosts.New(2, hosts.Primary)
	changes := []func(){
		func() { s.TakesWrites(1, 1, 2) }, func() { s.Demoted(1, 3, 4) }, func() { s.TakesWrites(0, 5, 6) },
	}
	for i, change := range changes {
		_, changed := s.Watch()
		select {
		case <-changed:
			t.Fatalf("change %d is told before it happens", i)
		default:
		}
		change()
		select {
		case <-changed:
		default:
			t.Errorf("change %d is not told", i)
		}
	}
}

// The primary is waited for longer than the others.
func TestHeadStart(t *testing.T) {
	s := hosts.New(2, hosts.Primary)
	if s.HeadStart(0) != s.HeadStart(1) || s.HeadStart(0) > 300*time.Millisecond {
		t.Errorf("before a primary is known: %s and %s", s.HeadStart(0), s.HeadStart(1))
	}
	s.TakesWrites(0, 1, 1)
	if s.HeadStart(0) != hosts.Silence || s.HeadStart(1) > 300*time.Millisecond {
		t.Errorf("of the primary %s, of another host %s", s.HeadStart(0), s.HeadStart(1))
	}
}
