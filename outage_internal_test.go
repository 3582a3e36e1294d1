package livepool

import (
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Whoever is held has a reason, also where the outage ends at that moment: an
// error without one is none of the server's, and would end the unit.
func TestWhoeverIsHeldHasAReason(t *testing.T) {
	ctr, err := newConnector(fakeConnector{}, defaults())
	if err != nil {
		t.Fatal(err)
	}
	defer ctr.Close()
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				away := &connectError{text: "connecting", cause: refused, began: ctr.clock.now()}
				ctr.failedToConnect(away)
				ctr.connected()
			}
		}
	})
	held := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		err := ctr.outage.enter(t.Context())
		if err == nil {
			ctr.outage.leave(0, true)
			continue
		}
		if held++; !ctr.unreachable(err) {
			t.Errorf("held with %#v, of which a unit would not wait for the server", err)
			break
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("held %d times", held)
}

// Who waits for a turn when an attempt fails for want of a server is sent to wait
// for that, and does not dial: else each in the queue might find out for himself.
func TestFailureIsNotedBeforeTheTurnIsGivenBack(t *testing.T) {
	ctr, err := newConnector(fakeConnector{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctr.cfg.Logger = slog.New(slog.DiscardHandler)
	defer ctr.Close()
	o := &ctr.outage
	for range turnsAtFirst {
		if err := o.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	told := make(chan error, 1)
	go func() { told <- o.enter(t.Context()) }()
	queued := func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.turns.queue.Len()
	}
	for queued() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctr.leaveTurn(0, &connectError{text: "connecting", cause: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, began: ctr.clock.now()})
	if err := <-told; !ctr.unreachable(err) {
		t.Errorf("the next in the queue is told %v, want that there is no server", err)
	}
}
