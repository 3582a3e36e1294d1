package proclist

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/wire"
)

// newReaper makes one whose goroutine runs, over the server that open leads to.
func newReaper(t *testing.T, open func(context.Context) (*Side, error)) *Reaper {
	r := &Reaper{Env: newEnv(t), KeepFor: time.Minute, OutageEnd: func() <-chan struct{} { return nil }}
	r.OpenSide, r.Spawn = open, func(f func()) bool { go f(); return true }
	return r
}

func newThread(beacon string) *Thread {
	return &Thread{Conn: &wire.Conn{Conn: addrConn{}}, Beacon: beacon}
}

// A server that cannot be asked is given up after KeepFor, and the goroutine ends. What
// is abandoned later is another beginning.
func TestServerThatIsGoneIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		r := newReaper(t, func(context.Context) (*Side, error) { asked.Add(1); return nil, io.EOF })
		w := newThread("b")
		for n := range int64(2) {
			o := r.Abandon(w, true)
			if r.Abandon(w, true) != nil {
				t.Error("abandoned twice")
			}
			time.Sleep(r.KeepFor / 2)
			synctest.Wait()
			if isClosed(o.done) || asked.Load() == 0 {
				t.Errorf("given up after half the time and %d questions", asked.Load())
			}
			time.Sleep(r.KeepFor)
			synctest.Wait()
			r.mu.Lock()
			if !isClosed(o.done) || r.running || r.Counters.KillFailed.Load() != n+1 {
				t.Errorf("given up: %v, the goroutine runs: %v, KillFailed %d", isClosed(o.done), r.running, r.Counters.KillFailed.Load())
			}
			r.mu.Unlock()
			w = newThread("b")
			asked.Store(0)
		}
	})
}

// During an outage the server is asked once a second, and at its end at once.
func TestOrphanIsKilledAtTheEndOfAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, end, asked, closed := &fakeProcesslist{locks: map[string]string{"b": "21"}}, make(chan struct{}), 0, 0
		r := newReaper(t, func(context.Context) (*Side, error) {
			if asked++; !isClosed(end) {
				return nil, io.EOF
			}
			return &Side{Conn: server.open("Query"), Close: func(error) { closed++ }}, nil
		})
		r.OutageEnd = func() <-chan struct{} {
			if isClosed(end) {
				return nil
			}
			return end
		}
		o := r.Abandon(newThread("b"), false)
		time.Sleep(10*time.Second + 500*time.Millisecond)
		synctest.Wait()
		if asked < 5 || asked > 11 {
			t.Errorf("asked %d times in ten seconds of an outage", asked)
		}
		close(end)
		synctest.Wait()
		if !isClosed(o.done) || r.Counters.Killed.Load() != 1 || fmt.Sprint(server.sent) != "[KILL IS_USED_LOCK('b')]" {
			t.Errorf("killed at the end of the outage: %v, Killed %d, sent %q", isClosed(o.done), r.Counters.Killed.Load(), server.sent)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if closed != 1 {
			t.Errorf("the side connection was closed %d times", closed)
		}
	})
}

// A connection of the pool's is given back after a few, and taken again for the others.
func TestBorrowedSideIsGivenBackSoon(t *testing.T) {
	server, sides := &fakeProcesslist{locks: map[string]string{}}, 0
	var sent []int // until each return
	r := newReaper(t, func(context.Context) (*Side, error) {
		sides++
		return &Side{Conn: server.open("Query"), Borrowed: true, Close: func(error) { sent = append(sent, len(server.sent)) }}, nil
	})
	r.Spawn = func(func()) bool { return true }
	for i := range 2*maxReapBorrowed + 1 {
		beacon := fmt.Sprint("b", i)
		server.locks[beacon] = fmt.Sprint(i + 1)
		r.Abandon(newThread(beacon), false)
	}
	r.reap()
	if want := fmt.Sprint([]int{maxReapBorrowed, 2 * maxReapBorrowed, 2*maxReapBorrowed + 1}); sides != 3 || fmt.Sprint(sent) != want {
		t.Errorf("%d were borrowed, and given back after %v, want %s", sides, sent, want)
	}
}

// At the end of the pool Drain waits for what is left, within its limit; what could not
// be dealt with by then is counted.
func TestDrainEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReaper(t, func(context.Context) (*Side, error) { return nil, io.EOF })
		r.Drain(time.Hour) // nothing was ever abandoned
		ctx, cancel := context.WithCancel(t.Context())
		r.Ctx = ctx
		start := time.Now()
		o := r.Abandon(newThread("b"), false)
		r.Drain(3 * time.Second)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("waited for %s", took)
		}
		cancel()
		synctest.Wait()
		if !isClosed(o.done) || r.Counters.KillFailed.Load() != 1 {
			t.Errorf("given up: %v, KillFailed %d", isClosed(o.done), r.Counters.KillFailed.Load())
		}
		r.Spawn = func(func()) bool { return false } // as after Close
		if o := r.Abandon(newThread("b"), false); !isClosed(o.done) || r.Counters.KillFailed.Load() != 2 {
			t.Error("an orphan after the end is waited for")
		}
		r.Drain(time.Hour)
	})
}
