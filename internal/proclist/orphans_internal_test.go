package proclist

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/wire"
)

// What may be waited for is dealt with first, and no more at a time than is
// bearable; what could not be asked about waits, each for itself, and keeps
// nobody else back.
func TestOrderOfWhatWasAbandoned(t *testing.T) {
	r := &Reaper{Env: newEnv(t), KeepFor: time.Minute}
	abandon := func(since time.Duration, inTx bool) *Orphan {
		g := &Orphan{thread: &Thread{Conn: &wire.Conn{}}, since: since, inTx: inTx, done: make(chan struct{})}
		r.add(g, func() bool { return true })
		return g
	}
	a, b, c, d := abandon(1, false), abandon(2, true), abandon(3, false), abandon(4, true)
	batch, wait := r.nextBatch(10)
	if want := []*Orphan{d, b, c, a}; !slices.Equal(batch, want) || wait != clock.Never {
		t.Errorf("%v, then %s", batch, wait)
	}

	var tally [outcomes]int
	now := r.Clock.Now()
	r.putBack(r.postpone(batch, &tally))
	if batch, wait := r.nextBatch(now); batch != nil || wait <= 0 || wait > reapRetryLongest {
		t.Errorf("asked again at once: %v, %s", batch, wait)
	}
	e := abandon(5, false)
	if batch, _ := r.nextBatch(now); !slices.Equal(batch, []*Orphan{e}) {
		t.Errorf("%v, want the new one", batch)
	}
	r.putBack(nil)
	pauses := d.retryAfter
	r.retryNow()
	if batch, _ := r.nextBatch(now); !slices.Equal(batch, []*Orphan{d, b, c, a}) {
		t.Errorf("%v, want all, since the server can be asked", batch)
	} else if r.putBack(r.postpone(batch, &tally)); d.retryAfter != pauses {
		t.Errorf("a pause of %s after the server was asked, want %s", d.retryAfter, pauses)
	}
	if isClosed(r.done) {
		t.Error("idle, with orphans left")
	}
	r.retryNow()
	batch, _ = r.nextBatch(now)
	for _, g := range batch {
		g.finish(outcomeAlreadyGone, &tally)
	}
	if r.putBack(nil); !isClosed(r.done) || !r.tryExit() {
		t.Error("not idle, with nothing left")
	}

	for range maxReapBatch + 1 {
		abandon(6, false)
	}
	if batch, wait := r.nextBatch(10); len(batch) != maxReapBatch || wait != 0 {
		t.Errorf("%d at a time, the next in %s", len(batch), wait)
	}
}

// A KILL of several stops at the first that is gone. The others are looked for
// again; what was killed by then counts as that.
func TestKillOfSeveralOfWhichOneIsGone(t *testing.T) {
	r := &Reaper{Env: newEnv(t)}
	there := &fakeProcesslist{execErrs: []error{serverErrorNumber(noSuchThread), serverErrorNumber(noSuchThread)}}
	s := &Side{Conn: there.open("Query"), Wire: &wire.Conn{MultiStatements: true}}
	var orphans []*Orphan
	var ids []string
	for _, id := range []string{"1", "2", "3"} {
		orphans, ids = append(orphans, &Orphan{thread: &Thread{Conn: &wire.Conn{}}, done: make(chan struct{})}), append(ids, id)
	}
	var tally [outcomes]int
	for range 2 {
		if left, err := r.kill(s, orphans, ids, &tally); err != nil || len(left) != 3 {
			t.Fatalf("%d left, %v", len(left), err)
		}
	}
	there.execErrs = []error{serverErrorNumber(noSuchThread), nil, errors.New("lost")}
	left, err := r.kill(s, orphans, ids, &tally)
	if len(left) != 1 || err == nil || tally[outcomeKilled] != 2 {
		t.Errorf("%d left, %v, %v", len(left), err, tally)
	}
	if want := []string{"KILL 1; KILL 2; KILL 3", "KILL 1; KILL 2; KILL 3", "KILL 1", "KILL 2", "KILL 3"}; !slices.Equal(there.sent, want) {
		t.Errorf("sent %q", there.sent)
	}
}
