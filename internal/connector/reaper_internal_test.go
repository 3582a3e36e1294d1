package connector

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/wire"
)

// A connector without a Pool may be below one that hides its Close: what it has
// abandoned on a server that is gone for good keeps no goroutine for ever.
func TestBareConnectorGivesUpAServerThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := defaults()
		cfg.MySQL = mysql.NewConfig()
		var dials atomic.Int64
		cfg.MySQL.DialFunc = func(context.Context, string, string) (net.Conn, error) {
			dials.Add(1)
			return nil, errors.New("gone")
		}
		ctr, err := New(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		l := link{wire: wire.Wrap(addrConn{})}
		l.wire.Handshake.ThreadID = 7
		l.serverSide = &serverSide{Conn: l.wire}
		orphan := ctr.abandon(&l, true)
		time.Sleep(bareReapLimit / 2)
		if isClosed(orphan.done) || dials.Load() == 0 {
			t.Fatalf("given up after half a minute and %d attempts", dials.Load())
		}
		time.Sleep(bareReapLimit)
		synctest.Wait()
		ctr.reaper.mu.Lock()
		defer ctr.reaper.mu.Unlock()
		if !isClosed(orphan.done) || ctr.reaper.running {
			t.Errorf("after more than a minute: given up is %v, the goroutine is there is %v", isClosed(orphan.done), ctr.reaper.running)
		}
	})
}
