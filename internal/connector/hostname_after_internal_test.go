package connector

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/lab/dns"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/wire"
)

// The primary stays it, as long as no other takes writes, though a DNS server that gives a part of
// the addresses each time has not given its for long.
func TestPrimaryIsTriedThoughItsNameHasLostIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
		ctr, all := openName(t, hosts.Primary, map[string]fakeHost{a: writable, b: readOnly, c: readOnly}, a, b)
		loginTo(t, ctr)
		dns.Default.Set("db.test", b, c)
		for range 5 {
			time.Sleep(goneAfter)
			if at, _ := loginTo(t, ctr); at != a+":3306" {
				t.Fatalf("connected to %s", at)
			}
		}
		if n := ctr.hosts()[1].generation.Load(); n != 0 {
			t.Errorf("its connections were retired %d times", n)
		}
		all[a+":3306"].ReadOnly.Store(true)
		all[c+":3306"].ReadOnly.Store(false)
		for range 2 {
			l, _ := ctr.open(t.Context(), nil, 0, noTurn)
			l.close()
			time.Sleep(time.Second)
		}
		asked := all[a+":3306"].Asked.Load()
		if at, _ := loginTo(t, ctr); at != c+":3306" || all[a+":3306"].Asked.Load() != asked {
			t.Errorf("connected to %s; the last primary was asked: %v", at, all[a+":3306"].Asked.Load() != asked)
		}
	})
}

// A primary that its name has lost is left for one that it has, whatever is at the old address now.
func TestPrimaryThatItsNameHasLostIsLeftForAnother(t *testing.T) {
	for name, now := range map[string]error{
		"it still takes writes": nil, "another server is there": fakedb.ServerError(1045, "Access denied"), "it is full": fakedb.ServerError(1040, "Too many connections"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
				ctr, all := openName(t, hosts.Primary, map[string]fakeHost{a: writable, b: readOnly, c: writable}, a, b)
				loginTo(t, ctr)
				all[a+":3306"].OnConnect = func(context.Context, int64) error { return now }
				if now != nil { // it is tried, too
					all[c+":3306"].OnConnect = func(context.Context, int64) error { time.Sleep(400 * time.Millisecond); return nil }
				}
				dns.Default.Set("db.test", b, c)
				for range 2 {
					if l, err := ctr.open(t.Context(), nil, 0, noTurn); err == nil {
						l.close()
					}
					time.Sleep(2 * goneAfter)
				}
				if at, _ := loginTo(t, ctr); at != c+":3306" {
					t.Errorf("connected to %s", at)
				}
				generation := ctr.hosts()[1].generation.Load()
				if at, _ := loginTo(t, ctr); at != c+":3306" || generation == 0 {
					t.Errorf("connected to %s, connections retired %d times", at, generation)
				}
			})
		})
	}
}

// Connections to replicas that their name has lost are replaced, and those that were made by the
// name, since they may lead anywhere.
func TestConnectionsToALostAddressAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
		ctr, _ := openName(t, hosts.Replica, map[string]fakeHost{"": readOnly, a: readOnly, b: readOnly, c: readOnly}, a)
		retired := func() (all []uint64) {
			for _, h := range ctr.hosts() {
				all = append(all, h.generation.Load())
			}
			return all
		}
		for _, tt := range []struct {
			listed []string
			want   []uint64 // by the name, and by its addresses
		}{
			{[]string{a}, []uint64{0}},
			{[]string{a, b}, []uint64{1, 0, 0}},
			{[]string{b, c}, []uint64{1, 1, 0, 0}},
			{[]string{a, b, c}, []uint64{1, 1, 0, 0}},
			{[]string{a}, []uint64{1, 1, 1, 1}},
		} {
			dns.Default.Set("db.test", tt.listed...)
			for range 3 {
				loginTo(t, ctr)
				time.Sleep(goneAfter)
			}
			if got := retired(); !slices.Equal(got, tt.want) {
				t.Errorf("with %q: retired %d, want %d", tt.listed, got, tt.want)
			}
		}
	})
}

// What a name leads to is nothing that the network can reach: what is known remains.
func TestAddressesOfTheOtherFamilyReplaceNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{"10.0.0.1": writable, "10.0.0.2": readOnly}, "10.0.0.1", "10.0.0.2", "fd00::1")
		ctr.names.init("tcp4", ctr.hosts(), []string{"db.test:3306"})
		ctr.names.all = ctr.names.all[1:]
		loginTo(t, ctr)
		for range 3 {
			dns.Default.Set("db.test", "fd00::1")
			time.Sleep(2 * goneAfter)
			loginTo(t, ctr)
		}
		if n := ctr.hostSet.Len(); n != 2 {
			t.Errorf("%d hosts", n)
		}
	})
}

// The driver's hooks are given the context of a login, by which they may use another pool.
func TestHookWithAPoolOfItsOwnDialsThatsAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dialed := "none"
		cfg := defaults()
		cfg.MySQL = &mysql.Config{User: "app", Addr: "10.9.9.9:3306"}
		cfg.Wrap = func(driver.Connector) driver.Connector {
			return connectFunc(func(ctx context.Context) (driver.Conn, error) {
				dialed, _ = ctx.Value(wire.AddressKey{}).(string)
				return writable().Connect(ctx)
			})
		}
		inner, err := New(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer inner.Close()
		outer := hostThat(func(ctx context.Context) error {
			l, err := inner.open(ctx, nil, 0, noTurn)
			l.close()
			return err
		})
		ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{"10.0.0.1": outer, "10.0.0.2": outer}, "10.0.0.1", "10.0.0.2")
		if loginTo(t, ctr); dialed != "" {
			t.Errorf("the pool on 10.9.9.9 dials %q", dialed)
		}
	})
}

type connectFunc func(ctx context.Context) (driver.Conn, error)

func (f connectFunc) Connect(ctx context.Context) (driver.Conn, error) { return f(ctx) }
func (f connectFunc) Driver() driver.Driver                            { return nil }

// Two addresses at which writes are taken are told, also if one came later; not if both lead to the
// same server.
func TestSecondPrimaryBehindANameIsTold(t *testing.T) {
	server := func(name string) fakeHost { return func() *fakedb.Host { return &fakedb.Host{Name: name} } }
	for _, tt := range []struct {
		name   string
		second fakeHost
		late   bool
		told   bool
	}{
		{"another one", server("second"), false, true},
		{"another one, later", server("second"), true, true},
		{"the same", server("first"), false, false},
		{"the same, later", server("first"), true, false},
		{"a replica", readOnly, true, false},
		{"the same, after AfterConnect", server("first"), true, false},
		{"another one, after AfterConnect", server("second"), true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
				ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{a: server("first"), b: tt.second, c: readOnly}, a, c)
				if strings.Contains(tt.name, "AfterConnect") {
					ctr.Cfg.AfterConnect = func(context.Context, func(string, ...any) error) error { return nil }
				}
				if !tt.late {
					dns.Default.Set("db.test", a, b)
				}
				log := serve(ctr)
				loginTo(t, ctr)
				time.Sleep(time.Minute)
				dns.Default.Set("db.test", a, b)
				loginTo(t, ctr)
				time.Sleep(time.Minute)
				ctr.Close()
				if told := strings.Contains(log.String(), "two hosts take writes"); told != tt.told {
					t.Errorf("told: %v\n%s", told, log)
				}
			})
		})
	}
}

// What looks after an address ends when the name has lost it, and begins again with it.
func TestAddressesThatComeAndGoAreNotLookedAfterForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lag := "0"
		replica := func() *fakedb.Host {
			h := readOnly()
			h.Lag.Store(&lag)
			return h
		}
		behind := map[string]fakeHost{"10.0.0.1": replica, "10.0.0.2": silentHost}
		for i := range 20 {
			behind[fmt.Sprintf("10.0.1.%d", i)] = replica
		}
		ctr, all := openName(t, hosts.Replica, behind, "10.0.0.1", "10.0.0.2")
		ctr.Cfg.MaxLag = 5 * time.Second
		serve(ctr)
		watched := func() (n int) {
			for _, h := range ctr.hosts() {
				if h.isAsked.Load() {
					n++
				}
			}
			return n
		}
		for i := range 20 {
			dns.Default.Set("db.test", "10.0.0.1", fmt.Sprintf("10.0.1.%d", i))
			loginTo(t, ctr)
			time.Sleep(2 * goneAfter)
		}
		dns.Default.Set("db.test", "10.0.0.1", "10.0.1.0")
		loginTo(t, ctr)
		time.Sleep(2 * askEvery)
		if n := watched(); n != 3 { // the last but one is kept for a while
			t.Errorf("the lag of %d hosts is watched, want 3", n)
		}
		connects := all["10.0.0.2:3306"].Connects.Load()
		time.Sleep(time.Hour)
		if n := all["10.0.0.2:3306"].Connects.Load() - connects; n != 0 {
			t.Errorf("an address that the name has lost was dialed %d times in an hour", n)
		}
		ctr.Close()
	})
}

// A silent host that another cannot take the place of is asked nothing.
func TestSingleHostIsNotAskedWhetherItIsThere(t *testing.T) {
	for _, target := range []hosts.Target{hosts.Primary, hosts.Replica, hosts.Any} {
		synctest.Test(t, func(t *testing.T) {
			h := silentHost()
			cfg := defaults()
			cfg.MySQL, cfg.Target, cfg.AsksRole = &mysql.Config{User: "app", Addr: "10.0.0.1:3306"}, target, true
			cfg.Wrap = fakedb.Wrap(h)
			ctr, err := New(nil, cfg)
			if err != nil {
				t.Fatal(err)
			}
			serve(ctr)
			addThread(ctr, 0, 7) // which waits for a reply
			for range 600 {
				ctr.maintainer.findSilence(ctr.snapshot())
				time.Sleep(silenceRound)
			}
			if n := h.Connects.Load(); n != 0 {
				t.Errorf("target %d: asked %d times", target, n)
			}
			ctr.Close()
		})
	}
}

// With all addresses known, a DNS server that says nothing costs no connection, however short
// ConnectTimeout is, nor does a name that is not resolved cost the host beside it.
func TestShortConnectTimeoutWithoutDNS(t *testing.T) {
	for _, timeout := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{"10.0.0.1": writable, "10.0.0.2": readOnly}, "10.0.0.1", "10.0.0.2")
			ctr.Cfg.ConnectTimeout = timeout
			loginTo(t, ctr)
			dns.Default.Hang(true)
			for range 10 {
				time.Sleep(time.Second)
				if _, took := loginTo(t, ctr); took > timeout/8 {
					t.Errorf("ConnectTimeout %s: connected after %s", timeout, took)
				}
			}
			dns.Default.Hang(false)
			time.Sleep(time.Minute)
		})
	}
}

func TestNameThatIsNotResolvedCostsTheOtherHostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := defaults()
		cfg.MySQL, cfg.Addrs, cfg.AsksRole = &mysql.Config{User: "app"}, []string{"10.0.0.1:3306", "gone.test:3306"}, true
		cfg.Wrap = fakedb.Wrap(writable(), silentHost())
		ctr, err := New(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer ctr.Close()
		dns.Default.Hang(true)
		for i := range 30 {
			if _, took := loginTo(t, ctr); i > 0 && took > 0 {
				t.Errorf("connection %d took %s", i, took)
			}
			time.Sleep(time.Second)
		}
		dns.Default.Hang(false)
		time.Sleep(time.Minute)
	})
}

// Nothing waits for a lookup when the pool is closed.
func TestCloseDuringALookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{"": writable}, "10.0.0.1")
		serve(ctr)
		dns.Default.Hang(true)
		loginTo(t, ctr)
		start := time.Now()
		if ctr.Close(); time.Since(start) > 0 {
			t.Errorf("Close took %s", time.Since(start))
		}
		dns.Default.Hang(false)
		time.Sleep(time.Minute)
	})
}

func TestSecondPrimaryOfALostAddressIsNotAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
		ctr, all := openName(t, hosts.Primary, map[string]fakeHost{a: writable, b: silentHost, c: readOnly}, a, b)
		serve(ctr)
		loginTo(t, ctr)
		time.Sleep(time.Second)
		dns.Default.Set("db.test", a, c)
		for range 3 {
			time.Sleep(goneAfter)
			loginTo(t, ctr)
		}
		asked := all[b+":3306"].Connects.Load()
		time.Sleep(time.Hour)
		if n := all[b+":3306"].Connects.Load() - asked; n != 0 || asked == 0 {
			t.Errorf("it was asked %d times, and %d times in the next hour", asked, n)
		}
		ctr.Close()
	})
}

// A pool that opens no connection knows new addresses, and takes none for lost: its lookups are
// too seldom for that, where a DNS server gives a part of the addresses each time.
func TestNamesAreLookedUpWithoutANewConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
		ctr, _ := openName(t, hosts.Any, map[string]fakeHost{a: writable, b: writable, c: writable}, a, b)
		serve(ctr)
		loginTo(t, ctr)
		dns.Default.Set("db.test", b, c)
		present := func() (all []string) {
			for _, h := range ctr.presentHosts() {
				all = append(all, strings.TrimSuffix(h.at, ":3306"))
			}
			return all
		}
		lookUpFor := func(d time.Duration) {
			for end := ctr.clock.Now() + d; ctr.clock.Now() < end; time.Sleep(goneAfter / 10) {
				ctr.maintainer.round()
			}
			synctest.Wait()
		}
		check := func(when string, retired uint64, want ...string) {
			t.Helper()
			if got, n := present(), ctr.hosts()[1].generation.Load(); !slices.Equal(got, want) || n != retired {
				t.Errorf("%s the hosts are %q, want %q; the connections to the first were retired %d times", when, got, want, n)
			}
		}
		lookUpFor(5 * goneAfter)
		check("without a login", 0, a, b, c)
		time.Sleep(2 * lookUpEvery)
		loginTo(t, ctr)
		lookUpFor(5 * goneAfter)
		check("after one login", 0, a, b, c)
		time.Sleep(2 * lookUpEvery)
		loginTo(t, ctr)
		synctest.Wait()
		check("after another one", 1, b, c)
		ctr.Close()
	})
}

// Once a name has several addresses it leads to any of them: by it the primary that was found by the
// name is asked nothing.
func TestPrimaryOfANameThatHasSeveralIsNotAskedByTheName(t *testing.T) {
	for _, looksFirst := range []bool{true, false} { // for a second primary, before the name leads to a replica
		synctest.Test(t, func(t *testing.T) {
			const a, b = "10.0.0.1", "10.0.0.2"
			ctr, all := openName(t, hosts.Primary, map[string]fakeHost{"": writable, a: writable, b: readOnly}, a)
			log := serve(ctr)
			loginTo(t, ctr)
			addThread(ctr, 0, 8) // in use, as by a long transaction
			ctr.startAsking(ctr.hosts()[0])
			time.Sleep(5 * time.Second)
			dns.Default.Set("db.test", b, a)
			ctr.lookUpNames(lookUpEvery)
			if looksFirst {
				time.Sleep(10 * time.Second)
			} else {
				time.Sleep(100 * time.Millisecond)
			}
			all[""].ReadOnly.Store(true)
			ctr.retire(ctr.hosts()[0])
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if _, known := ctr.hostSet.Primary(); !known {
				t.Errorf("demoted, though %s takes writes as ever:\n%s", a, log)
			}
			ctr.Close()
		})
	}
}
