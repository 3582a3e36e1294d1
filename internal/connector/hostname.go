// hostname.go is about names with several addresses, such as that of a headless Service of
// Kubernetes: behind each may be another server, so each becomes a host of its own.

package connector

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

const (
	// lookUpEvery is the time between two lookups of a name, at least.
	lookUpEvery = time.Second
	// lookUpLimit is how long a lookup may delay connections. It goes on beside them then, for
	// which what is known will do.
	lookUpLimit = 250 * time.Millisecond
	// goneAfter is for how long an address is tried that its name no longer has: a DNS server
	// may give another part of them each time.
	goneAfter = time.Minute
)

// names are the names of the hosts that livepool's own dialer resolves.
type names struct {
	mu  sync.Mutex // guards what is in them, and that hosts are added
	all []*dnsName
}

// dnsName is the name of a host. As long as it has one address it is resolved by the dialer; then
// its addresses take its place.
type dnsName struct {
	name, port string
	wants      func(netip.Addr) bool // what the network can have, as tcp4
	host       *host

	isAsked   bool                    // a lookup is under way
	askedAt   time.Duration           // when the last lookup began
	answered  chan struct{}           // closed when that has ended
	addresses map[string]*hostAddress // nil: there is one, and the dialer resolves the name
}

type hostAddress struct {
	host   *host
	seenAt time.Duration // when the name last had it
}

// init notes which hosts have names. The network is that of the driver's configuration.
func (n *names) init(network string, all []*host, addrs []string) {
	wants, isTCP := map[string]func(netip.Addr) bool{
		"tcp": netip.Addr.IsValid, "tcp4": netip.Addr.Is4, "tcp6": netip.Addr.Is6,
	}[network]
	for i, addr := range addrs {
		name, port, err := net.SplitHostPort(addr)
		if _, literal := netip.ParseAddr(name); isTCP && err == nil && literal != nil {
			n.all = append(n.all, &dnsName{name: name, port: port, wants: wants, host: all[i], askedAt: -lookUpEvery})
		}
	}
}

// resolveNames has the names looked up, all at the same time, and waits until lookUpLimit.
func (ctr *Connector) resolveNames(ctx context.Context) {
	for _, n := range ctr.names.all {
		ctr.lookUp(n)
	}
	for _, n := range ctr.names.all {
		answered, askedAt := ctr.lookUp(n)
		clock.Wait(ctx, answered, askedAt+lookUpLimit-ctr.clock.Now())
	}
}

// lookUp begins a lookup, unless one is under way or was a moment ago. It returns when the last
// one began, and what is closed when that has ended.
func (ctr *Connector) lookUp(n *dnsName) (answered <-chan struct{}, askedAt time.Duration) {
	ctr.names.mu.Lock()
	defer ctr.names.mu.Unlock()
	now := ctr.clock.Now()
	if n.isAsked || now-n.askedAt < lookUpEvery {
		return n.answered, n.askedAt
	}
	n.isAsked, n.askedAt = true, now
	done := make(chan struct{})
	n.answered = done
	ctr.spawn(func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.ConnectTimeout)
		defer cancel()
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", n.name)
		ctr.names.mu.Lock()
		defer ctr.names.mu.Unlock()
		if n.isAsked = false; err == nil { // what is known remains true otherwise
			ctr.noteAddresses(n, ips)
		}
	})
	return done, now
}

// noteAddresses has the addresses of a name take its place, once there are several.
func (ctr *Connector) noteAddresses(n *dnsName, ips []netip.Addr) {
	ips = ofOneFamily(slices.DeleteFunc(ips, func(ip netip.Addr) bool { return !n.wants(ip.Unmap()) }))
	if len(ips) < 2 && n.addresses == nil {
		return
	}
	if n.addresses == nil {
		n.addresses = map[string]*hostAddress{}
	}
	now := ctr.clock.Now()
	for _, ip := range ips {
		at := net.JoinHostPort(ip.Unmap().String(), n.port)
		if n.addresses[at] == nil {
			n.addresses[at] = &hostAddress{host: ctr.addHost(n, at)}
		}
		n.addresses[at].seenAt = now
	}
	for _, a := range n.addresses {
		ctr.hostSet.SetGone(a.host.index, now-a.seenAt > goneAfter)
	}
	ctr.hostSet.SetGone(n.host.index, true)
}

// ofOneFamily returns the addresses of the family that is preferred (RFC 6724), if that has several
// or the other has not: a server usually has one of each.
func ofOneFamily(ips []netip.Addr) []netip.Addr {
	var families [2][]netip.Addr
	for _, ip := range ips {
		other := 0
		if ip.Unmap().Is4() != ips[0].Unmap().Is4() {
			other = 1
		}
		families[other] = append(families[other], ip)
	}
	if len(families[0]) < 2 && len(families[1]) > 1 {
		return families[1]
	}
	return families[0]
}

// addHost adds the host at one of a name's addresses. ctr.names.mu is held.
func (ctr *Connector) addHost(n *dnsName, at string) *host {
	all := ctr.hosts()
	h := &host{index: len(all), addr: fmt.Sprintf("%s at %s", n.host.addr, at), at: at, named: n.host, connector: n.host.connector, side: n.host.side}
	limit := bareReapLimit
	if ctr.maintainer != nil {
		limit = poolReapLimit
	}
	ctr.initProclist(h, limit)
	all = append(slices.Clip(all), h)
	ctr.hostList.Store(&all)
	ctr.hostSet.Add()
	if ctr.maintainer != nil && ctr.watchesLag() {
		ctr.spawn(func() { ctr.watchLag(h) })
	}
	return h
}

// presentHosts are the hosts that may be tried.
func (ctr *Connector) presentHosts() []*host {
	numbers := ctr.hostSet.Others(-1, 0)
	slices.Sort(numbers)
	present, all := make([]*host, len(numbers)), ctr.hosts()
	for i, number := range numbers {
		present[i] = all[number]
	}
	return present
}
