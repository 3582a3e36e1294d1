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
	// lookUpAnyway is the time after which one is made for a pool that opens no connection.
	lookUpAnyway = 10 * time.Second
	// lookUpLimit is how long a lookup may delay connections, if ConnectTimeout is not short. It
	// goes on beside them then, for which what is known will do.
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
	isKnown   bool                    // one has ended
	askedAt   time.Duration           // when the last lookup began
	answered  chan struct{}           // closed when that has ended
	addresses map[string]*hostAddress // nil: there is one, and the dialer resolves the name
}

type hostAddress struct {
	host         *host
	missingSince time.Duration // the first lookup without it; -1: the last one had it
}

// init notes which hosts have names. The network is that of the driver's configuration.
func (n *names) init(network string, all []*host, addrs []string) {
	wants, isTCP := map[string]func(netip.Addr) bool{
		"tcp": netip.Addr.IsValid, "tcp4": netip.Addr.Is4, "tcp6": netip.Addr.Is6,
	}[network]
	for i, addr := range addrs {
		name, port, err := net.SplitHostPort(addr)
		if err != nil {
			name, port = addr, "3306"
		}
		if _, literal := netip.ParseAddr(name); isTCP && name != "" && literal != nil {
			n.all = append(n.all, &dnsName{name: name, port: port, wants: wants, host: all[i], askedAt: -lookUpEvery})
		}
	}
}

// resolveNames has the names looked up, all at the same time, and waits for those that have several
// addresses, or may have. A name with one is looked up by the dialer, too.
func (ctr *Connector) resolveNames(ctx context.Context) {
	ctr.lookUpNames(lookUpEvery)
	for _, n := range ctr.names.all {
		answered, wait := ctr.lookUp(n, lookUpEvery)
		clock.Wait(ctx, answered, wait)
	}
}

// lookUpNames has the names looked up whose last lookup is longer ago.
func (ctr *Connector) lookUpNames(after time.Duration) {
	for _, n := range ctr.names.all {
		ctr.lookUp(n, after)
	}
}

// lookUp begins a lookup, unless one is under way or the last is not that long ago. It returns for
// how long a connection is to wait for it, and what is closed when it has ended.
func (ctr *Connector) lookUp(n *dnsName, after time.Duration) (answered <-chan struct{}, wait time.Duration) {
	ctr.names.mu.Lock()
	defer ctr.names.mu.Unlock()
	now := ctr.clock.Now()
	if !n.isAsked && now-n.askedAt >= after {
		n.isAsked, n.askedAt, n.answered = true, now, make(chan struct{})
		ctr.startLookUp(n, n.answered, after == lookUpEvery)
	}
	if n.isKnown && n.addresses == nil {
		return nil, 0
	}
	return n.answered, n.askedAt + min(lookUpLimit, ctr.Cfg.ConnectTimeout/8) - now
}

// startLookUp looks a name up in the background. Only for a login does an address count as missing
// that it does not have: the other lookups are too seldom, where a DNS server gives a part of them.
func (ctr *Connector) startLookUp(n *dnsName, done chan struct{}, forLogin bool) {
	ctr.spawn(func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.ConnectTimeout)
		defer cancel()
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", n.name)
		ctr.names.mu.Lock()
		defer ctr.names.mu.Unlock()
		n.isAsked, n.isKnown = false, true
		if err == nil { // what is known remains true otherwise
			ctr.noteAddresses(n, ips, forLogin)
		}
	})
}

// noteAddresses has the addresses of a name take its place, once there are several. A server
// usually has one of each family: then the dialer chooses.
func (ctr *Connector) noteAddresses(n *dnsName, ips []netip.Addr, mayLose bool) {
	var wanted []netip.Addr // each once
	for _, ip := range ips {
		if ip = ip.Unmap(); n.wants(ip) && !slices.Contains(wanted, ip) {
			wanted = append(wanted, ip)
		}
	}
	if n.addresses == nil && !hasSeveral(wanted) || len(wanted) == 0 {
		return
	}
	if n.addresses == nil {
		n.addresses = map[string]*hostAddress{}
	}
	now := ctr.clock.Now()
	for _, a := range n.addresses {
		if mayLose && a.missingSince < 0 {
			a.missingSince = now
		}
	}
	for _, ip := range wanted {
		at := net.JoinHostPort(ip.String(), n.port)
		if n.addresses[at] == nil {
			n.addresses[at] = &hostAddress{host: ctr.addHost(n, at)}
		}
		n.addresses[at].missingSince = -1
	}
	for _, a := range n.addresses {
		isGone := a.missingSince >= 0 && now-a.missingSince > goneAfter
		if isGone && !mayLose {
			continue
		}
		if ctr.hostSet.SetGone(a.host.index, isGone) {
			ctr.retireLost(a.host)
		}
		if !isGone {
			ctr.startAsking(a.host)
		}
	}
	if ctr.hostSet.Remove(n.host.index) {
		ctr.retireLost(n.host)
	}
}

// retireLost has the connections to a host replaced which its name no longer leads to. Those to the
// primary are, when another host takes writes.
func (ctr *Connector) retireLost(h *host) {
	if !ctr.isPrimary(h) {
		ctr.retire(h)
	}
}

// hasSeveral says whether there are several addresses of one family.
func hasSeveral(ips []netip.Addr) bool {
	v4 := 0
	for _, ip := range ips {
		if ip.Is4() {
			v4++
		}
	}
	return v4 > 1 || len(ips)-v4 > 1
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
	if i, known := ctr.hostSet.Primary(); known && ctr.maintainer != nil && ctr.followsPrimary() {
		ctr.spawn(func() { ctr.watchHost(h, all[i]) })
	}
	return h
}

// isNameOfSeveral says whether a host is a name whose addresses have taken its place: a connection
// by the name may lead to any of them, and says nothing of the others.
func (ctr *Connector) isNameOfSeveral(h *host) bool {
	return h.at == "" && ctr.hostSet.IsGone(h.index)
}

// HasOtherHosts says whether the pool has several hosts, by now: a name may come to have more.
func (ctr *Connector) HasOtherHosts() bool { return ctr.hostSet != nil && ctr.hostSet.Len() > 1 }

// isOf says whether a host is another one, or is at an address of its name.
func (h *host) isOf(other *host) bool { return h == other || h.named == other }

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
