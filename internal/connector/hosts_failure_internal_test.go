package connector

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/wire"
)

// The primary is full, another host says nothing, a third takes writes: the pool waits for room.
func TestFullPrimaryBesideASilentHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, all := openHosts(t, hosts.Primary, writable, silentHost, writable)
		l, err := ctr.dialOnce(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		all[0].OnConnect = func(context.Context, int64) error { return fakedb.ServerError(1040, "Too many connections") }
		_, err = ctr.dialOnce(t.Context())
		if mysqlerr.Number(err) != 1040 {
			t.Errorf("got %v, want 1040 of the primary", err)
		}
	})
}

// lateHost has its login answered late.
func lateHost(d time.Duration, fail error) fakeHost {
	return hostThat(func(ctx context.Context) error {
		if w, ok := ctx.Value(wire.ContextKey{}).(*atomic.Pointer[wire.Conn]); ok {
			end, _ := net.Pipe()
			w.Store(wire.Wrap(end))
		}
		if err := sleep(ctx, d); err != nil {
			return err
		}
		return fail
	})
}

// A login by which the pool asks a host that it has left says nothing of the pool.
func TestLateLoginThatIsNotThePoolsIsNoOutage(t *testing.T) {
	for _, fail := range []error{nil, syscall.ECONNRESET} {
		t.Log("late:", fail)
		synctest.Test(t, func(t *testing.T) {
			ctr, _ := openHosts(t, hosts.Primary, writable, lateHost(7*time.Second, fail))
			l, err := ctr.dialOnce(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer l.close()
			time.Sleep(time.Second)
			if fail == nil { // an outage is on
				ctr.noteDemotion(ctr.hosts()[0], ctr.clock.Now(), fakedb.ServerError(1290, "read-only"))
			}
			was := ctr.Outage.IsDown()
			_, err = ctr.dialSide(ctr.Ctx, ctr.hosts()[1])
			t.Log(err)
			time.Sleep(4 * time.Second)
			synctest.Wait()
			if is := ctr.Outage.IsDown(); is != was {
				c, _ := ctr.Outage.Current()
				t.Errorf("the outage was %v, is %v: %v", was, is, c)
			}
		})
	}
}
