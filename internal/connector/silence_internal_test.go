package connector

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
)

// addThread gives the pool a connection to a host, which waits for a reply if its number of
// reads is odd.
func addThread(ctr *Connector, host int, reads uint64) *proclist.Thread {
	w := &proclist.Thread{Conn: wire.Wrap(addrConn{}), Host: host}
	w.Reads.Store(reads)
	ctr.register(&conn{ctr: ctr}).currentThread.Store(w)
	return w
}

// A primary that says nothing is left if another host takes writes, and only then: the
// statements that wait there, and no others, end by what a dead peer ends them with.
func TestSilentPrimaryIsLeftForOneThatTakesWrites(t *testing.T) {
	for _, tt := range []struct {
		name            string
		primary, second fakeHost
		left            bool
	}{
		{"it is silent", silentHost, writable, true},
		{"it has greeted, and is slow to log in", greets, writable, false},
		{"the first packet was lost", losesFirst, writable, false},
		{"its logins always take long", slowHost(700 * time.Millisecond), writable, false},
		{"it refuses connections, as while it is drained", down, writable, false},
		{"it answers", writable, writable, false},
		{"it answers that it is full", full, writable, false},
		{"it answers that it denies access", denies, writable, false},
		{"no other takes writes", silentHost, readOnly, false},
		{"the other one is silent, too", silentHost, silentHost, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openHosts(t, hosts.Primary, tt.primary, tt.second)
				time.Sleep(time.Second)
				ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
				l, _ := ctr.dialSide(t.Context(), ctr.hosts()[0]) // so that it is known how long that takes
				l.close()
				time.Sleep(time.Second)
				waiting, idle, elsewhere := addThread(ctr, 0, 7), addThread(ctr, 0, 8), addThread(ctr, 1, 7)
				start := time.Now()
				ctr.checkSilence(ctr.hosts()[0])
				if took := time.Since(start); took > 3*silentLimit || tt.left && took > silentLimit {
					t.Errorf("it took %s", took)
				}
				synctest.Wait()
				why := waiting.AbortErr.Load()
				if (why != nil) != tt.left || idle.AbortErr.Load() != nil || elsewhere.AbortErr.Load() != nil {
					t.Errorf("aborted: what waits there %v, what does not %v, what waits elsewhere %v; want the first: %v", why != nil, idle.AbortErr.Load() != nil, elsewhere.AbortErr.Load() != nil, tt.left)
				}
				if why != nil && (wire.LossOf(*why) != wire.WentSilent || !strings.Contains((*why).Error(), "a:3306") || !strings.Contains((*why).Error(), "b:3306")) {
					t.Errorf("%v, want a loss, and both hosts", *why)
				}
				want := 0
				if tt.left {
					want = 1
				}
				if primary, _ := ctr.hostSet.Primary(); primary != want || ctr.hosts()[0].generation.Load() != uint64(want) {
					t.Errorf("host %d is the primary, want %d, and the connections to the other retired", primary, want)
				}
				if n := all[0].OpenConns() + all[1].OpenConns(); n != 0 {
					t.Errorf("%d connections are left open", n)
				}
			})
		})
	}
}

// What a silent host is left for follows the target. Where it is the only one of its role its
// statements go on waiting, unless a pool on the primary serves them.
func TestSilentHostIsLeftForOneThatServesInItsPlace(t *testing.T) {
	for _, tt := range []struct {
		target     hosts.Target
		hasPrimary bool
		other      fakeHost
		left       bool
	}{
		{hosts.Replica, false, readOnly, true},
		{hosts.Replica, false, writable, false},
		{hosts.Replica, true, writable, true},
		{hosts.PreferReplica, false, writable, true},
		{hosts.Any, false, writable, true},
		{hosts.Any, false, silentHost, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctr, _ := openHosts(t, tt.target, silentHost, tt.other)
			ctr.Cfg.HasPrimary = tt.hasPrimary
			waiting := addThread(ctr, 0, 7)
			ctr.checkSilence(ctr.hosts()[0])
			if left := waiting.AbortErr.Load() != nil; left != tt.left || ctr.hosts()[0].generation.Load() > 0 != tt.left {
				t.Errorf("%+v: left: %v", tt, left)
			}
			if waits, _ := ctr.isLeft(0); tt.left && !waits {
				t.Errorf("%+v: a unit waits for what it has left on the silent host", tt)
			}
		})
	}
}

// No login is broken off that a host has answered: MySQL blocks a client with many of them
// (max_connect_errors).
func TestLoginThatWasAnsweredIsNotBrokenOff(t *testing.T) {
	for _, primary := range []fakeHost{greets, slowHost(300 * time.Millisecond)} {
		synctest.Test(t, func(t *testing.T) {
			ended := make(chan error, 10)
			note := func(h fakeHost) fakeHost {
				return func() *fakedb.Host {
					db := h()
					inner := db.OnConnect
					db.OnConnect = func(ctx context.Context, n int64) error {
						err := inner(ctx, n)
						ended <- err
						return err
					}
					return db
				}
			}
			ctr, _ := openHosts(t, hosts.Primary, note(primary), note(slowHost(700*time.Millisecond)))
			ctr.Cfg.ConnectTimeout = time.Minute
			ctr.hostSet.TakesWrites(0, -1, 1, 1)
			addThread(ctr, 0, 7)
			ctr.checkSilence(ctr.hosts()[0])
			time.Sleep(20 * time.Second)
			if len(ended) == 0 {
				t.Error("no login has ended")
			}
			for range len(ended) {
				if err := <-ended; err != nil {
					t.Errorf("a login was broken off: %v", err)
				}
			}
		})
	}
}

// greets is a host that greets, and takes ten seconds for the login.
var greets = greetsAndThen(func(ctx context.Context) error { return sleep(ctx, 10*time.Second) })

// greetsAndThen is a host that greets before it logs in.
func greetsAndThen(login func(ctx context.Context) error) fakeHost {
	return hostThat(func(ctx context.Context) error {
		near, far := net.Pipe()
		defer far.Close()
		w := wire.Wrap(near)
		go far.Write([]byte{1})
		if _, err := w.Read(make([]byte, 1)); err != nil {
			return err
		}
		ctx.Value(wire.ContextKey{}).(*atomic.Pointer[wire.Conn]).Store(w)
		return login(ctx)
	})
}

// losesFirst is a host of whose logins every other one gets lost.
var losesFirst fakeHost = func() *fakedb.Host {
	h := &fakedb.Host{}
	h.OnConnect = func(ctx context.Context, _ int64) error {
		if h.Connects.Load()%2 == 0 { // the first one was that of the test
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	return h
}

func slowHost(d time.Duration) fakeHost {
	return hostThat(func(ctx context.Context) error { return sleep(ctx, d) })
}

func sleep(ctx context.Context, d time.Duration) error {
	clock.Wait(ctx, nil, d)
	return ctx.Err()
}

// A host is asked whether it is there when a statement has had no reply for a while, and no
// other one either; and no more than once a second.
func TestWhenAHostIsAskedWhetherItIsThere(t *testing.T) {
	const replied = 2 // reads that are answered each time
	for _, tt := range []struct {
		name    string
		target  hosts.Target
		threads [][3]int // host, reads, and how many more of these there are each time
		asked   int64    // in three seconds
	}{
		{"one waits", hosts.Primary, [][3]int{{0, 7, 0}}, 3},
		{"many wait", hosts.Primary, [][3]int{{0, 7, 0}, {0, 9, 0}, {0, 11, 0}}, 3},
		{"none waits", hosts.Primary, [][3]int{{0, 8, 0}}, 0},
		{"each reply comes, and the next is waited for", hosts.Primary, [][3]int{{0, 7, replied}}, 0},
		{"one waits, and others get replies", hosts.Primary, [][3]int{{0, 7, 0}, {0, 7, replied}}, 0},
		{"one waits, and others get replies elsewhere", hosts.Primary, [][3]int{{0, 7, 0}, {1, 7, replied}}, 3},
		{"a replica is wanted, of which any will do", hosts.Replica, [][3]int{{0, 7, 0}}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openHosts(t, tt.target, writable, readOnly)
				time.Sleep(time.Second)
				ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
				m := &maintainer{ctr: ctr}
				var threads []*proclist.Thread
				for _, thread := range tt.threads {
					threads = append(threads, addThread(ctr, thread[0], uint64(thread[1])))
				}
				start := time.Now()
				var first time.Duration
				for time.Since(start) < 3*time.Second {
					wait := m.findSilence(ctr.snapshot())
					if synctest.Wait(); first == 0 && all[0].Connects.Load() > 0 {
						first = time.Since(start)
					}
					if wait == clock.Never {
						break
					}
					time.Sleep(wait)
					for i, w := range threads {
						w.Reads.Add(uint64(tt.threads[i][2]))
						w.Replies.Add(uint64(tt.threads[i][2] / 2))
					}
				}
				if n := all[0].Connects.Load(); n != tt.asked || n > 0 && (first < 500*time.Millisecond || first > time.Second) {
					t.Errorf("asked %d times, first after %s; want %d, within a second", n, first, tt.asked)
				}
			})
		})
	}
}
