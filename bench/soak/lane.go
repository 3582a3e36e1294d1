// lane.go is a pool's ways to the servers, which can fail.

package soak

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

// lane is what one pool has of its own: its ways and its tables.
type lane struct {
	name           string
	user, password string
	ways           []*way // one to each node where these are hosts, otherwise one
	tables         tables
}

// way leads to the servers through two proxies: what the far one has swallowed stays
// so until the end, while the near one fails and heals.
type way struct {
	near, far *proxy.Proxy
	// forGood: what vanishes behind the far proxy stays there. A pool that does
	// not clear away what it leaves on the server would soon have filled it.
	forGood bool
}

func (g *ground) addLane(name, user, password string, forGood bool) (*lane, error) {
	l := &lane{name: name, user: user, password: password, tables: newTables(name)}
	g.lanes = append(g.lanes, l)
	ways := 1
	if g.shape.is(hosts) {
		ways = len(g.nodes)
	}
	for _, n := range g.nodes[:ways] {
		if err := l.addWay(n.Addr(), forGood); err != nil {
			return nil, err
		}
	}
	g.lead()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return l, errors.Join(g.exec(ctx, l.tables.create()...), g.settle(ctx))
}

func (l *lane) addWay(to string, forGood bool) error {
	far, err := proxy.New(to)
	if err != nil {
		return err
	}
	near, err := proxy.New(far.Addr())
	if err != nil {
		far.Close()
		return err
	}
	l.ways = append(l.ways, &way{near, far, forGood})
	return nil
}

// lead has new connections go to those that take writes: to the primary, or to
// all nodes in turn. Whether these can take them the balancer does not ask. Among
// hosts the pool has to choose by itself.
func (g *ground) lead() {
	if g.shape.is(hosts) {
		return
	}
	var addrs []string
	for _, n := range g.nodes {
		if g.shape != aPair || n == g.truth() {
			addrs = append(addrs, n.Addr())
		}
	}
	for _, l := range g.lanes {
		l.ways[0].far.SetUpstreams(addrs...)
	}
}

// mysql is for a driver that goes this way, the first one.
func (l *lane) mysql() *mysql.Config { return clientOf(l.ways[0].near.Addr(), l.user, l.password) }

// addrs are where all its ways begin.
func (l *lane) addrs() (all []string) {
	for _, w := range l.ways {
		all = append(all, w.near.Addr())
	}
	return all
}

func clientOf(addr, user, password string) *mysql.Config {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.Net, cfg.Addr, cfg.DBName = user, password, "tcp", addr, server.Database
	return cfg
}

// used is the number of the way on which there are most connections.
func (l *lane) used() (most int) {
	for i, w := range l.ways {
		if w.near.Conns() > l.ways[most].near.Conns() {
			most = i
		}
	}
	return most
}

// struck are the ways that a fault of the network strikes: where there are several,
// mostly the one in use, sometimes the others, and sometimes all.
func (l *lane) struck(f fault) []*way {
	const chosen = 3 // the roll that such faults use for nothing else
	switch used := l.used(); {
	case len(l.ways) == 1 || f.rolls[chosen] > 0.75:
		return l.ways
	case f.rolls[chosen] > 0.6:
		return slices.Delete(slices.Clone(l.ways), used, used+1)
	default:
		return l.ways[used : used+1]
	}
}

// struck are the ways of all lanes that a fault strikes.
func (g *ground) struck(f fault) (all []*way) {
	for _, l := range g.lanes {
		all = append(all, l.struck(f)...)
	}
	return all
}

// conns is how many connections its pool has open.
func (l *lane) conns() (n int) {
	for _, w := range l.ways {
		n += w.near.Conns()
	}
	return n
}

// opened is how many its pool has ever opened.
func (l *lane) opened() (n int) {
	for _, w := range l.ways {
		n += w.near.Counts().Conns
	}
	return n
}

// heal ends whatever the proxies do.
func (l *lane) heal() error {
	var errs []error
	for _, w := range l.ways {
		w.near.Heal()
		w.far.Heal()
		errs = append(errs, w.near.Reopen(), w.far.Reopen())
	}
	return errors.Join(errs...)
}

func (l *lane) close() {
	for _, w := range l.ways {
		w.near.Close()
		w.far.Close()
	}
}
