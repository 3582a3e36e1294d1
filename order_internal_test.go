package livepool

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// What may be waited for is dealt with first, and no more at a time than is
// bearable; what could not be asked about waits, each for itself, and keeps
// nobody else back.
func TestOrderOfWhatWasAbandoned(t *testing.T) {
	cfg := defaults()
	ctr, err := newConnector(fakeConnector{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer ctr.Close()
	r := &ctr.reaper
	lay := func(since time.Duration, inTx bool) *ghost {
		g := &ghost{w: &site{wire: &wire{}}, since: since, inTx: inTx, done: make(chan struct{})}
		r.takes(g, func() bool { return true })
		return g
	}
	a, b, c, d := lay(1, false), lay(2, true), lay(3, false), lay(4, true)
	batch, wait := r.next(10)
	if want := []*ghost{d, b, c, a}; !slices.Equal(batch, want) || wait != never {
		t.Errorf("%v, then %s", batch, wait)
	}

	var tally [fates]int
	now := ctr.clock.now()
	r.returns(ctr.postpone(batch, &tally))
	if batch, wait := r.next(now); batch != nil || wait <= 0 || wait > reapLongest {
		t.Errorf("asked again at once: %v, %s", batch, wait)
	}
	e := lay(5, false)
	if batch, _ := r.next(now); !slices.Equal(batch, []*ghost{e}) {
		t.Errorf("%v, want the new one", batch)
	}
	r.returns(nil)
	pauses := d.pause
	r.retryNow()
	if batch, _ := r.next(now); !slices.Equal(batch, []*ghost{d, b, c, a}) {
		t.Errorf("%v, want all, since the server can be asked", batch)
	} else if r.returns(ctr.postpone(batch, &tally)); d.pause != pauses {
		t.Errorf("a pause of %s after the server was asked, want %s", d.pause, pauses)
	}
	if isClosed(r.idle) {
		t.Error("idle, with ghosts left")
	}
	r.retryNow()
	batch, _ = r.next(now)
	for _, g := range batch {
		g.ends(fateGone, &tally)
	}
	if r.returns(nil); !isClosed(r.idle) || !r.leaves() {
		t.Error("not idle, with nothing left")
	}

	for range maxReapBatch + 1 {
		lay(6, false)
	}
	if batch, wait := r.next(10); len(batch) != maxReapBatch || wait != 0 {
		t.Errorf("%d at a time, the next in %s", len(batch), wait)
	}
}

// A KILL of several stops at the first that is gone. The others are looked for
// again; what was killed by then counts as that.
func TestKillOfSeveralOfWhichOneIsGone(t *testing.T) {
	cfg := defaults()
	ctr, err := newConnector(fakeConnector{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer ctr.Close()
	there := &town{refuses: []error{serverErrorNumber(noSuchThread), serverErrorNumber(noSuchThread)}}
	s := &side{ctr: ctr, l: link{inner: newInner(&clerk{there, "Query"}), wire: &wire{several: true}}}
	var ghosts []*ghost
	var ids []string
	for _, id := range []string{"1", "2", "3"} {
		ghosts, ids = append(ghosts, &ghost{w: &site{wire: &wire{}}, done: make(chan struct{})}), append(ids, id)
	}
	var tally [fates]int
	for range 2 {
		if left, err := s.kill(ghosts, ids, &tally); err != nil || len(left) != 3 {
			t.Fatalf("%d left, %v", len(left), err)
		}
	}
	there.refuses = []error{serverErrorNumber(noSuchThread), nil, errors.New("lost")}
	left, err := s.kill(ghosts, ids, &tally)
	if len(left) != 1 || err == nil || tally[fateKilled] != 2 {
		t.Errorf("%d left, %v, %v", len(left), err, tally)
	}
	if want := []string{"KILL 1; KILL 2; KILL 3", "KILL 1; KILL 2; KILL 3", "KILL 1", "KILL 2", "KILL 3"}; !slices.Equal(there.sent, want) {
		t.Errorf("sent %q", there.sent)
	}
}
