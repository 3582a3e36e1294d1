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
	"github.com/livepool/livepool/internal/proclist"
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
		l := link{host: ctr.hosts()[0], wire: wire.Wrap(addrConn{})}
		l.wire.Handshake.ThreadID = 7
		l.thread = &proclist.Thread{Conn: l.wire}
		orphan := ctr.abandon(&l, true)
		time.Sleep(bareReapLimit / 2)
		select {
		case <-orphan.Done():
			t.Fatalf("given up after half a minute")
		default:
		}
		time.Sleep(bareReapLimit)
		synctest.Wait()
		select {
		case <-orphan.Done():
		default:
			t.Fatal("not given up after more than a minute")
		}
		attempts, failed := dials.Load(), ctr.Stats.KillFailed.Load()
		time.Sleep(bareReapLimit)
		if failed != 1 || attempts == 0 || dials.Load() != attempts {
			t.Errorf("given up %d times after %d attempts, and %d later", failed, attempts, dials.Load()-attempts)
		}
	})
}

// addrConn is a net.Conn that is only closed.
type addrConn struct{ net.Conn }

func (addrConn) Close() error { return nil }
