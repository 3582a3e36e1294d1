package connector

import (
	"net"
	"syscall"
	"testing"
	"testing/synctest"
)

// A caller that waits for a turn when an attempt fails because the server is away waits
// for the server, and does not dial: else each in the queue might find out by itself.
func TestFailureIsNotedBeforeTheTurnIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := defaults()
		cfg.ConnectLimit = 1
		ctr, err := New(fakeConnector{}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer ctr.Close()
		if err := ctr.Outage.Enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() { result <- ctr.Outage.Enter(t.Context()) }()
		synctest.Wait()
		ctr.leaveGate(0, &ConnectError{Text: "connecting", Cause: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, startedAt: ctr.clock.Now()})
		if err := <-result; !ctr.IsUnreachable(err) {
			t.Errorf("the next in the queue gets %v, want that there is no server", err)
		}
	})
}
