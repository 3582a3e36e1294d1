package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
)

// fakeHost is a host, by what it does to a login.
type fakeHost func() *fakedb.Host

func hostThat(connect func(ctx context.Context) error) fakeHost {
	return func() *fakedb.Host {
		h := &fakedb.Host{}
		h.OnConnect = func(ctx context.Context, _ int64) error { return connect(ctx) }
		return h
	}
}

var (
	writable fakeHost = func() *fakedb.Host { return &fakedb.Host{} }
	readOnly fakeHost = func() *fakedb.Host {
		h := &fakedb.Host{}
		h.ReadOnly.Store(true)
		return h
	}
	silentHost = hostThat(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	down       = hostThat(func(context.Context) error { return syscall.ECONNREFUSED })
	full       = hostThat(func(context.Context) error { return fakedb.ServerError(1040, "Too many connections") })
	denies     = hostThat(func(context.Context) error { return fakedb.ServerError(1045, "Access denied for user 'app'") })
	starting   = hostThat(func(context.Context) error { return fakedb.ServerError(1053, "Server shutdown in progress") })
	joining    = hostThat(func(context.Context) error { return fakedb.ServerError(1047, "WSREP has not yet prepared node") })
	noPlugin   = hostThat(func(context.Context) error { return mysql.ErrOldPassword })
)

// openHosts makes a connector on hosts, each with the address of its letter.
func openHosts(t *testing.T, target hosts.Target, makeHosts ...fakeHost) (*Connector, []*fakedb.Host) {
	t.Helper()
	cfg := defaults()
	cfg.MySQL = &mysql.Config{User: "app", Passwd: "s3cret", DBName: "shop"}
	cfg.Target = target
	var all []*fakedb.Host
	for i, makeHost := range makeHosts {
		cfg.Addrs = append(cfg.Addrs, string(rune('a'+i))+":3306")
		all = append(all, makeHost())
	}
	cfg.AsksRole = len(all) > 1
	cfg.Wrap = fakedb.Wrap(all...)
	ctr, err := New(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctr.Close() })
	return ctr, all
}

// A pool connects to a host whose role is the wanted one. Those with another one are asked and
// closed, and a single host of which nothing is wanted is not asked at all.
func TestPoolConnectsToAHostOfTheRole(t *testing.T) {
	for _, tt := range []struct {
		name   string
		target hosts.Target
		hosts  []fakeHost
		want   []int // one of them; none: an error
		asks   bool
	}{
		{"one host, as before", hosts.Primary, []fakeHost{readOnly}, []int{0}, false},
		{"one host, to be a replica", hosts.Replica, []fakeHost{readOnly}, []int{0}, true},
		{"one host, to be a replica, and is none", hosts.Replica, []fakeHost{writable}, nil, true},
		{"the first takes writes", hosts.Primary, []fakeHost{writable, readOnly}, []int{0}, true},
		{"the last does", hosts.Primary, []fakeHost{readOnly, readOnly, writable}, []int{2}, true},
		{"none does", hosts.Primary, []fakeHost{readOnly, readOnly}, nil, true},
		{"the first is down", hosts.Primary, []fakeHost{down, writable}, []int{1}, true},
		{"the first is silent", hosts.Primary, []fakeHost{silentHost, writable}, []int{1}, true},
		{"a replica", hosts.Replica, []fakeHost{writable, readOnly, readOnly}, []int{1, 2}, true},
		{"no replica", hosts.Replica, []fakeHost{writable, down}, nil, true},
		{"preferably a replica", hosts.PreferReplica, []fakeHost{writable, readOnly}, []int{1}, true},
		{"preferably, and there is none", hosts.PreferReplica, []fakeHost{down, writable, silentHost}, []int{1}, true},
		{"any", hosts.Any, []fakeHost{writable, readOnly, down}, []int{0, 1}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 10 { // the first that is tried may be a random one
				synctest.Test(t, func(t *testing.T) {
					ctr, all := openHosts(t, tt.target, tt.hosts...)
					l, err := ctr.dialOnce(t.Context())
					synctest.Wait()
					if tt.want == nil != (err != nil) || err == nil && !slices.Contains(tt.want, l.host.index) {
						t.Fatalf("connected to %+v, %v, want one of %d", l.host, err, tt.want)
					}
					asked, open := int64(0), 0
					for _, h := range all {
						asked, open = asked+h.Asked.Load(), open+h.OpenConns()
					}
					if asked > 0 != tt.asks || open != min(1, len(tt.want)) {
						t.Errorf("%d were asked for their roles, want any: %v; and %d connections are left open", asked, tt.asks, open)
					}
					l.close()
				})
			}
		})
	}
}

// The error of all hosts says of each what it said, and never the password. What it is follows
// the failure that is nearest to a connection: one that is full will have room, one with
// another role may be promoted, and one that says nothing may be gone.
func TestErrorOfAllHosts(t *testing.T) {
	const takesNone, takesSome = "it takes no writes (read_only)", "it takes writes (read_only is off), and a replica is wanted (pool_target)"
	for _, tt := range []struct {
		name   string
		target hosts.Target
		hosts  []fakeHost
		is     outage.Shortage
		says   []string // of each host
		number uint16   // of the cause
	}{
		{"all are down", hosts.Primary, []fakeHost{down, down}, outage.NoServer, []string{"connection refused", "connection refused"}, 0},
		{"all are silent", hosts.Primary, []fakeHost{silentHost, silentHost}, outage.NoServer, []string{"no answer", "no answer"}, 0},
		{"all of many are silent", hosts.Primary, []fakeHost{silentHost, silentHost, silentHost, silentHost}, outage.NoServer, []string{"no answer", "no answer", "no answer", "no answer"}, 0},
		{"all are silent, and replicas preferred", hosts.PreferReplica, []fakeHost{silentHost, silentHost}, outage.NoServer, []string{"no answer", "no answer"}, 0},
		{"one is read-only", hosts.Primary, []fakeHost{down, readOnly, silentHost}, outage.NoPrimary, []string{"connection refused", takesNone, "no answer"}, 0},
		{"one is full", hosts.Primary, []fakeHost{down, full, readOnly}, outage.NoRoom, []string{"connection refused", "Too many connections", takesNone}, 1040},
		{"the order does not matter", hosts.Primary, []fakeHost{full, readOnly, down}, outage.NoRoom, []string{"Too many connections", takesNone, "connection refused"}, 1040},
		{"one is shutting down", hosts.Primary, []fakeHost{starting, down}, outage.NoServer, []string{"Server shutdown in progress", "connection refused"}, 1053},
		{"one does no work", hosts.Primary, []fakeHost{joining, denies}, outage.NoServer, []string{"WSREP has not yet", "Access denied"}, 1047},
		{"one denies access", hosts.Primary, []fakeHost{denies, silentHost}, outage.NoServer, []string{"Access denied", "no answer"}, 0},
		{"all deny access, which no waiting mends", hosts.Primary, []fakeHost{denies, denies}, outage.None, []string{"Access denied", "Access denied"}, 1045},
		{"a login that cannot be", hosts.Primary, []fakeHost{noPlugin, denies}, outage.None, []string{"old", "Access denied"}, 0},
		{"no replica", hosts.Replica, []fakeHost{writable, writable}, outage.NoReplica, []string{takesSome, takesSome}, 0},
		{"no replica, as far as they answer", hosts.Replica, []fakeHost{writable, down}, outage.NoReplica, []string{takesSome, "connection refused"}, 0},
		{"no replica has room", hosts.Replica, []fakeHost{writable, full}, outage.NoRoom, []string{takesSome, "Too many connections"}, 1040},
		{"a single one, and no replica", hosts.Replica, []fakeHost{writable}, outage.NoReplica, []string{takesSome}, 0},
		{"neither", hosts.PreferReplica, []fakeHost{down, full}, outage.NoRoom, []string{"connection refused", "Too many connections"}, 1040},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, _ := openHosts(t, tt.target, tt.hosts...)
				began := time.Now()
				_, err := ctr.connect(t.Context())
				if err == nil {
					t.Fatal("no error")
				}
				if is := ctr.shortageOf(err); is != tt.is || errors.Is(err, mysqlerr.ErrUnreachable) != (tt.is != outage.None) {
					t.Errorf("shortage %d, want %d: %v", is, tt.is, err)
				}
				for i, said := range tt.says {
					_, ofHost, _ := strings.Cut(err.Error(), string(rune('a'+i))+":3306): ")
					if ofHost, _, _ = strings.Cut(ofHost, "; "); !strings.Contains(ofHost, said) {
						t.Errorf("%q does not say of host %d: %s", err, i, said)
					}
				}
				said := strings.Contains(err.Error(), fmt.Sprintf("none of %d hosts", len(tt.hosts)))
				if said != (len(tt.hosts) > 1) || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("%q, want how many hosts there are, if there are several, and no password", err)
				}
				if number := mysqlerr.Number(err); number != tt.number {
					t.Errorf("it is error %d, want %d", number, tt.number)
				}
				if took := time.Since(began); took >= ctr.Cfg.ConnectTimeout {
					t.Errorf("it took %s, and says so in place of what the hosts say", took)
				}
			})
		})
	}
}

// A host that says nothing is left out of the next attempts, one that answers is not, whatever
// it says.
func TestOnlySilentHostsAreLeftOut(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first fakeHost
		left  bool
	}{
		{"silent", silentHost, true},
		{"down", down, false},
		{"full", full, false},
		{"read-only", readOnly, false},
		{"denies access", denies, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openHosts(t, hosts.Primary, tt.first, writable)
				l, err := ctr.dialOnce(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				l.close()
				synctest.Wait()
				if order := ctr.hostSet.Order(ctr.clock.Now()); slices.Contains(order, 0) == tt.left {
					t.Errorf("%v are tried next, want the first left out: %v", order, tt.left)
				}
				if n := all[0].Connects.Load(); n != 1 {
					t.Errorf("the first was tried %d times", n)
				}
			})
		})
	}
}

// A host that is left out is named all the same: nobody is to look for it in vain.
func TestHostThatIsLeftOutIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openHosts(t, hosts.Primary, silentHost, readOnly)
		for range 2 { // at once, as the prober does
			_, err := ctr.open(t.Context(), nil, 0, noTurn)
			for _, part := range []string{"none of 2 hosts", "a:3306): no answer", "b:3306): it takes no writes"} {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%v, want %s in it", err, part)
				}
			}
			if is := ctr.shortageOf(err); is != outage.NoPrimary {
				t.Errorf("shortage %d, want that of the host that answers", is)
			}
		}
	})
}

// An attempt that ends with its caller has waited for nobody long enough to know anything of a
// host.
func TestCallerThatGivesUpSaysNothingOfHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openHosts(t, hosts.Primary, silentHost, silentHost)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := ctr.open(ctx, nil, 0, noTurn); err == nil {
			t.Fatal("no error")
		}
		synctest.Wait()
		ctr.hostSet.Answered(1) // where all are silent none is left out
		if order := ctr.hostSet.Order(ctr.clock.Now()); !slices.Equal(order, []int{0, 1}) || ctr.Outage.IsDown() {
			t.Errorf("%v are tried next, and there is an outage: %v; want both, and none", order, ctr.Outage.IsDown())
		}
	})
}

// Before a free key on another server is believed, the last unit must be there that the server
// of the COMMIT had acknowledged.
func TestWitnessOfALostCommit(t *testing.T) {
	for _, tt := range []struct {
		name       string
		sentTo, on string
		inCluster  bool
		key        string
		needed     bool
	}{
		{"the same server", "a", "a", false, "", false},
		{"another one", "a", "b", false, "second", true},
		{"another one, and nothing was acknowledged before", "b", "a", false, "", true},
		{"another one than one that is not known any more", "c", "a", false, "", true},
		{"a single server that does not say who it is", "a", "", false, "", false},
		{"the pool has left it and come back", "d", "a", false, "", true},
		{"so it has, and a connection was held", "e", "a", false, "", true},
		{"COMMIT was sent to one that does not", "", "b", false, "", false},
		{"one of several hosts that does not", "a:3306", "b:3306", false, "", true},
		{"nodes of a cluster", "a", "b", true, "", false},
	} {
		ctr, _ := openHosts(t, hosts.Primary, writable, writable)
		ctr.servers.add("a", &knownServer{})
		ctr.servers.add("b", &knownServer{})
		ctr.servers.add("d", &knownServer{})
		ctr.servers.add("e", &knownServer{})
		e := "e"
		ctr.register(&conn{ctr: ctr}).currentServer.Store(&e)
		ctr.noteReached("e")
		ctr.servers.noteCommit("e", "of its time")
		ctr.noteReached("a")
		ctr.noteReached("e")
		for _, server := range []string{"a", "d", "a", "a", "d"} {
			ctr.noteReached(server)
			ctr.servers.noteCommit(server, "of its time")
		}
		ctr.noteReached("a") // and so away from d
		ctr.noteReached("d")
		ctr.servers.noteCommit("a", "first")
		ctr.servers.noteCommit("a", "second")
		ctr.servers.noteCommit("unheard of", "third")
		ctr.InCluster.Store(tt.inCluster)
		if key, needed := ctr.Witness(tt.sentTo, tt.on); key != tt.key || needed != tt.needed {
			t.Errorf("%s: %q, needed %v, want %q, %v", tt.name, key, needed, tt.key, tt.needed)
		}
	}
}

// A pool that uses several servers at the same time has left none to which it is connected.
func TestWitnessOfOneOfSeveralServersInUse(t *testing.T) {
	for _, isConnected := range []bool{false, true} {
		ctr, _ := openHosts(t, hosts.Any, writable, writable)
		for _, server := range []string{"a", "b"} {
			ctr.servers.add(server, &knownServer{})
			ctr.noteReached(server)
			ctr.servers.noteCommit(server, "of "+server)
			if isConnected {
				ctr.register(&conn{ctr: ctr}).currentServer.Store(&server)
			}
		}
		ctr.noteReached("a")
		if key, _ := ctr.Witness("a", "b"); (key == "of a") != isConnected {
			t.Errorf("connected %v: %q", isConnected, key)
		}
	}
}
