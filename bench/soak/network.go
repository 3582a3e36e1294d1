// network.go is the faults of the network: what the proxies of the lanes do.

package soak

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/lab/proxy"
)

// end closes what there is, before the one proxy or the other.
func end(label string, do func(*proxy.Proxy)) strikeFunc {
	return func(_ context.Context, n *nemesis, f fault) (string, error) {
		struck := ""
		for _, l := range n.ground.lanes {
			p := l.near
			if f.of(0, 2) == 1 {
				p = l.far
			}
			if p.Conns() > 0 && l == n.ground.lanes[0] {
				struck = label
			}
			p.each(do)
		}
		return struck, nil
	}
}

// maybeEnd ends the connections there are, or leaves them as they are, so that a
// fault of new ones is met.
func (f fault) maybeEnd(l *lane) string {
	switch f.of(1, 3) {
	case 0:
		l.near.FIN()
		return ", FIN for the others"
	case 1:
		l.near.RST()
		return ", RST for the others"
	}
	return ""
}

func stall(ctx context.Context, n *nemesis, f fault) (string, error) {
	for _, l := range n.ground.lanes {
		l.near.Stall()
		defer l.near.Heal()
	}
	clock.Wait(ctx, nil, f.hold)
	return "stall", nil
}

// blackHole is a stall that does not end before the run does.
func blackHole(ctx context.Context, n *nemesis, f fault) (string, error) {
	for _, l := range n.ground.lanes {
		if !l.forGood {
			l.far.Heal() // of the last one
		}
		l.far.Stall()
	}
	clock.Wait(ctx, nil, f.hold)
	return "stall for good", nil
}

func drop(label string, do func(*proxy.Proxy, bool)) strikeFunc {
	return func(ctx context.Context, n *nemesis, f fault) (string, error) {
		for _, l := range n.ground.lanes {
			l.near.each(func(p *proxy.Proxy) { do(p, true) })
			defer l.near.each(func(p *proxy.Proxy) { do(p, false) })
		}
		clock.Wait(ctx, nil, f.hold)
		return label, nil
	}
}

func hangNew(ctx context.Context, n *nemesis, f fault) (string, error) {
	label := "hang new"
	for i, l := range n.ground.lanes {
		l.near.HangNew(true)
		defer l.near.Heal()
		if others := f.maybeEnd(l); i == 0 {
			label += others
		}
	}
	clock.Wait(ctx, nil, f.hold)
	return label, nil
}

func refuse(ctx context.Context, n *nemesis, f fault) (string, error) {
	label := "refuse"
	for i, l := range n.ground.lanes {
		l.near.Refuse()
		if others := f.maybeEnd(l); i == 0 {
			label += others
		}
	}
	clock.Wait(ctx, nil, f.hold)
	return label, n.heal("reopening", func(context.Context) error {
		var errs []error
		for _, l := range n.ground.lanes {
			errs = append(errs, l.near.Reopen())
		}
		return errors.Join(errs...)
	})
}

func isCommit(fault) proxy.Match { return proxy.QueryPrefix("COMMIT") }

// statementBeginnings are the statements that a unit or its pool sends as text.
var statementBeginnings = []string{
	"START TRANSACTION", "INSERT INTO", "UPDATE", "SELECT", "SAVEPOINT", "ROLLBACK", "RELEASE",
}

// isStatement matches one sort of statement or another, as the fault has it.
func isStatement(f fault) proxy.Match {
	switch n := f.of(2, len(statementBeginnings)+3); n {
	case 0:
		return proxy.Command(proxy.ComPing)
	case 1:
		return proxy.Command(proxy.ComStmtPrepare)
	case 2:
		return proxy.Command(proxy.ComStmtExecute)
	default:
		return proxy.QueryPrefix(statementBeginnings[n-3])
	}
}

// cutPatience is how long a cut waits for its command.
const cutPatience = 400 * time.Millisecond

// cut does away with a command, or with the reply to it, or holds it up.
func cut(what string, match func(fault) proxy.Match) strikeFunc {
	return func(ctx context.Context, n *nemesis, f fault) (string, error) {
		how := f.of(0, 5)
		fault := []proxy.Fault{proxy.FIN, proxy.RST, proxy.KillServerSide, proxy.Stall, proxy.Stall}[how]
		name := []string{"FIN", "RST", "server side closed", "stall", "stall for good"}[how]
		forGood := how == 4
		after := f.rolls[1] < 0.6
		place := "before"
		if after {
			place = "after"
		}
		var cuts []*proxy.Cut
		for _, l := range n.ground.lanes {
			p := l.near
			if forGood && l.forGood {
				p = l.far
			}
			for _, p := range p {
				do := p.CutBefore
				if after {
					do = p.CutAfter
				}
				cuts = append(cuts, do(match(f), fault))
			}
		}
		own := cuts[:len(n.ground.lanes[0].near)] // those of the first lane
		struck := func() bool { return slices.ContainsFunc(own, (*proxy.Cut).Fired) }
		for begun := time.Now(); !struck() && time.Since(begun) < cutPatience && ctx.Err() == nil; {
			clock.Wait(ctx, nil, time.Millisecond)
		}
		for _, c := range cuts {
			c.Cancel()
		}
		if fault == proxy.Stall {
			clock.Wait(ctx, nil, f.hold)
			for _, l := range n.ground.lanes {
				l.near.Heal()
			}
		}
		if !struck() {
			return "", nil
		}
		return fmt.Sprintf("cut %s %s, %s", place, what, name), nil
	}
}
