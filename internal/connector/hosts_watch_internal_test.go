package connector

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

// serve has a connector serve a Pool, whose maintainer does not run, and returns its log.
func serve(ctr *Connector) *bytes.Buffer {
	log := &bytes.Buffer{} // the handler locks it; it is read when all is quiet
	ctr.Cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	ctr.ServePool(nil, nil)
	close(ctr.maintainer.done)
	return log
}

// deafDialer takes two minutes, whatever becomes of its context.
func deafDialer(h *fakedb.Host) {
	h.OnConnect = func(context.Context, int64) error { time.Sleep(2 * time.Minute); return nil }
}

// Close does not wait for a dialer that ignores its context, whatever dials in the background.
func TestCloseDoesNotWaitForADeafDialer(t *testing.T) {
	for _, tt := range []struct {
		name   string
		target hosts.Target
		begin  func(ctr *Connector)
	}{
		{"the watch for a second primary", hosts.Primary, func(ctr *Connector) { ctr.watchOthers(ctr.hosts()[0]) }},
		{"the watch for lag", hosts.Replica, func(ctr *Connector) {
			addThread(ctr, 1, 8)
			ctr.spawn(func() { (&asker{ctr: ctr, host: ctr.hosts()[1]}).run() })
		}},
		{"a question to a silent host", hosts.Primary, func(ctr *Connector) { ctr.spawn(func() { ctr.checkSilence(ctr.hosts()[1]) }) }},
		{"a question to the others", hosts.Primary, func(ctr *Connector) { ctr.spawn(func() { ctr.checkSilence(ctr.hosts()[0]) }) }},
		{"the prober", hosts.Primary, func(ctr *Connector) {
			ctr.noteDemotion(ctr.hosts()[0], ctr.clock.Now(), fakedb.ServerError(1290, "read-only"))
			ctr.spawn(func() { ctr.Outage.AwaitServer(ctr.Ctx, time.Now().Add(time.Hour)) })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openHosts(t, tt.target, writable, readOnly)
				for _, h := range all {
					deafDialer(h)
				}
				ctr.Cfg.MaxLag = time.Second
				serve(ctr)
				time.Sleep(time.Second)
				ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
				time.Sleep(time.Second)
				tt.begin(ctr)
				time.Sleep(1500 * time.Millisecond)
				if all[0].Connects.Load()+all[1].Connects.Load() == 0 {
					t.Fatal("nothing dials")
				}
				start := time.Now()
				ctr.Close()
				if took := time.Since(start); took > ctr.Cfg.PingTimeout+time.Second {
					t.Errorf("Close took %s", took)
				}
				time.Sleep(3 * time.Minute) // until the dialers have returned
			})
		})
	}
}

// However often the primary changes, one goroutine looks at each other host; and a connector
// without a Pool, which nobody closes, has none.
func TestWatchersOfHostsDoNotPileUp(t *testing.T) {
	for _, hasPool := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ctr, _ := openHosts(t, hosts.Primary, writable, silentHost, silentHost)
			if hasPool {
				serve(ctr)
			}
			for range 50 {
				time.Sleep(10 * time.Second)
				if !ctr.noteHostWon(&candidate{link{host: ctr.hosts()[0]}, ctr.clock.Now()}, -1) {
					t.Fatal("it is not the primary")
				}
				time.Sleep(5 * time.Minute) // until they look seldom
				ctr.hostSet.Demoted(0, ctr.clock.Now(), ctr.clock.Now())
			}
			time.Sleep(10 * time.Second) // until those that were asking have ended
			synctest.Wait()
			stacks := make([]byte, 1<<22)
			stacks = stacks[:runtime.Stack(stacks, true)]
			if n := bytes.Count(stacks, []byte(".(*Connector).watchHost(")); n > 0 {
				t.Errorf("pool %v: %d goroutines are left of 50 changes", hasPool, n)
			}
		})
	}
}

// A host that could not take over is told of when the pool has found its primary, not when it has
// to, and once.
func TestHostThatCouldNotTakeOverIsToldOfOnce(t *testing.T) {
	for _, tt := range []struct {
		name  string
		other fakeHost
		lines int
	}{
		{"it is a replica", readOnly, 0},
		{"it takes writes, too", writable, 0},
		{"it is down", down, 1},
		{"it is silent", silentHost, 1},
		{"it refuses the login", denies, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, _ := openHosts(t, hosts.Primary, writable, tt.other)
				log := serve(ctr)
				loginTo(t, ctr)
				time.Sleep(time.Hour)
				synctest.Wait()
				if n := strings.Count(log.String(), "could not take over"); n != tt.lines {
					t.Errorf("%d lines, want %d:\n%s", n, tt.lines, log)
				}
				ctr.Close()
			})
		})
	}
}

// Close ends a look at a host, and says nothing of that.
func TestCloseTellsOfNoHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, all := openHosts(t, hosts.Primary, writable, down)
		looks := make(chan int64, 10)
		all[1].OnConnect = func(ctx context.Context, n int64) error {
			looks <- n
			if n < 3 {
				return syscall.ECONNREFUSED
			}
			<-ctx.Done() // a login that takes a while
			return ctx.Err()
		}
		log := serve(ctr)
		ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
		ctr.watchOthers(ctr.hosts()[0])
		for range 3 {
			<-looks
		}
		ctr.Close()
		synctest.Wait()
		if strings.Contains(log.String(), "could not take over") {
			t.Error(log)
		}
	})
}

// A replica that lags or has stopped is told of once, however long its connections are held; and
// a primary, which a pool that prefers replicas may use, has no lag.
func TestReplicaThatIsLeftIsToldOnce(t *testing.T) {
	stopped, far, just, near := "", "100", "1", "0"
	for _, tt := range []struct {
		name  string
		host  fakeHost
		lag   []*string // from the beginning, and every 10 seconds
		lines int
		left  uint64 // how often its connections were retired
	}{
		{"it keeps up", readOnly, []*string{&near, &near}, 0, 0},
		{"it has no source", readOnly, []*string{nil, nil}, 0, 0},
		{"it lags", readOnly, []*string{&near, &far, &far}, 1, 1},
		{"it has stopped", readOnly, []*string{&stopped, &stopped}, 1, 1},
		{"it lags again", readOnly, []*string{&far, &near, &far}, 2, 2},
		{"it hovers about the limit", readOnly, []*string{&just, &far, &just, &far, &just}, 1, 1},
		{"it lags, and then stops", readOnly, []*string{&far, &stopped}, 1, 1},
		{"a primary with a stopped source", writable, []*string{&stopped, &stopped}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openHosts(t, hosts.PreferReplica, tt.host)
				ctr.Cfg.MaxLag = time.Second
				log := serve(ctr)
				addThread(ctr, 0, 8)
				ctr.spawn(func() { (&asker{ctr: ctr, host: ctr.hosts()[0]}).run() })
				for _, lag := range tt.lag {
					all[0].Lag.Store(lag)
					time.Sleep(10 * time.Second)
				}
				synctest.Wait()
				if n := strings.Count(log.String(), "a replica is left"); n != tt.lines || ctr.hosts()[0].generation.Load() != tt.left {
					t.Errorf("left %d times, told %d times; want %d, %d:\n%s", ctr.hosts()[0].generation.Load(), n, tt.left, tt.lines, log)
				}
				if n := all[0].Connects.Load(); n != 1+int64(tt.left) {
					t.Errorf("%d logins to ask for the lag, want one connection, replaced together with the others", n)
				}
			})
		})
	}
}

// A connection to a host that was demoted while it was opened does not end the outage that this
// began; and an answer from before the demotion has the hosts tried again.
func TestLateAnswersOfADemotedHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, all := openHosts(t, hosts.Primary, writable, readOnly)
		l, err := ctr.dialOnce(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		time.Sleep(time.Second)
		demote := func() {
			all[0].ReadOnly.Store(true)
			ctr.noteDemotion(ctr.hosts()[0], ctr.clock.Now(), fakedb.ServerError(1290, "read-only"))
		}
		demote()
		ctr.reached(&l)
		if !ctr.Outage.IsDown() {
			t.Error("a connection from before the demotion has ended the outage")
		}
		all[0].ReadOnly.Store(false)
		time.Sleep(time.Second)
		again, err := ctr.open(t.Context(), nil, 0, noTurn)
		if err != nil {
			t.Fatal(err)
		}
		defer again.close()
		time.Sleep(time.Second)
		all[0].OnConnect = func(ctx context.Context, _ int64) error { return sleep(ctx, time.Millisecond) }
		asked := all[0].Asked.Load()
		all[0].OnRole = func(context.Context) error {
			if all[0].Asked.Load() == asked+1 { // demoted, and taken back, before its first answer has come
				time.Sleep(time.Millisecond)
				ctr.noteDemotion(ctr.hosts()[0], ctr.clock.Now(), fakedb.ServerError(1290, "read-only"))
			}
			return nil
		}
		late, err := ctr.open(t.Context(), nil, 0, noTurn)
		defer late.close()
		if n := all[0].Asked.Load() - asked; err != nil || n < 2 {
			t.Errorf("%v after %d questions, want another one after the old answer", err, n)
		}
	})
}

// The role of a host is asked with what is asked of each new connection anyway, where that is
// possible.
func TestRoleCostsNoRoundTripOfItsOwn(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(ctr *Connector, h *fakedb.Host)
		queries int64
	}{
		{"several hosts", func(*Connector, *fakedb.Host) {}, 1},
		{"AfterConnect may change what is asked", func(ctr *Connector, _ *fakedb.Host) {
			ctr.Cfg.AfterConnect = func(context.Context, func(string, ...any) error) error { return nil }
		}, 2},
		{"the host does not say who it is", func(_ *Connector, h *fakedb.Host) { h.Name = "" }, 3},
		{"nothing else may be asked", func(ctr *Connector, _ *fakedb.Host) { ctr.servers.askNothing.Store(true) }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openHosts(t, hosts.Primary, writable, readOnly)
				all[0].Name = "a"
				dial := func() *serverFacts {
					l, err := ctr.dialOnce(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer l.close()
					return l.facts
				}
				dial() // of a server that is new more is asked
				tt.change(ctr, all[0])
				before, asked := all[0].Queries.Load(), all[0].Asked.Load()
				facts := dial()
				if n := all[0].Queries.Load() - before; n != tt.queries || all[0].Asked.Load() != asked+1 {
					t.Errorf("%d queries, want %d, of which one asks for the role", n, tt.queries)
				}
				if knows := tt.queries < 3 && !ctr.servers.askNothing.Load(); (facts != nil) != knows {
					t.Errorf("the facts are known: %v, want %v", facts != nil, knows)
				}
			})
		})
	}
}
