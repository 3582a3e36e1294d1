package livepool

import (
	"context"
	"log/slog"
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
	ctr, err := newConnector(fakeConnector{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctr.cfg.Logger = slog.New(slog.DiscardHandler)
	ctr.outage.init(1, 1)
	defer ctr.Close()
	away := &connectError{text: "connecting", cause: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}}
	ctx := context.WithValue(t.Context(), sessionDial{}, time.Time{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				ctr.failedToConnect(away, ctr.clock.now())
				ctr.connected()
			}
		}
	})
	held := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		leave, err := ctr.outage.enter(ctx)
		if err == nil {
			leave()
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
