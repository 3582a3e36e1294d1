// diallimit.go limits how many connections are opened at a time: a server that has
// just come back, or whose pool was recycled, is not met by all callers at once.

package connector

import (
	"container/list"
	"context"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// dialLimiter are the handshakes that may be under way at a time, first come, first
// served: a few at first and after trouble, one more for each that is quick, up
// to ConnectLimit. They are guarded by outage.mu.
type dialLimiter struct {
	maxLimit int
	limit    int
	active   int
	queue    list.List // of chan error
	fastest  time.Duration
}

const (
	initialDials = 2
	// A handshake is quick if it takes no longer than twice the fastest, or than this.
	fastHandshake = 20 * time.Millisecond
)

func (t *dialLimiter) init(maxLimit int) {
	t.maxLimit = maxLimit
	t.limit = min(initialDials, maxLimit)
	t.fastest = clock.Never
}

// reset begins anew with few.
func (t *dialLimiter) reset() { t.limit = min(initialDials, t.maxLimit) }

// slowDials notes that a connection was found dead.
func (o *outage) slowDials() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dialLimit.reset()
}

// acquireDial waits for a turn. In an outage there is none.
func (o *outage) acquireDial(ctx context.Context) error {
	o.mu.Lock()
	if err := o.gateErrLocked(); err != nil {
		o.mu.Unlock()
		return err
	}
	t := &o.dialLimit
	if t.active < t.limit && t.queue.Len() == 0 {
		t.active++
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
			t.active--
			t.grant()
		}
	default:
		t.queue.Remove(ticket)
	}
	return ctx.Err()
}

// finishDial gives a turn back. A failure is noted before: whoever is next in the
// queue is not to find out for himself, and the next after him, that there is no
// server. A node that takes no work is left for another, so that what it says is
// noted by who looks for one.
func (ctr *Connector) finishDial(took time.Duration, err error) (noted bool) {
	if noted = err != nil && !mysqlerr.IsNodeNotReady(err); noted {
		tell := ctr.noteConnectFailure(err)
		defer tell() // the user's logger has no turn
	}
	ctr.Outage.releaseDial(took, err == nil)
	return noted
}

// noDialLimit is for an attempt that has waited for none. Its caller notes its failure.
func noDialLimit(time.Duration, error) (noted bool) { return false }

// releaseDial gives a turn back, with how long its handshake took, if that succeeded.
func (o *outage) releaseDial(took time.Duration, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := &o.dialLimit
	t.active--
	switch {
	case !ok:
	case took <= max(fastHandshake, 2*min(t.fastest, clock.Never/2)):
		t.limit = min(t.limit+1, t.maxLimit)
		t.fastest = min(t.fastest, took)
	default:
		t.limit = max(t.limit-1, min(initialDials, t.maxLimit))
	}
	t.grant()
}

// grant lets in whoever may enter now.
func (t *dialLimiter) grant() {
	for t.active < t.limit && t.queue.Len() > 0 {
		t.active++
		t.queue.Remove(t.queue.Front()).(chan error) <- nil
	}
}

// rejectAll sends all who wait for a turn away.
func (t *dialLimiter) rejectAll(err error) {
	for t.queue.Len() > 0 {
		t.queue.Remove(t.queue.Front()).(chan error) <- err
	}
}
