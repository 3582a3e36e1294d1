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
	near, far      ways
	tables         tables
	// forGood: what vanishes behind the far proxy stays there. A pool that does
	// not clear away what it leaves on the server would soon have filled it.
	forGood bool
}

func (g *ground) addLane(name, user, password string, forGood bool) (*lane, error) {
	l := &lane{name: name, user: user, password: password, tables: newTables(name), forGood: forGood}
	g.lanes = append(g.lanes, l) // before it has proxies, so that they are closed
	nodes := g.nodes[:1]
	if g.hosts {
		nodes = g.nodes
	}
	for _, n := range nodes {
		far, err := proxy.New(n.Addr())
		if err != nil {
			return nil, err
		}
		l.far = append(l.far, far)
		near, err := proxy.New(far.Addr())
		if err != nil {
			return nil, err
		}
		l.near = append(l.near, near)
	}
	g.lead()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return l, errors.Join(g.exec(ctx, l.tables.create()...), g.settle(ctx))
}

// lead has new connections go to those that take writes: to the primary, or to
// all nodes in turn. Whether these can take them the balancer does not ask. Where the pool
// has a way to each server it finds the right one by itself.
func (g *ground) lead() {
	if g.hosts {
		return
	}
	var addrs []string
	for _, n := range g.nodes {
		if g.shape != aPair || n == g.truth() {
			addrs = append(addrs, n.Addr())
		}
	}
	for _, l := range g.lanes {
		l.far[0].SetUpstreams(addrs...)
	}
}

// mysql is for a driver that goes this way; the first way, of several.
func (l *lane) mysql() *mysql.Config { return clientOf(l.near[0].Addr(), l.user, l.password) }

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

// ways are proxies that do the same: one before all servers, or one before each.
type ways []*proxy.Proxy

func (ws ways) each(do func(*proxy.Proxy)) {
	for _, p := range ws {
		do(p)
	}
}

func (ws ways) Heal()                { ws.each((*proxy.Proxy).Heal) }
func (ws ways) Stall()               { ws.each((*proxy.Proxy).Stall) }
func (ws ways) FIN()                 { ws.each((*proxy.Proxy).FIN) }
func (ws ways) RST()                 { ws.each((*proxy.Proxy).RST) }
func (ws ways) Refuse()              { ws.each((*proxy.Proxy).Refuse) }
func (ws ways) HangNew(on bool)      { ws.each(func(p *proxy.Proxy) { p.HangNew(on) }) }
func (ws ways) DropToClient(on bool) { ws.each(func(p *proxy.Proxy) { p.DropToClient(on) }) }
func (ws ways) Close()               { ws.each(func(p *proxy.Proxy) { p.Close() }) }

func (ws ways) Reopen() (err error) {
	ws.each(func(p *proxy.Proxy) { err = errors.Join(err, p.Reopen()) })
	return err
}

// Conns is how many connections there are.
func (ws ways) Conns() (n int) {
	ws.each(func(p *proxy.Proxy) { n += p.Conns() })
	return n
}

// Opened is how many there have been.
func (ws ways) Opened() (n int) {
	ws.each(func(p *proxy.Proxy) { n += p.Counts().Conns })
	return n
}
