package server

// This file runs HAProxy in front of several servers, as many put it there: clients know its
// address only, and it leads them to a server that a check has found fit. The check is an HTTP
// question to an agent beside each server, which is the usual way to ask for a role
// (clustercheck, xinetd); here the agents are in this process.

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/lab/loopback"
)

var haproxyPackages = Packages{Name: "haproxy", Suite: "bookworm", Names: "haproxy", Size: "20 MB"}

// A HAProxy is a running HAProxy.
type HAProxy struct {
	daemon
	addr   string
	agents []*agent
}

// An agent answers HAProxy's questions about one server.
type agent struct {
	http  http.Server
	asked atomic.Int32 // how often it has answered
}

// StartHAProxy starts HAProxy in front of the servers and returns when it leads to one of them.
// fit says of a server whether clients should be led there now; it is asked for each of them all
// the time, and an answer later than checkTimeout counts as no. A server that is found unfit
// loses its clients at once. The context bounds the start only. End it with Close.
func StartHAProxy(ctx context.Context, servers []*Server, fit func(context.Context, *Server) bool) (*HAProxy, error) {
	programs, err := FetchPrograms(ctx, haproxyPackages)
	if err != nil {
		return nil, err
	}
	d, err := makeDaemon("HAProxy")
	if err != nil {
		return nil, err
	}
	h := &HAProxy{daemon: d}
	path, err := h.configure(servers, fit)
	if err == nil {
		argv := programs.Command("usr/sbin/haproxy", "-db", "-f", path).Args
		err = h.start(ctx, argv, func() bool { return h.knowsAll() && h.leads() })
	}
	if err != nil {
		h.closeAgents()
		return nil, h.startError(err)
	}
	return h, nil
}

// checkTimeout is for the answer to a check, each of which is a login and a query.
const checkTimeout = time.Second

// configure starts the agents, finds a free port and writes the configuration.
func (h *HAProxy) configure(servers []*Server, fit func(context.Context, *Server) bool) (path string, err error) {
	var backends strings.Builder
	for i, s := range servers {
		port, err := h.serveAgent(s, fit)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&backends, "  server s%d %s check addr 127.0.0.1 port %d\n", i, s.Addr(), port)
	}
	l, err := loopback.Listen()
	if err != nil {
		return "", err
	}
	h.addr = l.Addr().String()
	l.Close()
	path = filepath.Join(h.dir, "haproxy.cfg")
	config := fmt.Sprintf(haproxyConfig, h.addr, checkTimeout.Milliseconds(), checksToFail) + backends.String()
	return path, os.WriteFile(path, []byte(config), 0o644)
}

// knowsAll says whether all servers have been checked: until it has found one unfit, HAProxy takes
// it for fit.
func (h *HAProxy) knowsAll() bool {
	return !slices.ContainsFunc(h.agents, func(a *agent) bool { return a.asked.Load() <= checksToFail })
}

// checksToFail is how many checks in a row find a server unfit.
const checksToFail = 2

// haproxyConfig wants the address, the timeout of a check and checksToFail. A client whose server is found
// unfit is cut off (on-marked-down shutdown-sessions): otherwise it would stay with the old one.
const haproxyConfig = `global
  maxconn 2000
defaults
  mode tcp
  retries 0
  timeout connect 1s
  timeout client 1h
  timeout server 1h
listen db
  bind %s
  option httpchk GET /
  timeout check %dms
  default-server inter 100ms fastinter 50ms downinter 50ms fall %d rise 1 on-marked-down shutdown-sessions
`

// serveAgent starts the agent of a server, and returns its port.
func (h *HAProxy) serveAgent(s *Server, fit func(context.Context, *Server) bool) (port int, err error) {
	l, err := loopback.Listen()
	if err != nil {
		return 0, err
	}
	a := &agent{}
	a.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		if !fit(ctx, s) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		a.asked.Add(1)
	})
	h.agents = append(h.agents, a)
	go a.http.Serve(l) // until it is closed
	return loopback.Port(l), nil
}

// leads says whether a client gets a server's greeting.
func (h *HAProxy) leads() bool {
	conn, err := net.DialTimeout("tcp", h.addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	n, err := conn.Read(make([]byte, 1))
	return err == nil && n == 1
}

// Addr is where clients connect.
func (h *HAProxy) Addr() string { return h.addr }

// Close ends HAProxy and its agents. It may be called more than once.
func (h *HAProxy) Close() error {
	err := h.daemon.Close()
	h.closeAgents()
	return err
}

func (h *HAProxy) closeAgents() {
	for _, a := range h.agents {
		a.http.Close()
	}
}

// TakesWrites is for HAProxy in front of a primary and its replicas.
func TakesWrites(ctx context.Context, s *Server) bool {
	var readOnly int
	return s.queryRow(ctx, "SELECT @@GLOBAL.read_only", nil, &readOnly) == nil && readOnly == 0
}

// IsSynced is for HAProxy in front of a Galera cluster.
func IsSynced(ctx context.Context, s *Server) bool {
	synced, err := s.synced(ctx)
	return err == nil && synced
}
