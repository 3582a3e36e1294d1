// servers.go is the faults of servers that are several: roles that change, nodes
// that leave and come back.

package soak

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// victim is the node that a fault strikes: of a pair mostly the primary, of hosts the
// one in use.
func (n *nemesis) victim(f fault) *node {
	g := n.ground
	v := g.nodes[f.of(3, len(g.nodes))]
	switch {
	case g.shape.is(pairs) && f.rolls[3] > 0.2:
		v = g.truth()
	case g.shape == hostCluster && f.rolls[2] > 0.4:
		v = g.nodes[g.lanes[0].used()]
	}
	if g.shape != alone {
		g.log.Info("nemesis: strikes "+v.name, "fault", f.kind.name)
	}
	return v
}

// lockable is the node on which a fault holds locks: locks of a replica's rows
// concern no unit.
func (n *nemesis) lockable(f fault, side int) *node {
	if g := n.ground; g.shape.is(clusters) {
		return g.nodes[f.of(2+side, len(g.nodes))]
	}
	return n.ground.truth()
}

// healServers has every server run, and all of them be one again.
func (n *nemesis) healServers() error {
	g := n.ground
	switch {
	case g.shape.is(pairs):
		return n.healPair()
	case g.shape.is(clusters):
		return n.healCluster()
	}
	return n.heal("starting the server", func(context.Context) error { return g.nodes[0].Start() })
}

// What a change of roles may take, which is brought to its end even if the run's
// has come.
const rolePatience = 8 * time.Second

// switchRoles has the two change places while connections stay where they are,
// and then the balancer lead to the new primary.
func switchRoles(ctx context.Context, n *nemesis, f fault) (string, error) {
	g := n.ground
	before := g.truth()
	switching, cancel := context.WithTimeout(context.Background(), rolePatience)
	defer cancel()
	err := g.pair.Switch(switching)
	if g.truth() == before {
		return "", err
	}
	clock.Wait(ctx, nil, f.hold/2)
	g.lead()
	clock.Wait(ctx, nil, f.hold/2)
	return "roles switched, to other settings", errors.Join(err, n.healPair())
}

// rest has the workers rest for longer than one of the two keeps idle connections.
func rest(ctx context.Context, n *nemesis, f fault) (string, error) {
	n.run.work.lull(f.hold)
	clock.Wait(ctx, nil, f.hold)
	return "everybody rests", nil
}

// failOver kills the primary for good and has the replica take its place. What a
// replica lacks would be lost, and nobody promises otherwise: so the primary
// takes no writes from a moment on, which the clients are told or, if the replies
// are dropped, not.
func failOver(ctx context.Context, n *nemesis, f fault) (label string, err error) {
	g := n.ground
	label = "primary killed, replica of other settings promoted"
	if f.of(0, 2) == 1 {
		label += ", replies dropped before"
		for _, l := range g.lanes {
			l.ways[0].far.DropToClient(true)
			defer l.ways[0].far.DropToClient(false)
		}
	}
	failing, cancel := context.WithTimeout(context.Background(), rolePatience)
	defer cancel()
	old := g.truth()
	err = old.SetReadOnly(true)
	if err == nil {
		err = g.pair.CatchUp(failing)
	}
	if err != nil {
		return "", errors.Join(err, n.heal("read_only", func(context.Context) error { return old.SetReadOnly(false) }))
	}
	if err := old.Kill(); err != nil {
		return "", err
	}
	for _, l := range g.lanes {
		l.ways[0].far.DropToClient(false)
	}
	clock.Wait(ctx, nil, f.hold)
	if err := n.heal("promoting the replica", func(ctx context.Context) error { return g.pair.Promote(ctx) }); err != nil {
		return label, err
	}
	g.lead()
	rejoin := func(ctx context.Context) error { return g.pair.Rejoin(ctx) }
	return label, errors.Join(n.heal("having the old primary follow", rejoin), n.healPair())
}

// healPair has both run and the replica follow. Whoever is still connected to the
// replica is sent away, as by an operator: a transaction whose client has vanished
// would hold its locks against the replication, and from its pool there is no way
// to this server any more. A pool that has each server's address must leave it by itself.
func (n *nemesis) healPair() error {
	g := n.ground
	if err := n.heal("starting the primary", func(context.Context) error { return g.truth().Start() }); err != nil {
		return err
	}
	return n.heal("having the replica follow", func(ctx context.Context) error {
		if err := g.pair.Replica().Start(); err != nil {
			return err
		}
		if g.shape == aPair {
			if err := n.sendAway(ctx, n.follower()); err != nil {
				return err
			}
		}
		catching, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		err := g.pair.CatchUp(catching)
		if err != nil && g.shape == hostPair {
			g.log.Info("nemesis: the replica does not catch up: the pool's connections are sent away", "error", err)
			err = errors.Join(err, n.sendAway(ctx, n.follower()))
		}
		if err != nil {
			err = errors.Join(err, g.pair.Rejoin(ctx)) // refused, and no matter, if it follows already
		}
		return err
	})
}

// follower is the node that is the replica.
func (n *nemesis) follower() *node {
	nodes := n.ground.nodes
	if nodes[0] == n.ground.truth() {
		return nodes[1]
	}
	return nodes[0]
}

// sendAway ends all connections of the lanes to a node.
func (n *nemesis) sendAway(ctx context.Context, v *node) error {
	for _, l := range n.ground.lanes {
		ids, err := v.list(ctx, "SELECT id FROM information_schema.processlist WHERE user = '"+l.user+"'")
		if err != nil {
			return err
		}
		for _, id := range ids {
			if _, err := v.kill(ctx, "KILL", id); err != nil {
				return err
			}
		}
	}
	return nil
}

// hitNode strikes a node, waits, and has it come back to the others.
func (n *nemesis) hitNode(ctx context.Context, f fault, label string, hit, mend func(i int) error) (string, error) {
	i := slices.Index(n.ground.nodes, n.victim(f))
	err := hit(i)
	if err == nil {
		clock.Wait(ctx, nil, f.hold)
	}
	return label, errors.Join(err, n.heal("mending "+n.ground.nodes[i].name, func(context.Context) error { return mend(i) }), n.healCluster())
}

func killNode(ctx context.Context, n *nemesis, f fault) (string, error) {
	return n.hitNode(ctx, f, "node killed and started", n.ground.cluster.KillNode, n.startNode)
}

// startNode takes what time it needs: what a node missed may be much.
func (n *nemesis) startNode(i int) error {
	return n.ground.cluster.StartNode(context.Background(), i)
}

func isolateNode(ctx context.Context, n *nemesis, f fault) (string, error) {
	c := n.ground.cluster
	return n.hitNode(ctx, f, "node isolated", func(i int) error {
		isolating, cancel := context.WithTimeout(context.Background(), 2*rolePatience)
		defer cancel()
		return c.Isolate(isolating, i)
	}, func(i int) error {
		healing, cancel := context.WithTimeout(context.Background(), 2*rolePatience)
		defer cancel()
		return c.Heal(healing, i)
	})
}

// freezeNode freezes a node for so short that the others wait for it, or for so
// long that they go on without. In between nobody has noticed yet when it goes on: were
// another node killed then, none would have a quorum any more, for ever.
func freezeNode(ctx context.Context, n *nemesis, f fault) (string, error) {
	nodes := n.ground.nodes
	label := "node frozen, short"
	if f.hold > 1500*time.Millisecond {
		label = "node frozen, long"
	}
	return n.hitNode(ctx, f, label, func(i int) error { return nodes[i].Pause() }, func(i int) error {
		err := nodes[i].Resume()
		clock.Wait(context.Background(), nil, 2*time.Second) // evs.suspect_timeout, and some
		return err
	})
}

// healCluster has all nodes run, also one that has ended by itself, and waits
// until they are one.
func (n *nemesis) healCluster() error {
	c := n.ground.cluster
	for i, v := range n.ground.nodes {
		began := time.Now()
		if err := n.heal("starting "+v.name, func(context.Context) error { return n.startNode(i) }); err != nil {
			return err
		}
		if time.Since(began) > 200*time.Millisecond {
			n.ground.log.Warn("nemesis: a node had ended by itself", "node", v.name)
		}
	}
	return n.heal("the nodes becoming one", c.AwaitSynced)
}
