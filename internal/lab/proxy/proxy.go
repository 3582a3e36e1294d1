// Package proxy is a TCP proxy between a MySQL client and its server that injects faults and
// counts commands. It knows packets and the names of commands, so that a fault hits exactly
// the statement that a test means; it knows nothing of results, and what a client should make
// of a fault is the test's affair.
//
// A connection that turns to TLS or compression is passed on as bytes: faults of the network
// work on it as on any other, its commands are neither counted nor matched.
package proxy

// This file is the proxy as a whole: its listener, its faults, its books. What happens on one
// connection is in conn.go, which command is hit by a fault in cut.go.

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/lab/loopback"
)

// A Proxy passes connections on to its upstreams. Its methods may be called from any goroutine.
//
// Faults that stop bytes hold for what is sent after the call; what was under way may arrive.
type Proxy struct {
	addr     string
	header   bool
	queries  bool
	threadID func(real uint32) uint32 // nil: the client is told the server's own
	ctx      context.Context          // ends with Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu        sync.Mutex // guards what follows; taken after a conn's mu, never before
	upstreams []string
	turn      int              // of the next connection in the rotation over them
	listener  *net.TCPListener // nil while refusing
	closed    bool
	hangNew   bool
	toServer  bool // bytes to the server are dropped
	toClient  bool // bytes to the client are dropped
	late      time.Duration
	conns     map[*conn]bool
	cuts      []*Cut
	counts    Counts
	loggingIn int // connections that have not been logged in yet
	texts     []string
	lifetimes []*Lifetime
}

// An Option is for New.
type Option func(*Proxy)

// WithProxyHeader has the proxy introduce each client to the server by a PROXY protocol
// header, so that a MariaDB run with --proxy-protocol-networks=127.0.0.1 sees the client's
// own port. Without it the port is the proxy's, as behind most balancers.
func WithProxyHeader() Option { return func(p *Proxy) { p.header = true } }

// WithQueries has the proxy keep the text of every query for Queries.
func WithQueries() Option { return func(p *Proxy) { p.queries = true } }

// WithThreadIDs has the proxy behave like ProxySQL and MaxScale, which greet a client with a
// connection id of their own: f makes it of the server's, once for each connection that a server
// greets and never twice at a time. Only the greeting is changed: CONNECTION_ID() still returns
// the server's id, as behind ProxySQL in any query but the plainest, and KILL is not translated,
// so that an id from the greeting may hit a stranger.
func WithThreadIDs(f func(real uint32) uint32) Option {
	var mu sync.Mutex
	return func(p *Proxy) {
		p.threadID = func(real uint32) uint32 {
			mu.Lock()
			defer mu.Unlock()
			return f(real)
		}
	}
}

// WithListener has the proxy listen there, and not on a port of 127.0.0.1.
func WithListener(l *net.TCPListener) Option { return func(p *Proxy) { p.listener = l } }

// New starts a proxy on a free port of 127.0.0.1. The upstream is a host:port or the path of
// a unix socket; for MySQL it has to be the former, since over a socket MySQL expects the
// password in the clear, which a client that sees only TCP rightly does not send.
func New(upstream string, opts ...Option) (*Proxy, error) {
	p := &Proxy{upstreams: []string{upstream}, conns: map[*conn]bool{}}
	for _, o := range opts {
		o(p)
	}
	if p.listener == nil {
		l, err := loopback.Listen()
		if err != nil {
			return nil, err
		}
		p.listener = l
	}
	p.addr = p.listener.Addr().String()
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.listen(p.listener)
	return p, nil
}

// Addr is the host:port for clients.
func (p *Proxy) Addr() string { return p.addr }

// SetUpstream sends connections made from now on elsewhere.
func (p *Proxy) SetUpstream(addr string) { p.SetUpstreams(addr) }

// SetUpstreams has the proxy behave like a plain TCP balancer: connections made from now on go
// to these servers in turn, in the order in which they are taken from clients, the next one to
// the first. There are no health checks: a server that is down keeps its turn, and the client is
// reset, as every client is if there are no servers.
func (p *Proxy) SetUpstreams(addrs ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.upstreams = slices.Clone(addrs)
	p.turn = 0
}

// Close resets all connections and returns when nothing of the proxy runs any more.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.Refuse()
	p.RST()
	p.wg.Wait()
	return nil
}

// listen accepts connections from l. The caller holds the lock, or nobody knows p yet.
func (p *Proxy) listen(l *net.TCPListener) {
	p.listener = l
	p.wg.Go(func() {
		for {
			client, err := l.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			} else if err == nil {
				p.accept(client)
			}
		}
	})
}

func (p *Proxy) accept(client *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		client.Close()
		return
	}
	c := &conn{p: p, client: client, turn: p.turn, life: &Lifetime{Opened: time.Now()}}
	p.turn++
	c.gate = sync.NewCond(&c.mu)
	c.stalled = p.hangNew
	p.counts.Conns++
	p.loggingIn++
	p.counts.MostLogins = max(p.counts.MostLogins, p.loggingIn)
	p.conns[c] = true
	p.lifetimes = append(p.lifetimes, c.life)
	p.wg.Go(c.serve)
}

// forget takes a connection that has ended out of the books.
func (p *Proxy) forget(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.life.Closed = time.Now()
	p.loginEnds(c)
}

// loginEnds notes the end of a connection's login, or its own before that. The caller holds
// the lock.
func (p *Proxy) loginEnds(c *conn) {
	if !c.loggedIn {
		c.loggedIn = true
		p.loggingIn--
	}
}

// each calls f for every live connection.
func (p *Proxy) each(f func(*conn)) {
	p.mu.Lock()
	var all []*conn
	for c := range p.conns {
		all = append(all, c)
	}
	p.mu.Unlock()
	for _, c := range all {
		f(c)
	}
}

// Stall stops all bytes on the connections there are, and closes none of them: the network
// has gone away without a word. New connections work. Heal ends it.
func (p *Proxy) Stall() { p.each((*conn).stall) }

// HangNew makes the proxy take new connections and say nothing on them, nor to the server, until
// Heal. HangNew(false) ends that for connections yet to come.
func (p *Proxy) HangNew(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hangNew = on
}

// DropToServer discards what clients send, or stops doing so. What was discarded is lost.
func (p *Proxy) DropToServer(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.toServer = on
}

// DropToClient discards what the server sends, or stops doing so. What was discarded is lost.
func (p *Proxy) DropToClient(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.toClient = on
}

// Delay lets each reply come so much later, the greeting too, as from a server that is slow or
// far away. The kernel below is as quick as ever.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = d
}

func (p *Proxy) delay(toServer bool) {
	p.mu.Lock()
	late := p.late
	p.mu.Unlock()
	if late == 0 || toServer {
		return
	}
	timer := time.NewTimer(late)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
	}
}

// Heal ends Stall, HangNew and the drops. Stalled connections go on with every byte that was
// sent on them meanwhile; hanging ones are connected to the server.
func (p *Proxy) Heal() {
	p.mu.Lock()
	p.hangNew, p.toServer, p.toClient = false, false, false
	p.mu.Unlock()
	p.each((*conn).heal)
}

// FIN closes all connections in an orderly way, on both sides.
func (p *Proxy) FIN() { p.each(func(c *conn) { c.end(FIN) }) }

// RST resets all connections, on both sides.
func (p *Proxy) RST() { p.each(func(c *conn) { c.end(RST) }) }

// Refuse has new connections refused by the kernel, as when no server runs. Those there are
// live on.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
}

// Reopen ends Refuse, on the same port.
func (p *Proxy) Reopen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil || p.closed {
		return nil
	}
	l, err := loopback.ListenAt(p.addr)
	if err == nil {
		p.listen(l)
	}
	return err
}

// Counts are what the proxy has seen. Commands are counted as they come from the client,
// whether or not a fault keeps them from the server.
type Counts struct {
	Conns int // connections taken from clients
	Dials int // connections tried to the server

	// MostLogins is the most connections at a time whose login was not over. One that turns
	// to TLS counts until its end.
	MostLogins int

	Quit, Ping, Query, Prepare, Execute, LongData, StmtClose, ResetConnection, Other int
}

// RoundTrips is the number of commands for whose reply a client waits.
func (c Counts) RoundTrips() int {
	return c.Ping + c.Query + c.Prepare + c.Execute + c.ResetConnection + c.Other
}

// Counts returns the counts since the start or the last ResetCounts.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// ResetCounts sets the counts to zero and forgets the Queries.
func (p *Proxy) ResetCounts() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts = Counts{}
	p.texts = nil
}

// Queries returns the texts of the queries counted, if the proxy was made WithQueries.
func (p *Proxy) Queries() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.texts)
}

// Conns is the number of connections that are open now.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// A Lifetime tells when a connection was opened and closed; Closed is zero while it is open.
type Lifetime struct{ Opened, Closed time.Time }

// Lifetimes returns those of all connections there ever were, in the order of their opening.
func (p *Proxy) Lifetimes() []Lifetime {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Lifetime, len(p.lifetimes))
	for i, l := range p.lifetimes {
		all[i] = *l
	}
	return all
}
