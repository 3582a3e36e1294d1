package fifo

import (
	"context"
	"errors"
	"testing"
	"time"
)

// watchedContext has ended, and says when it is asked why.
type watchedContext struct {
	context.Context
	errCalled chan struct{}
}

func (c *watchedContext) Err() error {
	select {
	case <-c.errCalled:
	default:
		close(c.errCalled)
	}
	return c.Context.Err()
}

// A waiter's turn comes at the moment at which its context ends: the place goes to
// the next.
func TestPlaceInTheNickOfTime(t *testing.T) {
	var ps Queue
	ps.Init(1, nil, nil)
	deadline := time.Now().Add(time.Hour)
	var holder, cancelled, next Place
	if err := ps.Take(t.Context(), &holder, "holder", deadline); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	ctx := &watchedContext{ended, make(chan struct{})}
	cancelErr, granted := make(chan error), make(chan error)
	waits := func(n int) {
		for waiting := 0; waiting < n; {
			ps.mu.Lock()
			waiting = ps.waiters.Len()
			ps.mu.Unlock()
		}
	}
	go func() { cancelErr <- ps.Take(ctx, &cancelled, "late", deadline) }()
	waits(1)
	go func() { granted <- ps.Take(t.Context(), &next, "next", deadline) }()
	waits(2)
	ps.mu.Lock()
	end()
	<-ctx.errCalled // it has seen the end, and comes for the lock
	ps.giveLocked(&holder)
	ps.mu.Unlock()
	if err := <-cancelErr; !errors.Is(err, context.Canceled) {
		t.Errorf("who was too late got %v", err)
	}
	select {
	case err := <-granted:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the place is lost")
	}
	if ps.Give(&next); ps.taken != 0 || ps.holders.next != &ps.holders {
		t.Errorf("%d places are held by nobody", ps.taken)
	}
}
