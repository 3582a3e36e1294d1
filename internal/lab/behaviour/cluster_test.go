package behaviour_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// group is servers that have the same rows: behind a plain TCP balancer, or each behind a
// proxy of its own, where the pool is to find out which one is the right one.
type group struct {
	title   string
	servers []*server.Server
	// before is where new connections lead until the fault, the server that it
	// will hit first; after is where they lead from then on.
	before, after func() []string
	faults        []groupFault
	// awaitSync waits until each server has what the others have.
	awaitSync func() error
	via       map[string]*proxy.Proxy // to each server, by its address; nil with a balancer
	hosts     string                  // the addresses of these proxies, as a DSN has them
	hit       *int                    // the server that the next fault hits; nil where that is the primary
}

// groupFault is what happens to a group, and what makes it whole again.
type groupFault struct {
	name           string
	inject, repair func() error
	losesLatest    bool // what is committed while it is injected
	cutsOff        bool // the proxy to the server heals only with the repair
}

const ledgerTable = "CREATE TABLE test.ledger (id INT AUTO_INCREMENT PRIMARY KEY, unit INT NOT NULL, KEY (unit))"

// pairOf is a primary and its replica. When the primary dies the replica has what
// was committed: what an asynchronous replica lacks is lost, and with it the key
// of the unit.
func pairOf(t *testing.T, kind server.Kind) *group {
	p := servertest.RunPair(t, kind, "--innodb-lock-wait-timeout=1")
	if err := p.Primary().Exec(ledgerTable); err != nil {
		t.Fatal(err)
	}
	lead := func() []string { return []string{p.Primary().Addr()} }
	return &group{
		title: "primary and replica, " + p.Primary().Version(), servers: []*server.Server{p.Primary(), p.Replica()},
		before: lead, after: lead,
		faults: []groupFault{
			{name: "role switch", inject: func() error { return p.Switch(t.Context()) }, repair: func() error { return nil }},
			{name: "SIGKILL, promotion", inject: func() error {
				return errors.Join(p.CatchUp(t.Context()), p.Primary().Kill(), p.Promote(t.Context()))
			}, repair: func() error { return p.Rejoin(t.Context()) }, losesLatest: true},
		},
		awaitSync: func() error { return p.CatchUp(t.Context()) },
	}
}

// clusterOf is a Galera cluster of three. The node that is hit is in turn another
// one, and the balancer, which checks nothing, goes on to lead there.
func clusterOf(t *testing.T) *group {
	c := servertest.RunGalera(t, 3, "--innodb-lock-wait-timeout=1")
	nodes := c.Nodes()
	if err := nodes[0].Exec(ledgerTable); err != nil {
		t.Fatal(err)
	}
	hit := 0
	return &group{
		title: "Galera, " + nodes[0].Version(), servers: nodes, hit: &hit,
		before: func() []string {
			hit = (hit + 1) % len(nodes)
			return []string{nodes[hit].Addr()}
		},
		after: func() (all []string) {
			for i := range nodes {
				all = append(all, nodes[(hit+i)%len(nodes)].Addr())
			}
			return all
		},
		faults: []groupFault{
			{name: "node killed", inject: func() error { return c.KillNode(hit) }, repair: func() error { return c.StartNode(t.Context(), hit) }},
			{name: "node isolated", inject: func() error { return c.Isolate(t.Context(), hit) }, repair: func() error { return c.Heal(t.Context(), hit) }},
		},
		awaitSync: func() error { return c.AwaitSynced(t.Context()) },
	}
}

// replicatedGroupOf is three members of MySQL's Group Replication. What the primary has
// acknowledged a majority has, so that nothing of it is lost when it dies.
// The limit is that of Group.Switch.
func replicatedGroupOf(t *testing.T, limit time.Duration) *group {
	g := servertest.RunGroup(t, 3, "--innodb-lock-wait-timeout=1")
	members := g.Members()
	if err := members[0].Exec(ledgerTable); err != nil {
		t.Fatal(err)
	}
	primary := 0 // before the fault
	lead := func() []string {
		primary = g.Primary(t.Context())
		if primary < 0 {
			t.Fatal("the group has no primary")
		}
		return []string{members[primary].Addr()}
	}
	killed := 0
	return &group{
		title: "Group Replication, " + members[0].Version(), servers: members,
		before: lead, after: lead,
		faults: []groupFault{
			{name: "role switch", inject: func() error { return g.Switch(t.Context(), (primary+1)%len(members), limit) }, repair: func() error { return nil }},
			{name: "SIGKILL, election", inject: func() error {
				killed = primary
				if err := g.KillMember(killed); err != nil {
					return err
				}
				_, err := g.AwaitPrimary(t.Context(), killed)
				return err
			}, repair: func() error { return g.StartMember(t.Context(), killed) }},
		},
		awaitSync: func() error { return g.AwaitOnline(t.Context()) },
	}
}

// groupModes are those of the matrix that can be told apart when they run at the
// same time.
func groupModes() (all []mode) {
	for _, w := range modes {
		if !w.prepared {
			all = append(all, w)
		}
	}
	return all
}

// groupRun is one fault that hits a unit of each mode at the same step of each.
type groupRun struct {
	t    *testing.T
	g    *group
	via  *proxy.Proxy
	pool *livepool.Pool
	step step

	reached chan struct{} // a unit has come to the step, or to its end
	resume  chan struct{} // closed after the fault
}

// run returns what the units said, which are numbered from first.
func (s *groupRun) run(b groupFault, first int) []error {
	all := groupModes()
	s.reached, s.resume = make(chan struct{}, 2*len(all)), make(chan struct{})
	s.pool.Recycle()
	if first := s.g.before(); s.g.via == nil {
		s.via.SetUpstreams(first...)
	} else {
		s.via = s.g.via[first[0]]
	}
	said := make([]error, len(all))
	cuts := make([]*proxy.Cut, len(all))
	var units sync.WaitGroup
	for i := range all {
		cuts[i] = s.cut(&all[i])
	}
	for i := range all {
		units.Go(func() { said[i] = s.unit(&all[i], first+i, cuts[i]) })
	}
	for range all {
		<-s.reached
	}
	if err := b.inject(); err != nil {
		s.t.Errorf("%s, %s: %v", s.step.name, b.name, err)
	}
	if s.g.via == nil {
		s.via.SetUpstreams(s.g.after()...)
	}
	for _, c := range cuts {
		if c != nil {
			c.Cancel()
		}
	}
	if s.step.after {
		s.via.FIN() // and the replies with it
	}
	if !b.cutsOff {
		s.via.Heal()
	}
	close(s.resume)
	// On a busy machine a cluster may lose its quorum along with one node, and
	// have it again only with that.
	mend := sync.OnceFunc(func() {
		if err := b.repair(); err != nil {
			s.t.Errorf("%s, %s: %v", s.step.name, b.name, err)
		}
	})
	rescue := time.AfterFunc(20*time.Second, mend)
	units.Wait()
	rescue.Stop()
	mend() // or wait for the end of it
	return said
}

// cut holds up the command of a unit that is the moment, nil if none is.
func (s *groupRun) cut(w *mode) *proxy.Cut {
	match := (&matrix{mode: w}).match(s.step.command)
	switch {
	case s.step.afterStep >= 0:
		return nil
	case s.step.after:
		return s.via.CutAfter(match, proxy.Stall)
	}
	return s.via.CutBefore(match, proxy.Stall)
}

// unit runs a unit that is held up at the moment.
func (s *groupRun) unit(w *mode, number int, cut *proxy.Cut) error {
	m := &matrix{t: s.t, via: s.via, pool: s.pool, mode: w}
	var once sync.Once
	arrive := func() { once.Do(func() { s.reached <- struct{}{} }) }
	defer arrive()
	if cut != nil {
		go func() {
			select {
			case <-cut.Done():
				arrive()
			case <-s.resume:
			}
		}()
	}
	held := false
	return w.run(m, number, func(now int) {
		if now == s.step.afterStep && !held {
			held = true
			arrive()
			<-s.resume
		}
	})
}

// The matrix once more, on servers that change places, are left by their
// cluster, or die and are replaced.
func TestEffectsAreWhatWasReportedByAGroup(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run("primary and replica/"+string(kind), func(t *testing.T) {
			t.Parallel()
			testGroup(t, pairOf(t, kind))
		})
	}
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		t.Run("several hosts/"+string(kind), func(t *testing.T) {
			t.Parallel()
			testGroup(t, hostsOf(t, kind))
		})
	}
	t.Run("Group Replication", func(t *testing.T) {
		t.Parallel()
		testGroup(t, replicatedGroupOf(t, time.Second)) // or it would wait for the units that are held up
	})
	t.Run("Galera", func(t *testing.T) {
		t.Parallel()
		testGroup(t, clusterOf(t))
	})
}

func testGroup(t *testing.T, g *group) {
	via := proxyTo(t, g.servers[0])
	addr := via.Addr()
	if g.via == nil {
		via.SetUpstreams(g.before()...)
	} else {
		addr = g.hosts
	}
	p := open(t, g.servers[0].AppDSN(addr), "pool_ping_timeout=300ms&pool_stall_after=20s&pool_timeout=2m&pool_max_elapsed=2m")
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "moment\tblow")
	for _, way := range groupModes() {
		fmt.Fprintf(w, "\t%s", way.name)
	}
	fmt.Fprintln(w, "\ttook")
	defer func() {
		w.Flush()
		fmt.Fprintf(os.Stdout, "%s: what a unit said, and its rows\n%s\n", g.title, table.String())
	}()
	first := 0
	for _, at := range steps {
		for _, b := range g.faults {
			fmt.Fprintf(w, "%s\t%s", at.name, b.name)
			s := &groupRun{t: t, g: g, via: via, pool: p, step: at}
			start := time.Now()
			said := s.run(b, first)
			took := time.Since(start)
			p.Recycle()
			if err := g.awaitSync(); err != nil {
				t.Fatalf("%s, %s: %v", at.name, b.name, err)
			}
			for i, way := range groupModes() {
				m := &matrix{t: t, mode: &way}
				rows := g.rows(t, first+i)
				fmt.Fprintf(w, "\t%s", m.check(said[i], rows, at, fault{name: b.name}))
			}
			fmt.Fprintf(w, "\t%s\n", took.Round(time.Millisecond))
			first += len(said)
		}
	}
}

// asHosts puts a proxy before each server.
func (g *group) asHosts(t *testing.T) *group {
	g.title, g.via = "several hosts: "+g.title, map[string]*proxy.Proxy{}
	var via []*proxy.Proxy
	via, g.hosts = proxiesTo(t, g.servers...)
	for i, s := range g.servers {
		g.via[s.Addr()] = via[i]
	}
	return g
}

// proxiesTo starts a proxy to each server; hosts are their addresses, as a DSN has them.
func proxiesTo(t *testing.T, servers ...*server.Server) (via []*proxy.Proxy, hosts string) {
	t.Helper()
	var addrs []string
	for _, s := range servers {
		p := proxyTo(t, s)
		via, addrs = append(via, p), append(addrs, p.Addr())
	}
	return via, strings.Join(addrs, ",")
}

// rows counts a unit's, which are the same on each server: a node in sync may
// still have to apply what it has received.
func (g *group) rows(t *testing.T, unit int) int {
	t.Helper()
	for _, s := range g.servers {
		awaitNoTransaction(t, s)
	}
	var rows []int
	labtest.Eventually(t, fmt.Sprintf("all servers have the same rows of unit %d", unit), func() bool {
		rows = nil
		for _, s := range g.servers {
			rows = append(rows, count(t, s, fmt.Sprintf("ledger WHERE unit = %d", unit)))
		}
		return slices.Min(rows) == slices.Max(rows)
	})
	return rows[0]
}
