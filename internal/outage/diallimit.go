package outage

import (
	"container/list"
	"context"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// dialLimiter limits how many connections are opened at a time, first come, first
// served: a server that has just come back, or whose pool was recycled, is not met
// by all callers at once. It allows a few at first and after trouble, and one more
// for each fast handshake, up to ConnectLimit. Gate.mu guards it.
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

func (d *dialLimiter) init(maxLimit int) {
	d.maxLimit, d.fastest = maxLimit, clock.Never
	d.reset()
}

// reset goes back to the initial limit.
func (d *dialLimiter) reset() { d.limit = min(initialDials, d.maxLimit) }

// SlowDials resets the limit: a connection was found dead.
func (g *Gate) SlowDials() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dials.reset()
}

// Enter waits for permission to open a connection, which Leave gives back. During an
// outage it fails at once with an *Error.
func (g *Gate) Enter(ctx context.Context) error {
	g.mu.Lock()
	if err := g.causeLocked(); err != nil {
		g.mu.Unlock()
		return err
	}
	d := &g.dials
	if d.active < d.limit && d.queue.Len() == 0 {
		d.active++
		g.mu.Unlock()
		return nil
	}
	granted := make(chan error, 1)
	ticket := d.queue.PushBack(granted)
	g.mu.Unlock()
	select {
	case err := <-granted:
		return err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case err := <-granted: // at the same time
		if err == nil {
			d.active--
			d.grant()
		}
	default:
		d.queue.Remove(ticket)
	}
	return ctx.Err()
}

// Leave ends a dial; took is how long its handshake took, if it succeeded. Call Failed
// before it: Leave lets the next caller dial, which must see the outage by then.
func (g *Gate) Leave(took time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := &g.dials
	d.active--
	switch {
	case !ok:
	case took <= max(fastHandshake, 2*min(d.fastest, clock.Never/2)):
		d.limit = min(d.limit+1, d.maxLimit)
		d.fastest = min(d.fastest, took)
	default:
		d.limit = max(d.limit-1, min(initialDials, d.maxLimit))
	}
	d.grant()
}

// grant lets those dial that may by now.
func (d *dialLimiter) grant() {
	for d.active < d.limit && d.queue.Len() > 0 {
		d.active++
		d.queue.Remove(d.queue.Front()).(chan error) <- nil
	}
}

// rejectAll fails all that wait.
func (d *dialLimiter) rejectAll(err error) {
	for d.queue.Len() > 0 {
		d.queue.Remove(d.queue.Front()).(chan error) <- err
	}
}
