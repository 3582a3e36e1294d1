package connector

import (
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
)

// A host whose logins take longer than another one's answer is waited for once that is known.
func TestHostThatIsAlwaysSlowIsReached(t *testing.T) {
	slow := func(d time.Duration, isReadOnly bool) fakeHost {
		return func() *fakedb.Host {
			h := slowHost(d)()
			h.ReadOnly.Store(isReadOnly)
			return h
		}
	}
	for _, d := range []time.Duration{1100 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second} {
		for _, target := range []hosts.Target{hosts.Primary, hosts.Replica} {
			synctest.Test(t, func(t *testing.T) {
				isReplica := target == hosts.Replica
				other := readOnly
				if isReplica {
					other = writable
				}
				ctr, _ := openHosts(t, target, slow(d, isReplica), other)
				failed := 0
				for range 10 {
					l, err := ctr.open(t.Context(), nil, 0, noTurn)
					if err != nil {
						failed++
					}
					l.close()
					time.Sleep(10 * time.Second)
				}
				if failed > 1 {
					t.Errorf("target %d, a login of %s: %d of 10 attempts have failed, want the first at most", target, d, failed)
				}
			})
		}
	}
}

// A host that becomes slow is reached all the same, after a first attempt.
func TestHostThatBecomesSlowIsReached(t *testing.T) {
	for _, d := range []time.Duration{1500 * time.Millisecond, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			var takes atomic.Int64
			ctr, _ := openHosts(t, hosts.Primary, hostThat(func(ctx context.Context) error { return sleep(ctx, time.Duration(takes.Load())) }), readOnly)
			failed := 0
			for i, takesNow := range []time.Duration{time.Millisecond, d, d, d, time.Millisecond, d, d} {
				takes.Store(int64(takesNow))
				l, err := ctr.open(t.Context(), nil, 0, noTurn)
				if err != nil {
					t.Log(i, err)
					failed++
				}
				l.close()
				time.Sleep(10 * time.Second)
			}
			if failed != 2 {
				t.Errorf("a login of %s: %d attempts have failed, want that after each change", d, failed)
			}
		})
	}
}

// A host that is right wins, though it was given up, as long as none other has.
func TestHostThatWasGivenUpWinsALongRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openHosts(t, hosts.Primary, slowHost(1400*time.Millisecond), readOnly, slowHost(10*time.Second))
		l, err := ctr.open(t.Context(), nil, 0, noTurn)
		if err != nil {
			t.Error(err)
		}
		l.close()
	})
}

// The kernel sends the first packet again after a second: that it was lost is no silence, and
// no reason to leave the primary.
func TestLostPacketIsNoSilence(t *testing.T) {
	for _, other := range []fakeHost{readOnly, writable} {
		synctest.Test(t, func(t *testing.T) {
			ctr, all := openHosts(t, hosts.Primary, writable, other)
			ctr.hostSet.TakesWrites(0, -1, 1, 1)
			all[0].OnConnect = func(ctx context.Context, _ int64) error { return sleep(ctx, 1010*time.Millisecond) }
			l, err := ctr.dialOnce(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l.close()
			if l.host != ctr.hosts()[0] || ctr.Outage.IsDown() || !ctr.isPrimary(ctr.hosts()[0]) {
				t.Errorf("connected to %s; the first is the primary: %v; there is an outage: %v", l.host.addr, ctr.isPrimary(ctr.hosts()[0]), ctr.Outage.IsDown())
			}
		})
	}
}

// A login that has lost its race goes on to its end if the host has greeted, as MySQL blocks a
// client with many that are broken off.
func TestLoserThatWasGreetedEndsItsLogin(t *testing.T) {
	for _, tt := range []struct {
		target hosts.Target
		other  fakeHost
	}{{hosts.Any, writable}, {hosts.Replica, readOnly}, {hosts.Primary, readOnly}} {
		synctest.Test(t, func(t *testing.T) {
			var brokenOff atomic.Int64
			ctr, all := openHosts(t, tt.target, greetsAndThen(func(ctx context.Context) error {
				err := sleep(ctx, 1500*time.Millisecond)
				if err != nil {
					brokenOff.Add(1)
				}
				return err
			}), tt.other)
			for range 100 {
				l, _ := ctr.open(t.Context(), nil, 0, noTurn)
				l.close()
				time.Sleep(time.Second)
			}
			if logins := all[0].Connects.Load(); logins < 10 || brokenOff.Load() > 0 {
				t.Errorf("target %d: %d of %d logins were broken off", tt.target, brokenOff.Load(), logins)
			}
		})
	}
}

// hung is a host that greets and never logs anybody in, as with a full disk.
var hung = greetsAndThen(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })

// A host that says nothing, or hangs, leaves time for the others, however short ConnectTimeout is.
func TestSilentHostsLeaveTimeForTheOthers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		target  hosts.Target
		timeout time.Duration
		hosts   []fakeHost
	}{
		{"a silent replica, and the primary", hosts.PreferReplica, time.Second, []fakeHost{silentHost, writable}},
		{"a replica that hangs", hosts.PreferReplica, time.Second, []fakeHost{hung, writable}},
		{"a replica that hangs for longer", hosts.PreferReplica, 10 * time.Second, []fakeHost{hung, writable}},
		{"many silent ones", hosts.Primary, time.Second, []fakeHost{silentHost, silentHost, silentHost, silentHost, silentHost, writable}},
		{"many silent replicas", hosts.PreferReplica, time.Second, []fakeHost{silentHost, silentHost, silentHost, silentHost, writable}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, _ := openHosts(t, tt.target, tt.hosts...)
				ctr.Cfg.ConnectTimeout = tt.timeout
				for range 20 {
					l, err := ctr.open(t.Context(), nil, 0, noTurn)
					if err != nil {
						t.Fatal(err)
					}
					l.close()
					time.Sleep(2 * time.Second)
				}
			})
		})
	}
}

// A primary that says that it is none any more is believed, though another host keeps the attempt
// from its end.
func TestDemotionBesideASilentHostIsNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, all := openHosts(t, hosts.Primary, writable, silentHost)
		ctr.Cfg.ConnectTimeout = time.Second
		time.Sleep(time.Second)
		ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
		time.Sleep(time.Second)
		all[0].ReadOnly.Store(true)
		_, err := ctr.open(t.Context(), nil, 0, noTurn)
		if ctr.isPrimary(ctr.hosts()[0]) || ctr.hosts()[0].generation.Load() == 0 {
			t.Errorf("it is still the primary: %v", err)
		}
	})
}

// A primary that hangs does not keep the pool from the one that takes over.
func TestHungPrimaryDoesNotDelayAFailover(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 3 * time.Second, 7 * time.Second, 20 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			ctr, all := openHosts(t, hosts.Primary, hung, readOnly)
			ctr.Cfg.OutageWait = time.Hour
			time.Sleep(time.Second)
			ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
			var promoted time.Time
			time.AfterFunc(after, func() { promoted = time.Now(); all[1].ReadOnly.Store(false) })
			l, err := ctr.dialAndWait(t.Context())
			if took := time.Since(promoted); err != nil || took > 1500*time.Millisecond {
				t.Errorf("%v, %s after the promotion", err, took)
			}
			l.close()
		})
	}
}

// What another host refuses does not end an outage, as long as one is silent, whether it was tried
// again or not.
func TestRefusalBesideASilentHostIsAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openHosts(t, hosts.Primary, silentHost, denies)
		for range 5 {
			_, err := ctr.open(t.Context(), nil, 0, noTurn)
			if is := ctr.shortageOf(err); is != outage.NoServer {
				t.Errorf("shortage %d, want that of a server which cannot be reached: %v", is, err)
			}
		}
	})
}

// Where two take writes, and the pool stays with one that refuses the login, the error is that
// refusal, which no waiting mends. A host that nobody needed says nothing of it.
func TestRefusalOfThePrimaryBesideAnotherOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openHosts(t, hosts.Primary, denies, writable, readOnly)
		ctr.hostSet.TakesWrites(0, -1, 1, 1)
		_, err := ctr.open(t.Context(), nil, 0, noTurn)
		if is := ctr.shortageOf(err); is != outage.None || !strings.Contains(err.Error(), "Access denied") || strings.Contains(err.Error(), "not tried again") {
			t.Errorf("shortage %d: %v", is, err)
		}
	})
}

// A replica that cannot be used is told by what it lacks, and not as no primary.
func TestErrorOfAPoolThatPrefersReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, all := openHosts(t, hosts.PreferReplica, down, readOnly)
		ctr.Cfg.MaxLag = time.Second
		stopped := ""
		all[1].Lag.Store(&stopped)
		if _, err := ctr.open(t.Context(), nil, 0, noTurn); err == nil || !strings.Contains(err.Error(), "b:3306): its replication has stopped") {
			t.Errorf("%v", err)
		}
	})
}

// A host that answers on the connections that it has is not left because it takes no new ones for
// a moment.
func TestHostThatRepliesIsNotSilent(t *testing.T) {
	for _, target := range []hosts.Target{hosts.Any, hosts.Replica} {
		synctest.Test(t, func(t *testing.T) {
			ctr, _ := openHosts(t, target, silentHost, readOnly)
			waiting, other := addThread(ctr, 0, 7), addThread(ctr, 0, 7)
			m := &maintainer{ctr: ctr}
			run := func(d time.Duration) {
				for end := time.Now().Add(d); time.Now().Before(end); {
					time.Sleep(m.findSilence(ctr.snapshot()))
				}
			}
			time.AfterFunc(590*time.Millisecond, func() { other.Reads.Add(2); other.Replies.Add(1) }) // during the first check
			if run(time.Second); waiting.AbortErr.Load() != nil {
				t.Errorf("target %d: left", target)
			}
			if run(time.Second); waiting.AbortErr.Load() == nil {
				t.Errorf("target %d: not left, though that was its last word", target)
			}
		})
	}
}

// What the kernel has taken of a statement is no reply.
func TestALargeStatementIsNoReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openHosts(t, hosts.Primary, silentHost, writable)
		ctr.hostSet.TakesWrites(0, -1, 1, 1)
		waiting, others := addThread(ctr, 0, 7), []*proclist.Thread{}
		for range 10 {
			near, far := net.Pipe()
			go io.Copy(io.Discard, far)
			w := &proclist.Thread{Conn: wire.Wrap(near)}
			ctr.register(&conn{ctr: ctr}).currentThread.Store(w)
			others = append(others, w)
		}
		start := time.Now()
		for i, w := range others {
			time.AfterFunc(time.Duration(i)*300*time.Millisecond, func() { _, _ = w.Write(make([]byte, 9000)) })
		}
		m := &maintainer{ctr: ctr}
		for waiting.AbortErr.Load() == nil && time.Since(start) < time.Minute {
			time.Sleep(m.findSilence(ctr.snapshot()))
		}
		if took := time.Since(start); took > 1300*time.Millisecond {
			t.Errorf("left after %s", took)
		}
		time.Sleep(10 * time.Second)
		for _, w := range others {
			w.Conn.Close()
		}
	})
}

// However many others are silent too, the one that can serve is found.
func TestSilentHostAmongManyIsLeft(t *testing.T) {
	for silent := range 7 {
		synctest.Test(t, func(t *testing.T) {
			all := []fakeHost{silentHost}
			for range silent {
				all = append(all, silentHost)
			}
			ctr, _ := openHosts(t, hosts.Primary, append(all, writable)...)
			ctr.hostSet.TakesWrites(0, -1, 1, 1)
			waiting, m, start := addThread(ctr, 0, 7), &maintainer{ctr: ctr}, time.Now()
			for waiting.AbortErr.Load() == nil && time.Since(start) < time.Minute {
				time.Sleep(m.findSilence(ctr.snapshot()))
			}
			if took := time.Since(start); took > 1200*time.Millisecond {
				t.Errorf("with %d others that are silent: left after %s", silent, took)
			}
		})
	}
}

// All others are asked in place of a silent host, those too that said nothing a moment ago.
func TestSilentHostIsLeftForOneThatHasComeBack(t *testing.T) {
	for _, target := range []hosts.Target{hosts.Primary, hosts.Replica, hosts.Any} {
		synctest.Test(t, func(t *testing.T) {
			other := readOnly
			if target == hosts.Primary {
				other = writable
			}
			ctr, _ := openHosts(t, target, silentHost, other)
			ctr.hostSet.TakesWrites(0, -1, 1, 1)
			for range 3 {
				time.Sleep(8 * time.Second)
				ctr.hostSet.Silent(1, ctr.clock.Now())
			}
			waiting := addThread(ctr, 0, 7)
			m := &maintainer{ctr: ctr}
			start := time.Now()
			for waiting.AbortErr.Load() == nil && time.Since(start) < time.Minute {
				time.Sleep(m.findSilence(ctr.snapshot()))
			}
			if took := time.Since(start); took > 1200*time.Millisecond {
				t.Errorf("target %d: left after %s", target, took)
			}
		})
	}
}

// However long a check takes, there is one at a time.
func TestAHostIsAskedOnceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, all := openHosts(t, hosts.Primary, slowHost(3*time.Second), readOnly)
		ctr.hosts()[0].noteLogin(3 * time.Second)
		addThread(ctr, 0, 7)
		m := &maintainer{ctr: ctr}
		for start := time.Now(); time.Since(start) < 2500*time.Millisecond; {
			wait := m.findSilence(ctr.snapshot())
			if wait == clock.Never {
				t.Fatal("nothing is looked for")
			}
			time.Sleep(wait)
		}
		if n := all[0].Connects.Load(); n != 1 {
			t.Errorf("%d logins, want one", n)
		}
	})
}
