// turns.go limits how many connections are opened at a time: a server that has
// just come back, or whose pool was recycled, is not met by all callers at once.

package livepool

import (
	"container/list"
	"context"
	"time"
)

// turns are the handshakes that may be under way at a time, first come, first
// served: a few at first and after trouble, one more for each that is quick, up
// to ConnectLimit. They are guarded by outage.mu.
type turns struct {
	most    int
	limit   int
	taken   int
	queue   list.List // of chan error
	fastest time.Duration
}

const (
	turnsAtFirst = 2
	// A handshake is quick if it takes no longer than twice the fastest, or than this.
	quickHandshake = 20 * time.Millisecond
)

func (t *turns) init(most int) {
	t.most = most
	t.limit = min(turnsAtFirst, most)
	t.fastest = never
}

// slow begins anew with few.
func (t *turns) slow() { t.limit = min(turnsAtFirst, t.most) }

// trouble notes that a connection was found dead.
func (o *outage) trouble() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turns.slow()
}

// enter waits for a turn. In an outage there is none.
func (o *outage) enter(ctx context.Context) error {
	o.mu.Lock()
	if err := o.held(); err != nil {
		o.mu.Unlock()
		return err
	}
	t := &o.turns
	if t.taken < t.limit && t.queue.Len() == 0 {
		t.taken++
		o.mu.Unlock()
		return nil
	}
	granted := make(chan error, 1)
	ticket := t.queue.PushBack(granted)
	o.mu.Unlock()
	select {
	case err := <-granted:
		return err
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case err := <-granted: // at the same moment
		if err == nil {
			t.taken--
			t.grant()
		}
	default:
		t.queue.Remove(ticket)
	}
	return ctx.Err()
}

// leaveTurn gives a turn back. A failure is noted before: whoever is next in the
// queue is not to find out for himself, and the next after him, that there is no
// server. A node that takes no work is left for another, so that what it says is
// noted by who looks for one.
func (ctr *connector) leaveTurn(took time.Duration, err error) (noted bool) {
	if noted = err != nil && !isNotReady(err); noted {
		tell := ctr.noteFailure(err)
		defer tell() // the user's logger has no turn
	}
	ctr.outage.leave(took, err == nil)
	return noted
}

// noTurn is for an attempt that has waited for none. Its caller notes its failure.
func noTurn(time.Duration, error) (noted bool) { return false }

// leave gives a turn back, with how long its handshake took, if that succeeded.
func (o *outage) leave(took time.Duration, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := &o.turns
	t.taken--
	switch {
	case !ok:
	case took <= max(quickHandshake, 2*min(t.fastest, never/2)):
		t.limit = min(t.limit+1, t.most)
		t.fastest = min(t.fastest, took)
	default:
		t.limit = max(t.limit-1, min(turnsAtFirst, t.most))
	}
	t.grant()
}

// grant lets in whoever may enter now.
func (t *turns) grant() {
	for t.taken < t.limit && t.queue.Len() > 0 {
		t.taken++
		t.queue.Remove(t.queue.Front()).(chan error) <- nil
	}
}

// refuse sends all who wait for a turn away.
func (t *turns) refuse(err error) {
	for t.queue.Len() > 0 {
		t.queue.Remove(t.queue.Front()).(chan error) <- err
	}
}
