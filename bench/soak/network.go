// network.go is the faults of the network: what the proxies of the lanes do.

package soak

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/lab/proxy"
)

// end closes what there is, before the one proxy or the other.
func end(label string, do func(*proxy.Proxy)) strikeFunc {
	return func(_ context.Context, n *nemesis, f fault) (string, error) {
		struck := ""
		for _, w := range n.ground.struck(f) {
			p := w.near
			if f.of(0, 2) == 1 {
				p = w.far
			}
			if p.Conns() > 0 {
				struck = label
			}
			do(p)
		}
		return struck, nil
	}
}

// maybeEnd ends the connections there are, or leaves them as they are, so that a
// fault of new ones is met.
func (f fault) maybeEnd(w *way) string {
	switch f.of(1, 3) {
	case 0:
		w.near.FIN()
		return ", FIN for the others"
	case 1:
		w.near.RST()
		return ", RST for the others"
	}
	return ""
}

func stall(ctx context.Context, n *nemesis, f fault) (string, error) {
	for _, w := range n.ground.struck(f) {
		w.near.Stall()
		defer w.near.Heal()
	}
	clock.Wait(ctx, nil, f.hold)
	return "stall", nil
}

// cutOff is a host that cannot be reached, by those who were connected or by others.
func cutOff(ctx context.Context, n *nemesis, f fault) (string, error) {
	for _, w := range n.ground.struck(f) {
		w.near.HangNew(true)
		w.near.Stall()
		defer w.near.Heal()
	}
	clock.Wait(ctx, nil, f.hold)
	return f.labelIf(true, "host cut off", time.Second), nil
}

// blackHole is a stall that does not end before the run does.
func blackHole(ctx context.Context, n *nemesis, f fault) (string, error) {
	for _, w := range n.ground.struck(f) {
		if !w.forGood {
			w.far.Heal() // of the last one
		}
		w.far.Stall()
	}
	clock.Wait(ctx, nil, f.hold)
	return "stall for good", nil
}

func drop(label string, do func(*proxy.Proxy, bool)) strikeFunc {
	return func(ctx context.Context, n *nemesis, f fault) (string, error) {
		for _, w := range n.ground.struck(f) {
			do(w.near, true)
			defer do(w.near, false)
		}
		clock.Wait(ctx, nil, f.hold)
		return label, nil
	}
}

func hangNew(ctx context.Context, n *nemesis, f fault) (string, error) {
	others := ""
	for _, w := range n.ground.struck(f) {
		w.near.HangNew(true)
		defer w.near.Heal()
		others = f.maybeEnd(w)
	}
	clock.Wait(ctx, nil, f.hold)
	return "hang new" + others, nil
}

func refuse(ctx context.Context, n *nemesis, f fault) (string, error) {
	struck, others := n.ground.struck(f), ""
	for _, w := range struck {
		w.near.Refuse()
		others = f.maybeEnd(w)
	}
	clock.Wait(ctx, nil, f.hold)
	return "refuse" + others, n.heal("reopening", func(context.Context) error {
		var errs []error
		for _, w := range struck {
			errs = append(errs, w.near.Reopen())
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
		var ways []*way
		for _, l := range n.ground.lanes {
			w := l.ways[l.used()]
			ways = append(ways, w)
			p := w.near
			if forGood && w.forGood {
				p = w.far
			}
			do := p.CutBefore
			if after {
				do = p.CutAfter
			}
			cuts = append(cuts, do(match(f), fault))
		}
		timer := time.NewTimer(cutPatience)
		defer timer.Stop()
		select {
		case <-cuts[0].Done():
		case <-timer.C:
		case <-ctx.Done():
		}
		for _, c := range cuts {
			c.Cancel()
		}
		if fault == proxy.Stall {
			clock.Wait(ctx, nil, f.hold)
			for _, w := range ways {
				w.near.Heal()
			}
		}
		if !cuts[0].Fired() {
			return "", nil
		}
		return fmt.Sprintf("cut %s %s, %s", place, what, name), nil
	}
}
