// takeover.go is a primary that falls silent for good, among hosts: its replica takes its
// place, and the old one is brought back as the replica. What the primary had acknowledged
// the replica has, for the two are semi-synchronous.

package soak

import (
	"context"
	"errors"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// silence is a way in which a primary falls silent.
type silence struct {
	label string
	do    func(n *nemesis, old *node) error
	lives bool // it goes on by itself, so that it need not be killed before it is brought back
}

var (
	silentDead   = silence{"primary killed", func(_ *nemesis, old *node) error { return old.Kill() }, false}
	silentFrozen = silence{"primary frozen", func(_ *nemesis, old *node) error { return old.Pause() }, false}
	// It is the far proxies that no longer pass anything on, which no other fault heals.
	silentCutOff = silence{"primary cut off", func(n *nemesis, old *node) error { n.cutOffFar(old, true); return nil }, true}
)

// takeOver has the replica take the place of a primary that falls silent.
func takeOver(how silence) strikeFunc {
	return func(ctx context.Context, n *nemesis, f fault) (string, error) {
		ready, cancel := context.WithTimeout(context.Background(), rolePatience)
		defer cancel()
		if err := n.ground.pair.CatchUp(ready); err != nil {
			return "", err
		}
		return n.replace(ctx, f, how)
	}
}

// withoutReplica is for how long, at most, a primary goes on that has lost its replica.
const withoutReplica = 300 * time.Millisecond

// takeOverAlone has the primary lose its replica before it falls silent. What is committed between
// the two it has for itself, and acknowledges nothing of it.
func takeOverAlone(ctx context.Context, n *nemesis, f fault) (string, error) {
	ready, cancel := context.WithTimeout(context.Background(), rolePatience)
	defer cancel()
	if err := n.ground.pair.CatchUp(ready); err != nil {
		return "", err
	}
	if err := n.follower().exec(ready, "STOP REPLICA IO_THREAD"); err != nil {
		return "", err
	}
	clock.Wait(ctx, nil, time.Duration(f.rolls[0]*float64(withoutReplica)))
	how := []silence{silentDead, silentFrozen, silentCutOff}[f.of(2, 3)]
	how.label += " after it lost its replica"
	return n.replace(ctx, f, how)
}

// replace silences the primary, and has the replica take its place.
func (n *nemesis) replace(ctx context.Context, f fault, how silence) (label string, err error) {
	old := n.ground.truth()
	if err := how.do(n, old); err != nil {
		return "", err
	}
	clock.Wait(ctx, nil, f.hold/2)
	if err := n.heal("promoting the replica", n.ground.pair.Promote); err != nil {
		return how.label, err
	}
	clock.Wait(ctx, nil, f.hold)
	back, err := n.bringBack(old, how.lives && f.of(1, 2) == 1)
	return how.label + back, err
}

// cutOffFar stops whatever is on its way to a node, or lets new connections through again:
// what was held up is lost then.
func (n *nemesis) cutOffFar(v *node, on bool) {
	for _, w := range n.waysTo(v) {
		w.far.HangNew(on)
		if on {
			w.far.Stall()
		} else {
			w.far.FIN()
		}
	}
}

func (n *nemesis) waysTo(v *node) (all []*way) {
	for i, other := range n.ground.nodes {
		if other == v {
			for _, l := range n.ground.lanes {
				all = append(all, l.ways[i])
			}
		}
	}
	return all
}

// bringBack has the old primary follow the new one. Before that it is fenced, as by any
// operator: it would commit what its sockets still hold. Its death is the surest fence; one
// that was only cut off may live on, without its clients, and takes new ones when it is read-only.
func (n *nemesis) bringBack(old *node, alive bool) (how string, err error) {
	for _, w := range n.waysTo(old) {
		w.far.FIN()
	}
	defer n.cutOffFar(old, false)
	if !alive {
		if err := old.Kill(); err != nil {
			return "", err
		}
	}
	how, err = n.rejoin()
	return how, errors.Join(err, n.healPair())
}

// rejoin has the old primary follow the new one: made anew if it has what nobody has acknowledged
// and the new one never received.
func (n *nemesis) rejoin() (how string, err error) {
	g := n.ground
	ctx, cancel := context.WithTimeout(context.Background(), healPatience)
	defer cancel()
	if err = g.pair.Rejoin(ctx); err == nil {
		return ", brought back", nil
	}
	g.log.Info("nemesis: the old primary is made anew", "cause", err)
	began := time.Now()
	err = g.pair.Rebuild(ctx)
	g.log.Info("nemesis: the old primary was made anew", "took", time.Since(began), "error", err)
	return ", made anew", err
}
