package livepooltest

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/livepool/livepool"
)

// A Proxy passes connections on to a MySQL or MariaDB server, and injects faults. Its
// methods may be called from any goroutine.
type Proxy struct {
	*Faults

	dsn       string
	upstream  string
	listener  net.Listener
	accepting sync.WaitGroup
	running   sync.WaitGroup
}

// NewProxy starts a proxy on a free port of 127.0.0.1, in front of the server that the DSN
// names, which may have livepool's parameters. It ends with the test, and so should the
// pools on it before: close them, or open them after it and close them in t.Cleanup. It
// dials the server once for each connection to it, and none before.
//
// The proxy reads the protocol, so the connection must be a plain one: TLS (tls=true,
// skip-verify, preferred) and compression end the test with an error that says so. The
// server must be reached by TCP.
func NewProxy(t testing.TB, dsn string) *Proxy {
	t.Helper()
	cfg, err := livepool.ParseDSN(dsn)
	if err != nil {
		t.Fatalf("livepooltest: NewProxy: %v", err)
	}
	my := cfg.MySQL
	if my.Net != "tcp" {
		t.Fatalf("livepooltest: NewProxy: the DSN says %s(%s): the proxy stands between TCP connections; give it tcp(host:port)", my.Net, my.Addr)
	}
	if my.TLSConfig != "" && my.TLSConfig != "false" {
		t.Fatalf("livepooltest: NewProxy: the DSN says tls=%s: the proxy cannot look into TLS; leave tls out of the test's DSN", my.TLSConfig)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("livepooltest: NewProxy: %v", err)
	}
	p := &Proxy{Faults: newFaults(t), upstream: my.Addr, listener: listener, dsn: withAddr(dsn, listener.Addr().String())}
	p.accepting.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// DSN is the DSN that was given to NewProxy, with the proxy's address.
func (p *Proxy) DSN() string { return p.dsn }

// withAddr replaces the network and address of a DSN, which the driver finds between the
// last slash and the last @ before that.
func withAddr(dsn, addr string) string {
	slash := strings.LastIndexByte(dsn, '/')
	at := strings.LastIndexByte(dsn[:slash], '@')
	return dsn[:at+1] + "tcp(" + addr + ")" + dsn[slash:]
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // by close
		}
		c := &connection{f: p.Faults, client: client, ended: make(chan struct{}), statements: map[uint32]string{}}
		p.track(c)
		p.running.Go(func() { c.serve(p.upstream) })
	}
}

// close ends all connections and returns when nothing of the proxy runs any more.
func (p *Proxy) close() {
	_ = p.listener.Close()
	p.accepting.Wait()
	p.GoAway()
	p.running.Wait()
	p.end()
}
