package livepool

import (
	"context"
	"errors"
	"testing"
	"time"
)

// askedContext has ended, and says when it is asked why.
type askedContext struct {
	context.Context
	asked chan struct{}
}

func (c *askedContext) Err() error {
	select {
	case <-c.asked:
	default:
		close(c.asked)
	}
	return c.Context.Err()
}

// A waiter's turn comes at the moment at which its context ends: the place goes to
// the next.
func TestPlaceInTheNickOfTime(t *testing.T) {
	var ps places
	ps.init(1, nil, nil)
	far := time.Now().Add(time.Hour)
	var holder, late, next place
	if err := ps.acquire(t.Context(), &holder, "holder", far); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	ctx := &askedContext{ended, make(chan struct{})}
	gaveUp, served := make(chan error), make(chan error)
	waits := func(n int) {
		for waiting := 0; waiting < n; {
			ps.mu.Lock()
			waiting = ps.queue.Len()
			ps.mu.Unlock()
		}
	}
	go func() { gaveUp <- ps.acquire(ctx, &late, "late", far) }()
	waits(1)
	go func() { served <- ps.acquire(t.Context(), &next, "next", far) }()
	waits(2)
	ps.mu.Lock()
	end()
	<-ctx.asked // it has seen the end, and comes for the lock
	ps.drop(&holder)
	ps.mu.Unlock()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("who was too late got %v", err)
	}
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the place is lost")
	}
	if ps.release(&next); ps.held != 0 || ps.holders.next != &ps.holders {
		t.Errorf("%d places are held by nobody", ps.held)
	}
}
