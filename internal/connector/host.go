// host.go is one of the servers that a pool connects to, and what the pool notes of it: that it is
// the primary, that it was demoted, that it is left.

package connector

import (
	"cmp"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/internal/proclist"
)

// host is one address, and what belongs to it alone. The first six fields do not change.
type host struct {
	index      int
	addr       string           // for errors and logs
	at         string           // the address that is dialed, one of several of a name; "": the connectors' own
	named      *host            // the host by whose name it was found; nil: it is listed
	connector  driver.Connector // for the pool's connections
	side       driver.Connector // for side connections, which may send several statements in one request
	generation atomic.Uint64    // one more each time that all its connections are retired
	reaper     proclist.Reaper
	stalls     proclist.Stalls
	askAgainAt atomic.Int64           // when it may be asked again whether it is there; checkSilence
	server     atomic.Pointer[string] // the name of the one that it leads to; nil: not known
	isBehind   atomic.Bool            // it lagged, when it was last asked; checkLag
	isAsked    atomic.Bool            // startAsking
	loginTakes atomic.Int64           // how long its logins take, 0 before the first, in ns; noteLogin
}

// addrOf is the address of a connection, that of the pool where it has none.
func (ctr *Connector) addrOf(l *link) string {
	if l.host == nil {
		return ctr.addr
	}
	return l.host.addr
}

func (c *conn) addr() string { return c.ctr.addrOf(&c.link) }

// makeHosts makes the hosts of the settings; my has all that they have in common.
func (ctr *Connector) makeHosts(my *mysql.Config, resolvesNames bool) error {
	addrs := ctr.Cfg.Addrs
	if len(addrs) == 0 {
		addrs = []string{my.Addr}
	}
	var all []*host
	for i, addr := range addrs {
		own := my.Clone()
		own.Addr = addr
		if own.TLS != nil && len(addrs) > 1 && own.TLS.ServerName == hostName(my.Addr) {
			own.TLS.ServerName = "" // the driver has set it to the first host's; it sets it to this one's
		}
		h := &host{index: i, addr: address(own)}
		var err error
		if h.connector, err = mysql.NewConnector(own); err != nil {
			return err
		}
		several := own.Clone()
		several.MultiStatements = true
		if h.side, err = mysql.NewConnector(several); err != nil {
			return err
		}
		all = append(all, h)
	}
	ctr.hostList.Store(&all)
	ctr.addr = all[0].addr
	if len(addrs) > 1 {
		joined := my.Clone()
		joined.Addr = strings.Join(addrs, ",")
		ctr.addr = address(joined)
	}
	if ctr.Cfg.AsksRole || ctr.Cfg.Target != hosts.Primary {
		ctr.hostSet = hosts.New(len(addrs), ctr.Cfg.Target)
		if resolvesNames {
			ctr.names.init(cmp.Or(my.Net, "tcp"), all, addrs)
		}
	}
	return nil
}

// hosts are all hosts by their number. A connection's host is among them.
func (ctr *Connector) hosts() []*host { return *ctr.hostList.Load() }

// hostName is the name in an address, by which a certificate is checked.
func hostName(addr string) string {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return name
}

// mainHost is the primary as far as it is known, otherwise the first host.
func (ctr *Connector) mainHost() *host {
	if ctr.hostSet != nil {
		if i, known := ctr.hostSet.Primary(); known {
			return ctr.hosts()[i]
		}
	}
	return ctr.hosts()[0]
}

// isLeft says whether the pool has left a host for another one that takes writes; changed is
// closed when that may be different. Of replicas another one is used at any time, and of any
// hosts another one than that which has just fallen silent.
func (ctr *Connector) isLeft(index int) (left bool, changed <-chan struct{}) {
	switch {
	case ctr.hostSet == nil:
		return false, nil
	case ctr.Cfg.Target == hosts.Any:
		return ctr.hostSet.IsLeftOut(index, ctr.clock.Now()), nil
	case ctr.Cfg.Target != hosts.Primary:
		return true, nil
	}
	primary, changed := ctr.hostSet.Watch()
	return primary >= 0 && !ctr.hosts()[primary].isOf(ctr.hosts()[index]), changed
}

// followsPrimary says whether the pool looks for the host that takes writes.
func (ctr *Connector) followsPrimary() bool {
	return ctr.hostSet != nil && ctr.Cfg.Target == hosts.Primary
}

// isPrimary says whether a host is the one of several to which the pool connects.
func (ctr *Connector) isPrimary(h *host) bool {
	if !ctr.followsPrimary() {
		return false
	}
	i, known := ctr.hostSet.Primary()
	return known && i == h.index
}

// retire has the connections to a host closed that exist now: idle ones soon, those in use
// when they are returned.
func (ctr *Connector) retire(h *host) {
	h.generation.Add(1)
	ctr.maintainer.wake()
}

// reached records that a connection was opened, which ends an outage of connections. One to a
// host that was demoted meanwhile does not.
func (ctr *Connector) reached(l *link) {
	switch {
	case ctr.hostSet == nil:
		ctr.Outage.Connected()
	case l.generation == l.host.generation.Load():
		ctr.Outage.Connected(slog.String("host", l.host.addr))
	}
}

// noteHostFailure notes what a failure says about a host: it is left out for a while if it
// said nothing, and is no longer the primary if it takes no writes.
func (ctr *Connector) noteHostFailure(h *host, err error, passedOver bool) {
	var role roleError
	switch {
	case passedOver, err == errHostSilent:
		ctr.hostSet.Silent(h.index, ctr.clock.Now())
	case errors.As(err, &role) && role.readOnly:
		ctr.noteDemotion(h, role.asked, role)
	}
}

// noteHostWon notes that a host is the primary, for which the pool leaves last, -1 for none. It
// says whether that is still so.
func (ctr *Connector) noteHostWon(c *candidate, last int) bool {
	c.host.server.Store(nil) // until afterLogin, if it is not known yet
	if c.early != nil {
		name := c.early.facts.name()
		c.host.server.Store(&name)
	}
	isPrimary, isNew := ctr.hostSet.TakesWrites(c.host.index, last, c.asked, ctr.clock.Now())
	if !isNew {
		return isPrimary
	}
	ctr.watchOthers(c.host)
	if last < 0 {
		return true
	}
	ctr.retire(ctr.hosts()[last])
	if !ctr.Outage.IsDown() && !c.host.isOf(ctr.hosts()[last]) { // the end of an outage tells it; and a name has come to have several addresses
		ctr.Cfg.Log.Warn("livepool: another host takes writes, while the one that did cannot be reached; connections to that are replaced",
			slog.String("addr", ctr.addr), slog.String("host", c.host.addr), slog.String("last", ctr.hosts()[last].addr))
	}
	return true
}

// noteDemotion notes that a host has refused a write in answer to a request that was sent at
// asked. The pool then waits for the host that takes writes.
func (ctr *Connector) noteDemotion(h *host, asked time.Duration, refusal error) {
	now := ctr.clock.Now()
	if !ctr.hostSet.Demoted(h.index, asked, now) {
		return
	}
	ctr.retire(h)
	ctr.Outage.Failed(fmt.Errorf("%s: %w", h.addr, refusal), now, outage.NoPrimary)()
}
