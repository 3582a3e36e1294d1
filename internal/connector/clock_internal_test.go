package connector

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/lab/fakedb"
)

// A process that was stopped (SIGSTOP, a suspended VM) finds the reading of
// before on its return: the timer that was to end it is late. What was cut off
// meanwhile is not trusted for it.
func TestAReadingFromBeforeAStopTrustsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(maintainDB).pool(t, func(c *Settings) { c.KeepAlive = 0 })
		k := p.ctr.clock
		fakedb.Warm(t, p.DB, 1)
		p.ctr.IsMySQL = true // whose connections may lead over a network
		k.Earliest()
		k.Close() // so that the reading's end is late
		time.Sleep(1500 * time.Millisecond)
		if r := k.Earliest(); k.Now()-r < time.Second {
			t.Fatalf("the reading is %s, of now %s: the test shows nothing", r, k.Now())
		}
		fakedb.Warm(t, p.DB, 1)
		if n := p.Stats().Pinged; n != 1 {
			t.Errorf("%d pings before a connection that was idle for 1.5s was handed out, want 1", n)
		}
	})
}
