package connector

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
func TestWhoeverIsKeptWaitingHasAReason(t *testing.T) {
	ctr, err := New(fakeConnector{}, defaults())
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
				away := &ConnectError{Text: "connecting", Cause: refused, startedAt: ctr.clock.Now()}
				ctr.recordConnectFailure(away)
				ctr.recordConnected()
			}
		}
	})
	held := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		err := ctr.Outage.acquireDial(t.Context())
		if err == nil {
			ctr.Outage.releaseDial(0, true)
			continue
		}
		if held++; !ctr.IsUnreachable(err) {
			t.Errorf("held with %#v, of which a unit would not wait for the server", err)
			break
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("held %d times", held)
}

// A caller that waits for a turn when an attempt fails because the server is away waits
// for the server, and does not dial: else each in the queue might find out by itself.
func TestFailureIsNotedBeforeTheTurnIsGivenBack(t *testing.T) {
	ctr, err := New(fakeConnector{}, defaults())
	if err != nil {
		t.Fatal(err)
	}
	defer ctr.Close()
	o := &ctr.Outage
	for range initialDials {
		if err := o.acquireDial(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	told := make(chan error, 1)
	go func() { told <- o.acquireDial(t.Context()) }()
	queued := func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.dialLimit.queue.Len()
	}
	for queued() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctr.finishDial(0, &ConnectError{Text: "connecting", Cause: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, startedAt: ctr.clock.Now()})
	if err := <-told; !ctr.IsUnreachable(err) {
		t.Errorf("the next in the queue is told %v, want that there is no server", err)
	}
}
