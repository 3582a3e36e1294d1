// servers.go is the faults of servers that are several: roles that change, nodes
// that leave and come back.

package soak

import (
	"context"
	"errors"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// victim is the node that a fault strikes: of a pair mostly the primary.
func (n *nemesis) victim(f fault) *node {
	g := n.ground
	v := g.nodes[f.of(3, len(g.nodes))]
	if g.shape == aPair && f.rolls[3] > 0.2 {
		v = g.truth()
	}
	if g.shape != alone {
		g.log.Info("nemesis: strikes "+v.name, "fault", f.kind.name)
	}
	return v
}

// lockable is the node on which a fault holds locks: locks of a replica's rows
// concern no unit.
func (n *nemesis) lockable(f fault, side int) *node {
	if g := n.ground; g.shape == aCluster {
		return g.nodes[f.of(2+side, len(g.nodes))]
	}
	return n.ground.truth()
}

// healServers has every server run, and all of them be one again.
func (n *nemesis) healServers() error {
	g := n.ground
	switch g.shape {
	case aPair:
		return n.healPair()
	case aCluster:
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
	end := f.of(1, 3)
	if !g.hosts {
		end = 0
	}
	label = "primary " + [...]string{"killed", "frozen for good", "cut off for good"}[end] + ", replica of other settings promoted"
	if f.of(0, 2) == 1 || end > 0 { // nobody is told that it takes no writes
		label += ", replies dropped before"
		for _, l := range g.lanes {
			l.far.DropToClient(true)
			defer l.far.DropToClient(false)
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
	heal := func() {}
	switch end {
	case 0:
		err = old.Kill()
	case 1:
		err = old.Pause()
	case 2:
		heal = g.cutOff(old)
	}
	if err != nil {
		return "", err
	}
	for _, l := range g.lanes {
		l.far.DropToClient(false)
	}
	clock.Wait(ctx, nil, f.hold)
	if err := n.heal("promoting the replica", func(ctx context.Context) error { return g.pair.Promote(ctx) }); err != nil {
		return label, err
	}
	g.lead()
	if end > 0 { // long enough to be noticed
		clock.Wait(ctx, nil, 2*time.Second)
	}
	err = old.Kill() // what it has in its buffers must not be executed
	heal()
	if err != nil {
		return label, err
	}
	rejoin := func(ctx context.Context) error { return g.pair.Rejoin(ctx) }
	return label, errors.Join(n.heal("having the old primary follow", rejoin), n.healPair())
}

// cutOff has nothing get to a node or back, until heal.
func (g *ground) cutOff(v *node) (heal func()) {
	var all ways
	for _, l := range g.lanes {
		for i, n := range g.nodes {
			if n == v {
				all = append(all, l.far[i])
			}
		}
	}
	all.Stall()
	all.HangNew(true)
	return func() {
		all.FIN()
		all.HangNew(false)
		all.Heal()
	}
}

// healPair has both run and the replica follow. Whoever is still connected to the
// replica is sent away, as by an operator: a transaction whose client has vanished
// would hold its locks against the replication, and from its pool there is no way
// to this server any more.
func (n *nemesis) healPair() error {
	g := n.ground
	for _, v := range g.nodes {
		if v == g.truth() {
			if err := n.heal("starting the primary", func(context.Context) error { return v.Start() }); err != nil {
				return err
			}
		}
	}
	return n.heal("having the replica follow", func(ctx context.Context) error {
		if err := g.pair.Replica().Start(); err != nil {
			return err
		}
		for _, v := range g.nodes {
			if v == g.truth() {
				continue
			}
			if err := n.sendAway(ctx, v); err != nil {
				return err
			}
		}
		catching, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		err := g.pair.CatchUp(catching)
		if err != nil {
			err = errors.Join(err, g.pair.Rejoin(ctx)) // refused, and no matter, if it follows already
		}
		return err
	})
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
	i := f.of(3, len(n.ground.nodes))
	n.ground.log.Info("nemesis: strikes "+n.ground.nodes[i].name, "fault", f.kind.name)
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
