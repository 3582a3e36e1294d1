// diallimit.go limits how many connections are opened at a time, so that a server that
// has just come back is not met by all callers at once.

package connector

import (
	"container/list"
	"context"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// dialLimiter limits the handshakes that are under way, first come, first served: a few
// at first and after trouble, one more for each fast one, up to ConnectLimit. outage.mu
// guards it.
type dialLimiter struct {
	maxLimit int
	limit    int
	active   int
	queue    list.List // of chan error
	fastest  time.Duration
}

const (
	initialDials = 2
	// A handshake is fast if it takes no longer than this, or than twice the fastest.
	fastHandshake = 20 * time.Millisecond
)

func (t *dialLimiter) init(maxLimit int) {
	t.maxLimit = maxLimit
	t.limit = min(initialDials, maxLimit)
	t.fastest = clock.Never
}

// reset goes back to the initial limit.
func (t *dialLimiter) reset() { t.limit = min(initialDials, t.maxLimit) }

// slowDials resets the limit: a connection was found dead.
func (o *outage) slowDials() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dialLimit.reset()
}

// acquireDial waits for permission to dial. During an outage it fails at once.
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
	case err := <-granted: // at the same time
		if err == nil {
			t.active--
			t.grant()
		}
	default:
		t.queue.Remove(ticket)
	}
	return ctx.Err()
}

// finishDial records the result of a dial and releases it. A failure is recorded first:
// otherwise the next in the queue would dial too, and the one after it, before the outage
// is known. That of a cluster node that takes no work is recorded by the caller, which
// tries other nodes.
func (ctr *Connector) finishDial(took time.Duration, err error) (noted bool) {
	if noted = err != nil && !mysqlerr.IsNodeNotReady(err); noted {
		tell := ctr.noteConnectFailure(err)
		defer tell() // logs after the release
	}
	ctr.Outage.releaseDial(took, err == nil)
	return noted
}

// noDialLimit is for an attempt without a limit. Its caller records the failure.
func noDialLimit(time.Duration, error) (noted bool) { return false }

// releaseDial ends a dial; took is how long its handshake took, if it succeeded.
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

// grant lets those dial that may by now.
func (t *dialLimiter) grant() {
	for t.active < t.limit && t.queue.Len() > 0 {
		t.active++
		t.queue.Remove(t.queue.Front()).(chan error) <- nil
	}
}

// rejectAll fails all that wait.
func (t *dialLimiter) rejectAll(err error) {
	for t.queue.Len() > 0 {
		t.queue.Remove(t.queue.Front()).(chan error) <- err
	}
}
