// Package hosts decides which of several hosts a pool connects to: in which order they are
// tried and with which head start (race.go), which of them is the primary, and which is left
// out for a while because it said nothing (this file). It sends nothing: internal/connector
// tries a host, asks the server for its role, and tells the Set what came of it.
package hosts

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Target is what a pool wants of a host.
type Target int

const (
	Primary       Target = iota // it takes writes
	Replica                     // it takes none
	PreferReplica               // it takes none; one that does, where there is no such host
	Any
)

// Silence is for how long a host is waited for, at least, where another one has answered: the
// kernel sends the first packet of a connection again after a second (RFC 6298), and one that
// was lost is no silence.
const Silence = 1250 * time.Millisecond

// maxLeftOut is for how long a host that said nothing is left out, at most.
const maxLeftOut = 8 * time.Second

// Set is what is known of the hosts of a pool, which go by their number. It is safe for
// concurrent use. Times are those of the caller's clock.
type Set struct {
	target Target

	mu        sync.Mutex // guards what follows
	hosts     []host
	primary   int           // the last that was known to take writes; -1: none does
	demoted   int           // the last that was demoted, -1: none. It is the least likely to take writes
	changedAt time.Duration // when primary was last changed; -1: never
	changed   chan struct{} // closed at the next change
}

type host struct {
	silentSince  time.Duration // -1: it has answered
	leftOutUntil time.Duration
	isGone       bool // it is not to be tried; as the primary, after all others
	isRemoved    bool // it is not to be tried
}

// New returns a Set of n hosts, of which nothing is known.
func New(n int, target Target) *Set {
	s := &Set{target: target, primary: -1, demoted: -1, changedAt: -1, changed: make(chan struct{})}
	for range n {
		s.Add()
	}
	return s
}

// Add adds a host, whose number is the next one.
func (s *Set) Add() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts = append(s.hosts, host{silentSince: -1})
}

// Remove has a host not tried any more, whatever it is, and says whether that is new.
func (s *Set) Remove(i int) (isNew bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	isNew = !s.hosts[i].isRemoved
	s.hosts[i].isRemoved = true
	return isNew
}

// IsGone says whether a host is not to be tried, or only because it is the primary.
func (s *Set) IsGone(i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts[i].isRemoved || s.hosts[i].isGone
}

// Len is how many hosts may be tried.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.places())
}

// SetGone notes that a host is not to be tried, as one that a name no longer leads to, or that it
// is to be tried again, and says whether it is gone since now. The primary is tried all the same,
// after all others, until there is another one.
func (s *Set) SetGone(i int, isGone bool) (isNew bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	isNew = isGone && !s.hosts[i].isGone
	s.hosts[i].isGone = isGone
	return isNew
}

// Order returns the hosts to try: first the primary, if that is wanted, then the others as
// they were listed, one that was just demoted last; where any of several is right they come in
// a random order, so that the connections are spread. Hosts that said nothing a moment ago
// are left out, unless that leaves none.
func (s *Set) Order(now time.Duration) []int {
	order, left := s.split(now)
	if order == nil {
		return left
	}
	return order
}

// Others returns all hosts but one, those last that are left out.
func (s *Set) Others(i int, now time.Duration) []int {
	order, left := s.split(now)
	return slices.DeleteFunc(append(order, left...), func(at int) bool { return at == i })
}

// IsLeftOut says whether a host said nothing a moment ago.
func (s *Set) IsLeftOut(i int, now time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isLeftOut(i, now)
}

// isLeftOut is IsLeftOut. s.mu is held.
func (s *Set) isLeftOut(i int, now time.Duration) bool { return now < s.hosts[i].leftOutUntil }

// split returns the hosts in the order of their preference, those apart that are left out.
func (s *Set) split(now time.Duration) (order, left []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.places() {
		if s.isLeftOut(at, now) {
			left = append(left, at)
		} else {
			order = append(order, at)
		}
	}
	return order, left
}

// places are all hosts in the order of their preference. s.mu is held.
func (s *Set) places() []int {
	var all []int
	for i, h := range s.hosts {
		if !h.isRemoved && (!h.isGone || i == s.primary) {
			all = append(all, i)
		}
	}
	if s.target != Primary {
		rand.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
		return all
	}
	rank := func(i int) int {
		switch {
		case i == s.primary && s.hosts[i].isGone:
			return 2
		case i == s.primary:
			return -1
		case i == s.demoted && s.primary < 0:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b int) int { return rank(a) - rank(b) })
	return all
}

// HeadStart is how long host i is waited for before the next one is tried as well. The
// primary is not left because it is a little slow.
func (s *Set) HeadStart(i int) time.Duration {
	if p, known := s.Primary(); known && p == i && s.target == Primary {
		return Silence
	}
	return attemptDelay
}

// attemptDelay is what RFC 8305 recommends as the delay between two attempts to connect.
const attemptDelay = 250 * time.Millisecond

// Primary returns the host that was last known to take writes; not known after Demoted.
func (s *Set) Primary() (i int, known bool) {
	i, _ = s.Watch()
	return i, i >= 0
}

// Watch returns the primary, -1 if it is not known, and what is closed when that changes.
func (s *Set) Watch() (primary int, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.primary, s.changed
}

// Silent notes that a host said nothing: it is left out, for as long as it has been silent. What
// it did long ago, before anybody tried it again, says nothing of how long that is.
func (s *Set) Silent(i int, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.hosts[i]
	if h.silentSince < 0 || now-h.leftOutUntil > maxLeftOut {
		h.silentSince = now - Silence
	}
	h.leftOutUntil = now + min(now-h.silentSince, maxLeftOut)
}

// Answered notes that a host has answered.
func (s *Set) Answered(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[i].silentSince, s.hosts[i].leftOutUntil = -1, 0
}

// TakesWrites notes that a host has said so, in answer to a question that was sent at asked,
// where the pool leaves last for it, -1 for none. It says whether the host is the primary now:
// not if another one has become it meanwhile, or if the answer is older than the last change.
func (s *Set) TakesWrites(i, last int, asked, now time.Duration) (isPrimary, isNew bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.primary == i {
		return true, false
	}
	if s.primary != last || asked <= s.changedAt {
		return false, false
	}
	s.change(i, now)
	return true, true
}

// Demoted notes that a host takes no writes, as it said to what was sent at asked. It says
// whether that host was the primary until now.
func (s *Set) Demoted(i int, asked, now time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.primary != i || asked <= s.changedAt {
		return false
	}
	s.demoted = i
	s.change(-1, now)
	return true
}

// change notes another primary. s.mu is held.
func (s *Set) change(primary int, now time.Duration) {
	s.primary, s.changedAt = primary, now
	close(s.changed)
	s.changed = make(chan struct{})
}
