package fifo

import (
	"context"
	"errors"
	"testing"
	"time"
)

// watchedContext closes errCalled when its Err is called.
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

// A waiter is granted its place at the moment at which its context ends: the place goes
// to the next.
func TestPlaceGrantedAsTheContextEnds(t *testing.T) {
	var q Queue
	q.Init(1, nil, nil)
	deadline := time.Now().Add(time.Hour)
	var holder, cancelled, next Place
	if err := q.Take(t.Context(), &holder, "holder", deadline); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	ctx := &watchedContext{ended, make(chan struct{})}
	cancelErr, granted := make(chan error), make(chan error)
	waits := func(n int) {
		for waiting := 0; waiting < n; {
			q.mu.Lock()
			waiting = q.waiters.Len()
			q.mu.Unlock()
		}
	}
	go func() { cancelErr <- q.Take(ctx, &cancelled, "cancelled", deadline) }()
	waits(1)
	go func() { granted <- q.Take(t.Context(), &next, "next", deadline) }()
	waits(2)
	q.mu.Lock()
	end()
	<-ctx.errCalled // it has seen the end, and waits for the lock
	q.giveLocked(&holder)
	q.mu.Unlock()
	if err := <-cancelErr; !errors.Is(err, context.Canceled) {
		t.Errorf("the waiter whose context ended got %v", err)
	}
	select {
	case err := <-granted:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the place is lost")
	}
	if q.Give(&next); q.taken != 0 || q.holders.next != &q.holders {
		t.Errorf("%d places are held by nobody", q.taken)
	}
}
