package behaviour_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// HAProxy leads to a server that is not fit any more until its checks have found that out;
// then it cuts that server's clients off.
func TestUnitsSurviveAFailoverBehindHAProxy(t *testing.T) {
	for name, b := range map[string]struct {
		start func(t *testing.T) *group
		fit   func(context.Context, *server.Server) bool
	}{
		"primary and replica, MariaDB": {func(t *testing.T) *group { return pairOf(t, server.MariaDB) }, server.TakesWrites},
		"primary and replica, MySQL":   {func(t *testing.T) *group { return pairOf(t, server.MySQL) }, server.TakesWrites},
		"Group Replication":            {func(t *testing.T) *group { return replicatedGroupOf(t, time.Second) }, server.TakesWrites},
		"Galera":                       {clusterOf, server.IsSynced},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := b.start(t)
			h := servertest.RunHAProxy(t, g.servers, b.fit)
			p := open(t, g.servers[0].AppDSN(h.Addr()), "pool_timeout=2m&pool_max_elapsed=2m&pool_max_attempts=100")
			if err := p.CreateCommitTable(t.Context()); err != nil {
				t.Fatal(err)
			}
			g.workThroughAll(t, p)
		})
	}
}

// The pool knows all members itself, and no balancer leads it.
func TestUnitsSurviveAFailoverOfAClusterAmongSeveralHosts(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) *group{
		"Group Replication": func(t *testing.T) *group { return replicatedGroupOf(t, time.Second) },
		"Galera":            clusterOf,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := start(t).asHosts(t)
			p := open(t, g.servers[0].AppDSN(g.hosts), "pool_timeout=2m&pool_max_elapsed=2m&pool_max_attempts=100")
			if err := p.CreateCommitTable(t.Context()); err != nil {
				t.Fatal(err)
			}
			if g.hit != nil { // any node would do; the one that the pool is at is to be hit
				g.before = func() []string {
					port := portOf(t, p)
					*g.hit = slices.IndexFunc(g.servers, func(s *server.Server) bool { return isAt(s, port) })
					return nil
				}
			}
			g.workThroughAll(t, p)
		})
	}
}

// A group in which every member takes writes: the pool uses all of them, and loses one.
func TestUnitsOnAGroupThatWritesEverywhere(t *testing.T) {
	t.Parallel()
	g := servertest.RunGroup(t, 3, "--innodb-lock-wait-timeout=1")
	members := g.Members()
	err := errors.Join(members[0].Exec(ledgerTable), members[0].Exec("SELECT group_replication_switch_to_multi_primary_mode()"), g.AwaitOnline(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	many := (&group{servers: members, before: func() []string { return nil }, awaitSync: func() error { return g.AwaitOnline(t.Context()) }}).asHosts(t)
	p := open(t, members[0].AppDSN(many.hosts), "pool_target=any&pool_timeout=2m&pool_max_elapsed=2m&pool_max_attempts=100")
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	idsOf(t, p, 18) // opens as many
	via := many.via[members[1].Addr()]
	many.workThrough(t, p, groupFault{name: "a member that cannot be reached", inject: func() error {
		via.Refuse()
		via.RST()
		return nil
	}, repair: via.Reopen}, 0)
	used := 0
	for _, s := range members {
		used += min(many.via[s.Addr()].Counts().Conns, 1)
	}
	if used < 2 {
		t.Errorf("the connections led to %d members", used)
	}
}

// workThroughAll is workThrough for each fault.
func (g *group) workThroughAll(t *testing.T, p *livepool.Pool) {
	first := 0
	for _, f := range g.faults {
		if !f.losesLatest {
			first = g.workThrough(t, p, f, first)
		}
	}
}

// workThrough has workers run units, numbered from first, before, during and after a fault,
// and returns the next number.
func (g *group) workThrough(t *testing.T, p *livepool.Pool, f groupFault, first int) (next int) {
	w := (&workers{t: t, pool: p, during: f.name + ", ", next: first}).start(8)
	time.Sleep(500 * time.Millisecond)
	g.before() // has the fault hit the primary
	begun := time.Now()
	err := f.inject()
	injected := time.Now()
	time.Sleep(2 * time.Second)
	err = errors.Join(err, f.repair())
	time.Sleep(500 * time.Millisecond)
	next = w.stop()
	if err := errors.Join(err, g.awaitSync()); err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
	for i, s := range g.servers {
		labtest.Eventually(t, fmt.Sprintf("%s: server %d has a row of each unit", f.name, i), func() bool { return count(t, s, "ledger") == next })
		var units int
		if err := s.QueryRow("SELECT COUNT(DISTINCT unit) FROM test.ledger", &units); err != nil || units != next {
			t.Errorf("%s: server %d has rows of %d units of %d: %v", f.name, i, units, next, err)
		}
	}
	slices.SortFunc(w.applied, time.Time.Compare)
	t.Logf("%s, which took %v: %d units, %v without one; %d run again, %d commits unknown at first", f.name, injected.Sub(begun).Round(time.Millisecond),
		next-first, longestGap(w.applied, begun).Round(time.Millisecond), p.Stats().Retried, p.Stats().CommitsUnknown)
	return next
}
