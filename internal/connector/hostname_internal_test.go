package connector

import (
	"context"
	"database/sql/driver"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/lab/dns"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/wire"
)

// byAddress are the servers behind names, by their addresses; at "" is what is reached by the name itself.
type byAddress map[string]*fakedb.Host

func (s byAddress) Driver() driver.Driver { return nil }

func (s byAddress) Connect(ctx context.Context) (driver.Conn, error) {
	at, _ := ctx.Value(wire.AddressKey{}).(string)
	if s[at] == nil {
		panic("nothing is to be at address " + at)
	}
	return s[at].Connect(ctx)
}

// openName makes a connector on a name that leads to these servers.
func openName(t *testing.T, target hosts.Target, behind map[string]fakeHost, listed ...string) (*Connector, byAddress) {
	t.Helper()
	all := byAddress{}
	for ip, makeHost := range behind {
		at := ip
		if ip != "" {
			at = net.JoinHostPort(ip, "3306")
		}
		all[at] = makeHost()
	}
	dns.Default.Set("db.test", listed...)
	cfg := defaults()
	cfg.MySQL = &mysql.Config{User: "app", Passwd: "s3cret", DBName: "shop"}
	cfg.Target, cfg.Addrs, cfg.AsksRole = target, []string{"db.test:3306"}, true
	cfg.Wrap = func(driver.Connector) driver.Connector { return all }
	ctr, err := New(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctr.Close(); dns.Default.Set("db.test") })
	return ctr, all
}

// loginTo connects, and says to which address.
func loginTo(t *testing.T, ctr *Connector) (at string, took time.Duration) {
	t.Helper()
	start := time.Now()
	l, err := ctr.open(t.Context(), nil, 0, noTurn)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	return l.host.at, time.Since(start)
}

// Behind each address of a name may be another server: it is tried like a host. A server with an
// address of each family is one.
func TestEachAddressOfANameIsAHost(t *testing.T) {
	const a, b, c, six, seven = "10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::6", "fd00::7"
	at := func(ips ...string) (all []string) {
		for _, ip := range ips {
			all = append(all, net.JoinHostPort(ip, "3306"))
		}
		return all
	}
	for _, tt := range []struct {
		name   string
		target hosts.Target
		behind map[string]fakeHost
		listed []string
		want   []string // each of which is used
		within time.Duration
	}{
		{"the second is the primary", hosts.Primary, map[string]fakeHost{a: readOnly, b: writable}, []string{a, b}, at(b), 0},
		{"the first is silent", hosts.Primary, map[string]fakeHost{a: silentHost, b: writable}, []string{a, b}, at(b), 250 * time.Millisecond},
		{"the first is down", hosts.Primary, map[string]fakeHost{a: down, b: readOnly, c: writable}, []string{a, b, c}, at(c), 0},
		{"replicas", hosts.Replica, map[string]fakeHost{a: readOnly, b: writable, c: readOnly}, []string{a, b, c}, at(a, c), 0},
		{"any", hosts.Any, map[string]fakeHost{a: readOnly, b: writable}, []string{a, b}, at(a, b), 0},
		{"of the other family", hosts.Primary, map[string]fakeHost{six: readOnly, seven: writable}, []string{six, seven}, at(seven), 0},
		{"one server with two addresses", hosts.Primary, map[string]fakeHost{"": writable}, []string{a, six}, []string{""}, 0},
		{"two servers with two addresses each, of which one family leads there", hosts.Primary,
			map[string]fakeHost{a: down, b: down, six: readOnly, seven: writable}, []string{a, b, six, seven}, at(seven), 0},
		{"one address", hosts.Primary, map[string]fakeHost{"": writable}, []string{a}, []string{""}, 0},
		{"one address, listed twice", hosts.Primary, map[string]fakeHost{"": writable}, []string{a, "::ffff:" + a, a}, []string{""}, 0},
		{"none", hosts.Primary, map[string]fakeHost{"": writable}, nil, []string{""}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openName(t, tt.target, tt.behind, tt.listed...)
				log := &strings.Builder{}
				ctr.Cfg.Log = slog.New(slog.NewTextHandler(log, nil))
				used := map[string]bool{}
				for i := range 40 {
					at, took := loginTo(t, ctr)
					if used[at] = true; took > tt.within || i > 0 && tt.target == hosts.Primary && took > 0 {
						t.Errorf("connection %d took %s", i, took)
					}
				}
				if got := slices.Sorted(maps.Keys(used)); !slices.Equal(got, tt.want) {
					t.Errorf("connected to %q, want each of %q", got, tt.want)
				}
				synctest.Wait()
				if strings.Contains(log.String(), "panic") {
					t.Error(log)
				}
				for at, h := range all {
					if n := h.OpenConns(); n != 0 {
						t.Errorf("%d connections to %q are left open", n, at)
					}
				}
			})
		})
	}
}

func TestSeveralAddressesAreOfOneFamily(t *testing.T) {
	for listed, want := range map[string]bool{
		"":                                 false,
		"10.0.0.1":                         false,
		"10.0.0.1 fd00::1":                 false,
		"10.0.0.1 10.0.0.2":                true,
		"fd00::1 fd00::2":                  true,
		"fd00::1 10.0.0.1 fd00::2":         true,
		"::ffff:10.0.0.1 10.0.0.2 fd00::1": true,
	} {
		var ips []netip.Addr
		for ip := range strings.FieldsSeq(listed) {
			ips = append(ips, netip.MustParseAddr(ip))
		}
		if hasSeveral(ips) != want {
			t.Errorf("%q: %v", listed, !want)
		}
	}
}

// What a name leads to is looked up again, without a restart: a new address is used by the next
// connection, and one that the name has lost is left after a while.
func TestAddressesOfANameThatChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
		ctr, all := openName(t, hosts.Primary, map[string]fakeHost{"": writable, a: writable, b: readOnly, c: readOnly}, a)
		var told strings.Builder
		ctr.Cfg.Log = slog.New(slog.NewTextHandler(&told, nil))
		expect := func(ip string) {
			t.Helper()
			for range 2 { // the first may find that the primary is none, or that the name has several addresses
				time.Sleep(2 * time.Second)
				if l, err := ctr.open(t.Context(), nil, 0, noTurn); err == nil {
					l.close()
				}
			}
			time.Sleep(2 * time.Second)
			if at, _ := loginTo(t, ctr); at != ip && at != net.JoinHostPort(ip, "3306") {
				t.Fatalf("connected to %q, want %q", at, ip)
			}
		}
		expect("")
		dns.Default.Set("db.test", a, b) // as a Service that grows
		if expect(a); told.Len() > 0 {
			t.Errorf("told:\n%s", &told)
		}
		all[a+":3306"].ReadOnly.Store(true)
		all[c+":3306"].ReadOnly.Store(false)
		dns.Default.Set("db.test", b, c)
		expect(c)
		asked := all[a+":3306"].Asked.Load()
		time.Sleep(2 * goneAfter)
		ctr.hostSet.Demoted(3, ctr.clock.Now(), ctr.clock.Now())
		expect(c)
		if n := all[a+":3306"].Asked.Load(); n != asked {
			t.Errorf("an address that the name has lost was tried %d times", n-asked)
		}
		dns.Default.Set("db.test", c)
		expect(c)
		dns.Default.Set("db.test") // the DNS server knows nothing for a while
		for range 3 {
			expect(c)
			time.Sleep(goneAfter)
		}
	})
}

// A DNS server may give another part of a name's addresses each time: the pool does not go from one
// to the other, and a replica is not lost to it.
func TestAddressIsKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a, b, c, d = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
		ctr, _ := openName(t, hosts.Replica, map[string]fakeHost{a: readOnly, b: writable, c: writable, d: writable}, a, b)
		for i := range 19 {
			dns.Default.Set("db.test", [][]string{{a, b}, {c, d}}[i%2]...)
			if at, _ := loginTo(t, ctr); at != a+":3306" {
				t.Fatalf("connected to %s", at)
			}
			time.Sleep([]time.Duration{2 * time.Second, 2 * goneAfter}[i/18]) // at last nobody connects for a while
		}
		dns.Default.Set("db.test", c, d)
		if at, _ := loginTo(t, ctr); at != a+":3306" {
			t.Errorf("connected to %s", at)
		}
	})
}

func TestNamesAreLookedUpOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{"": writable}, "10.0.0.1")
		asked := dns.Default.Asked.Load()
		for range 35 {
			loginTo(t, ctr)
			time.Sleep(100 * time.Millisecond)
		}
		if n := dns.Default.Asked.Load() - asked; n != 4 {
			t.Errorf("looked up %d times in 3.5 s, want 4", n)
		}
	})
}

// What livepool's dialer does not dial is not looked up either.
func TestOnlyNamesThatLivepoolDialsAreLookedUp(t *testing.T) {
	dns.Default.Set("db.test", "10.0.0.1", "10.0.0.2")
	defer dns.Default.Set("db.test")
	for _, tt := range []struct {
		network, addr string
		dial          func(context.Context, string, string) (net.Conn, error)
		names         int
	}{
		{"", "db.test:3306", nil, 1},
		{"tcp", "db.test:3306", nil, 1},
		{"tcp6", "db.test:3306", nil, 1},
		{"tcp", "db.test", nil, 1},
		{"tcp", "db.test:3306", (&net.Dialer{}).DialContext, 0},
		{"tcp", "10.0.0.1:3306", nil, 0},
		{"tcp", "[fe80::1%eth0]:3306", nil, 0},
		{"unix", "/run/mysqld.sock", nil, 0},
	} {
		cfg := defaults()
		cfg.MySQL = &mysql.Config{User: "app", Net: tt.network, DialFunc: tt.dial}
		cfg.Addrs, cfg.AsksRole = []string{tt.addr}, true
		ctr, err := New(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(ctr.names.all); n != tt.names {
			t.Errorf("%s(%s), with a dialer: %v: %d names, want %d", tt.network, tt.addr, tt.dial != nil, n, tt.names)
		}
		ctr.Close()
	}
}

// A name that leads elsewhere, while nobody has connected for long, leads there with the first that
// connects.
func TestAddressesOfANameThatHaveAllChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var isGone atomic.Bool
		primary := hostThat(func(ctx context.Context) error {
			if isGone.Load() {
				<-ctx.Done()
			}
			return ctx.Err()
		})
		ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{"10.0.0.1": silentHost, "10.0.0.2": primary, "10.0.0.3": writable, "10.0.0.4": readOnly}, "10.0.0.1", "10.0.0.2")
		loginTo(t, ctr)
		time.Sleep(time.Hour)
		isGone.Store(true)
		dns.Default.Set("db.test", "10.0.0.4", "10.0.0.3")
		if at, took := loginTo(t, ctr); at != "10.0.0.3:3306" || took > 2*time.Second { // the first is waited for: it was the primary
			t.Errorf("connected to %s after %s", at, took)
		}
	})
}

// A DNS server that says nothing delays connections a little, and not again while it is waited for.
func TestNameThatIsNotResolvedDelaysLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{"": writable}, "10.0.0.1", "10.0.0.2")
		dns.Default.Hang(true)
		defer dns.Default.Hang(false)
		for i, want := range []time.Duration{lookUpLimit, 0, 0} {
			if _, took := loginTo(t, ctr); took != want {
				t.Errorf("connection %d took %s, want %s", i, took, want)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute) // the resolver of the package net goes on for as long as it likes
	})
}

// The errors of a name's servers say which address said what.
func TestErrorOfANameHasItsAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, _ := openName(t, hosts.Primary, map[string]fakeHost{"10.0.0.1": down, "10.0.0.2": readOnly}, "10.0.0.1", "10.0.0.2")
		_, err := ctr.dialOnce(t.Context())
		for _, want := range []string{"none of 2 hosts", "tcp(db.test:3306) at 10.0.0.1:3306: connection refused", "tcp(db.test:3306) at 10.0.0.2:3306: it takes no writes"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
	})
}
