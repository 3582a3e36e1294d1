package server

// This file is a Galera cluster: its nodes, how they find each other, leave and come back. Each
// node by itself is a Server like any other. How a node gets what it missed while it was away
// is in transfer.go.

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
)

// A Galera is a cluster of MariaDB 10.11 nodes, each of which takes writes.
type Galera struct {
	provider string // the library's path
	name     string
	members  []*member
}

// A member is a node and what the others reach it by.
type member struct {
	*Server
	group, ist int  // ports: of the group, and for what it has missed
	founder    bool // it starts the cluster instead of joining it
}

// galeraRecipe is the provider, a library that the server loads.
var galeraRecipe = recipe{name: "Galera 4", pkg: "galera-4", suite: "bookworm", size: "10 MB"}

const providerFile = "usr/lib/galera/libgalera_smm.so"

// StartGalera starts a cluster, all of its nodes with the same options, and returns when they
// are one and in sync. The context bounds the start only. End it with Close.
func StartGalera(ctx context.Context, nodes int, o Options) (*Galera, error) {
	in, err := Find(ctx, MariaDB)
	if err != nil {
		return nil, err
	}
	provider, err := findProvider(ctx, in)
	if err != nil {
		return nil, err
	}
	template, err := in.galeraTemplate(ctx, provider)
	if err != nil {
		return nil, err
	}
	return in.startGalera(ctx, provider, template, nodes, o)
}

var providers struct {
	sync.Mutex
	asked bool
	path  string
	err   error
}

// findProvider returns the path of the provider that belongs to a server. As with Find, the
// answer is remembered, also a no.
func findProvider(ctx context.Context, in *Install) (string, error) {
	if path := "/" + providerFile; in.root == "" && isFile(path) {
		return path, nil
	}
	p := &providers
	p.Lock()
	defer p.Unlock()
	if p.asked {
		return p.path, p.err
	}
	root, err := Cached(ctx, "galera-"+runtime.GOARCH, func(dir string) error { return fetch(ctx, galeraRecipe, dir) })
	if err != nil {
		err = fmt.Errorf("%w: %s could not be fetched from Debian: %w", ErrUnavailable, galeraRecipe.name, err)
	}
	p.asked, p.path, p.err = ctx.Err() == nil, filepath.Join(root, providerFile), err
	return p.path, p.err
}

// galeraTemplate returns a data directory that has been a cluster of one: nodes with copies of
// it have the same data at the same position, so none of them needs the data of another.
func (in *Install) galeraTemplate(ctx context.Context, provider string) (string, error) {
	plain, err := in.template(ctx)
	if err != nil {
		return "", err
	}
	ours := sha256.Sum256([]byte(plain + strings.Join(galeraArgs, " ")))
	return Cached(ctx, fmt.Sprintf("template-galera-%s-%s-%x", in.Version, runtime.GOARCH, ours[:4]), func(dir string) error {
		g, err := in.startGalera(ctx, provider, plain, 1, Options{})
		if err != nil {
			return err
		}
		defer g.Close()
		if err := g.members[0].Stop(); err != nil {
			return err
		}
		if err := os.Remove(dir); err != nil {
			return err
		}
		for _, name := range []string{"galera.cache", "gvwstate.dat"} { // each node makes its own
			if err := os.Remove(filepath.Join(g.members[0].data(), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return copyTree(g.members[0].data(), dir)
	})
}

func (in *Install) startGalera(ctx context.Context, provider, template string, nodes int, o Options) (g *Galera, err error) {
	// The ports are free now and may be taken before the servers have them.
	for range 5 {
		g, err = in.tryGalera(ctx, provider, template, nodes, o)
		if err == nil || !strings.Contains(err.Error(), "Do you already have another") && !strings.Contains(err.Error(), "Address already in use") {
			break
		}
	}
	return g, err
}

func (in *Install) tryGalera(ctx context.Context, provider, template string, nodes int, o Options) (_ *Galera, err error) {
	// Clusters of different names refuse each other, should one get a port of another. The
	// provider takes no more than 32 characters.
	g := &Galera{provider: provider, name: rand.Text()}
	defer func() {
		if err != nil {
			g.Close()
		}
	}()
	var ports []*int
	for i := range nodes {
		s, err := in.furnish(template, o)
		if err != nil {
			return nil, err
		}
		m := &member{Server: s, founder: i == 0}
		g.members = append(g.members, m)
		ports = append(ports, &m.port, &m.group, &m.ist)
		if err := m.writeTransfer(); err != nil {
			return nil, err
		}
		s.partArgs = func(ctx context.Context) ([]string, error) { return g.argsOf(ctx, m) }
		s.joined = m.joinedYet
	}
	if err := choosePorts(ports...); err != nil {
		return nil, err
	}
	if err := g.members[0].start(ctx); err != nil {
		return nil, err
	}
	g.members[0].founder = false
	var wg sync.WaitGroup
	errs := make([]error, nodes)
	for i, m := range g.members[1:] {
		wg.Go(func() { errs[i] = m.join(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return g, g.AwaitSynced(ctx)
}

// galeraArgs are what all nodes have in common. binlog-format and innodb-autoinc-lock-mode are
// what Galera demands.
var galeraArgs = []string{
	"--wsrep-on=ON",
	"--binlog-format=ROW",
	"--innodb-autoinc-lock-mode=2",
	"--wsrep-sst-method=" + transferMethod,
}

// providerOptions make the group small, and quick to notice a node that is gone.
var providerOptions = []string{
	"gcache.size=8M", // of what a node may have missed
	"gcache.page_size=8M",
	"evs.suspect_timeout=PT1.5S", // less, and a busy machine drops nodes that are well
	"evs.inactive_timeout=PT3S",
	"evs.inactive_check_period=PT0.25S",
	"evs.keepalive_period=PT0.25S",
	"evs.install_timeout=PT3S",
	"evs.join_retrans_period=PT0.2S",
	"pc.announce_timeout=PT0.5S", // for which a node that starts looks for others
	"gmcast.time_wait=PT1S",      // until a node that was cut off may come back
	"pc.recovery=false",          // a node that comes back asks the others, and nobody else
	"pc.wait_prim_timeout=PT20S",
}

// argsOf are the arguments of a node at its next start.
func (g *Galera) argsOf(ctx context.Context, m *member) ([]string, error) {
	options := append(providerOptions[:len(providerOptions):len(providerOptions)],
		fmt.Sprintf("gmcast.listen_addr=tcp://127.0.0.1:%d", m.group),
		fmt.Sprintf("ist.recv_addr=127.0.0.1:%d", m.ist))
	args := append(galeraArgs[:len(galeraArgs):len(galeraArgs)],
		"--wsrep-provider="+g.provider,
		"--wsrep-provider-options="+strings.Join(options, ";"),
		"--wsrep-cluster-name="+g.name,
		"--wsrep-node-address=127.0.0.1",
		"--wsrep-sst-receive-address="+m.transferFile())
	if m.founder {
		return append(args, "--wsrep-cluster-address=gcomm://", "--wsrep-new-cluster"), nil
	}
	var addresses []string
	for _, other := range g.members {
		addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", other.group))
	}
	args = append(args, "--wsrep-cluster-address=gcomm://"+strings.Join(addresses, ","))
	if err := os.RemoveAll(m.transferFile()); err != nil {
		return nil, err
	}
	position, err := m.position(ctx, args)
	if err == nil && position != "" {
		args = append(args, "--wsrep-start-position="+position)
	}
	return args, err
}

// Nodes are the nodes of the cluster. What is killed or stopped joins again when it is started.
func (g *Galera) Nodes() (nodes []*Server) {
	for _, m := range g.members {
		nodes = append(nodes, m.Server)
	}
	return nodes
}

// KillNode ends a node as a crash does.
func (g *Galera) KillNode(i int) error { return g.members[i].Kill() }

// StartNode starts a node that was killed or stopped, and returns when it has what it missed
// and takes part again. There must be others that are in sync: a cluster that is down as a
// whole is not started anew. The context bounds the start only.
func (g *Galera) StartNode(ctx context.Context, i int) error { return g.members[i].join(ctx) }

// Isolate cuts a node off from the others, while clients still reach it, and returns when both
// sides have noticed.
func (g *Galera) Isolate(ctx context.Context, i int) error {
	before := g.sizes(ctx)
	if err := g.members[i].isolate(ctx, true); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		now := g.sizes(ctx)
		for j := range now {
			if j != i && now[j] > 0 && now[j] >= before[j] {
				return false, nil
			}
		}
		status, err := g.members[i].wsrepStatus(ctx)
		return status["wsrep_cluster_status"] != "Primary" && status["wsrep_ready"] == "OFF", err
	})
}

// Heal ends Isolate, and returns when the node takes part again.
func (g *Galera) Heal(ctx context.Context, i int) error {
	if err := g.members[i].isolate(ctx, false); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) { return g.members[i].synced(ctx) })
}

// AwaitSynced waits until all nodes are in one cluster and in sync.
func (g *Galera) AwaitSynced(ctx context.Context) error {
	var last []map[string]string
	err := poll(ctx, func() (bool, error) {
		last = nil
		for _, m := range g.members {
			status, err := m.wsrepStatus(ctx)
			if err != nil {
				return false, err
			}
			last = append(last, status)
			if !isSynced(status) || status["wsrep_cluster_size"] != strconv.Itoa(len(g.members)) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("the nodes do not become one cluster: %w\n%v", err, last)
	}
	return nil
}

// Close kills all nodes and removes all that they wrote.
func (g *Galera) Close() error {
	var errs []error
	for _, m := range g.members {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// join starts a node that is to join the others. On a busy machine it may lose them again while
// it joins, and then it ends: nothing is lost but time.
func (m *member) join(ctx context.Context) (err error) {
	for range 3 {
		if err = m.start(ctx); err == nil || ctx.Err() != nil || errors.Is(err, errRefused) {
			break
		}
	}
	return err
}

// joinedYet reports whether a node that is being started takes part.
func (m *member) joinedYet(ctx context.Context) (bool, error) {
	if m.refused() {
		return false, errRefused // it would end by itself, in one of several ways
	}
	ok, _ := m.synced(ctx) // an error is that it is not ready yet
	return ok, nil
}

func (s *Server) synced(ctx context.Context) (bool, error) {
	status, err := s.wsrepStatus(ctx)
	return isSynced(status), err
}

func isSynced(status map[string]string) bool {
	return status["wsrep_cluster_status"] == "Primary" && status["wsrep_local_state_comment"] == "Synced" && status["wsrep_ready"] == "ON"
}

// isolate sets gmcast.isolate, by which the provider drops its connections to the others and
// makes no new ones (Galera documentation, Galera parameters).
func (m *member) isolate(ctx context.Context, on bool) error {
	value := map[bool]string{false: "0", true: "1"}[on]
	return m.exec(ctx, "SET GLOBAL wsrep_provider_options = 'gmcast.isolate="+value+"'")
}

// sizes tells of each node how many it reports to be in its part of the cluster; 0 if it does
// not answer, or that part has no quorum.
func (g *Galera) sizes(ctx context.Context) []int {
	sizes := make([]int, len(g.members))
	for i, m := range g.members {
		status, _ := m.wsrepStatus(ctx)
		if status["wsrep_cluster_status"] == "Primary" {
			sizes[i], _ = strconv.Atoi(status["wsrep_cluster_size"])
		}
	}
	return sizes
}

// wsrepStatus is the node's own view of the cluster, which it tells even without a quorum.
func (s *Server) wsrepStatus(ctx context.Context) (map[string]string, error) {
	return s.pairs(ctx, "SHOW GLOBAL STATUS LIKE 'wsrep_%'")
}
