// lane.go is a pool's way to the servers, which can fail.

package soak

import (
	"context"
	"errors"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

// lane is one pool's way to the server and its tables there. It leads through
// two proxies: what the far one has swallowed stays so until the end, while the
// near one fails and heals.
type lane struct {
	name           string
	user, password string
	near, far      *proxy.Proxy
	tables         tables
	// forGood: what vanishes behind the far proxy stays there. A pool that does
	// not clear away what it leaves on the server would soon have filled it.
	forGood bool
}

func (g *ground) addLane(name, user, password string, forGood bool) (*lane, error) {
	l := &lane{name: name, user: user, password: password, tables: newTables(name), forGood: forGood}
	var err error
	if l.far, err = proxy.New(g.nodes[0].Addr()); err != nil {
		return nil, err
	}
	if l.near, err = proxy.New(l.far.Addr()); err != nil {
		l.far.Close()
		return nil, err
	}
	g.lanes = append(g.lanes, l)
	g.lead()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return l, errors.Join(g.exec(ctx, l.tables.create()...), g.settle(ctx))
}

// lead has new connections go to those that take writes: to the primary, or to
// all nodes in turn. Whether these can take them the balancer does not ask.
func (g *ground) lead() {
	var addrs []string
	for _, n := range g.nodes {
		if g.shape != aPair || n == g.truth() {
			addrs = append(addrs, n.Addr())
		}
	}
	for _, l := range g.lanes {
		l.far.SetUpstreams(addrs...)
	}
}

// mysql is for a driver that goes this way.
func (l *lane) mysql() *mysql.Config { return clientOf(l.near.Addr(), l.user, l.password) }

func clientOf(addr, user, password string) *mysql.Config {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.Net, cfg.Addr, cfg.DBName = user, password, "tcp", addr, server.Database
	return cfg
}

// heal ends whatever the proxies do.
func (l *lane) heal() error {
	l.near.Heal()
	l.far.Heal()
	return errors.Join(l.near.Reopen(), l.far.Reopen())
}
