// plan.go says what a unit does, which the seed and the unit's number decide
// alone. It runs nothing.

package soak

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// mode is how the unit asks to be applied once.
type mode int

const (
	plain mode = iota
	once
	verify
	readOnly
)

func (m mode) String() string { return [...]string{"no option", "Once", "VerifyCommit", "ReadOnly"}[m] }

func (m mode) keyed() bool { return m == once || m == verify }

// style is how it sends its statements.
type style int

const (
	literal  style = iota
	withArgs       // which the driver prepares, executes and closes
	prepared
	styles
)

func (s style) String() string { return [...]string{"literal", "with arguments", "prepared"}[s] }

// step is one thing a unit does.
type step int

const (
	stepLedger   step = iota // its row, with the transfer in it
	stepCounter              // one more unit
	stepTransfer             // between two accounts
	stepInner                // a unit inside it that succeeds: a row and a transfer of its own
	stepUndone               // one that fails: a row, and money that would be lost
	stepLook                 // is its row there as often as it should be?
	stepSum                  // of a read-only unit: are the accounts what they were at the first look?
	stepCount                // is the counter?
)

var stepNames = [...]string{"ledger", "counter", "transfer", "inner", "undone", "look", "sum", "count"}

func (s step) String() string { return stepNames[s] }

// fate is how its function ends, if nothing happens to it.
type fate int

const (
	succeeds fate = iota
	fails         // with an error of its own
	panics
)

func (f fate) String() string { return [...]string{"succeeds", "fails", "panics"}[f] }

// plan is one delivery of a unit.
type plan struct {
	unit     int64
	delivery int // 0 is the first
	of       int // deliveries that there are; more than one only under Once
	mode     mode
	style    style
	src, dst int
	amount   int

	after  time.Duration // the first delivery, for those that come later
	steps  []step
	pauses []time.Duration // before each step
	fate   fate
	fateAt int // the number of steps before it
	// careless swallows the errors of its statements and returns nil.
	careless bool
	// ends is when the unit's context does, 0 for never; cancelled says that
	// it is cancelled rather than timed out.
	ends      time.Duration
	cancelled bool
	// hasty is the step whose context ends after haste, -1 for none.
	hasty int
	haste time.Duration
	// think is how long the worker rests afterwards.
	think time.Duration
}

// writes says whether it leaves a row if it is applied.
func (p *plan) writes() bool { return p.mode != readOnly }

func (p *plan) has(s step) bool { return slices.Contains(p.steps, s) }

func (p *plan) shard() int { return int(p.unit % shards) }

// name is by which the pool's log and errors tell of it.
func (p *plan) name() string { return fmt.Sprintf("unit %d/%d", p.unit, p.delivery) }

func (p *plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, delivery %d of %d, %d from %d to %d:", p.mode, p.style, p.delivery+1, p.of, p.amount, p.src, p.dst)
	for i, s := range p.steps {
		if p.fate != succeeds && i == p.fateAt {
			fmt.Fprintf(&b, " [%s]", p.fate)
		}
		fmt.Fprintf(&b, " %s", s)
		if i == p.hasty {
			fmt.Fprintf(&b, "(within %s)", p.haste)
		}
	}
	if p.careless {
		b.WriteString(", swallows errors")
	}
	if p.ends > 0 {
		fmt.Fprintf(&b, ", its context ends after %s", p.ends)
	}
	return b.String()
}

// planOf is what a delivery of a unit does.
func planOf(seed uint64, unit int64, delivery int) *plan {
	rng := rand.New(rand.NewPCG(seed, uint64(unit)<<8)) // what is the same in all deliveries
	p := &plan{
		unit: unit, delivery: delivery, of: 1,
		mode:   pick(rng, []mode{plain, once, verify, readOnly}, 30, 30, 28, 12),
		src:    rng.IntN(accounts),
		amount: 1 + rng.IntN(100),
	}
	p.dst = (p.src + 1 + rng.IntN(accounts-1)) % accounts
	if p.mode == once && chance(rng, 0.4) {
		p.of = 2 + rng.IntN(2)
	}

	rng = rand.New(rand.NewPCG(seed, uint64(unit)<<8|uint64(delivery+1)))
	p.style = style(rng.IntN(int(styles)))
	p.think = time.Duration(rng.IntN(20)) * time.Millisecond
	if delivery > 0 && chance(rng, 0.7) { // the others at the same time as the first
		p.after = time.Duration(rng.IntN(3000)) * time.Millisecond
	}
	p.planSteps(rng)
	p.planEnd(rng)
	for range p.steps {
		pause := time.Duration(0)
		if chance(rng, 0.3) {
			pause = time.Duration(rng.IntN(15)) * time.Millisecond
		}
		p.pauses = append(p.pauses, pause)
	}
	return p
}

func (p *plan) planSteps(rng *rand.Rand) {
	if p.mode == readOnly {
		p.steps = []step{stepSum, stepCount, stepSum, stepCount}
		return
	}
	p.steps = []step{stepLedger, stepCounter, stepTransfer}
	p.careless = chance(rng, 0.06)
	for _, s := range []struct {
		step
		share float64
	}{{stepInner, 0.15}, {stepUndone, 0.2}, {stepLook, 0.25}} {
		// One that swallows errors would swallow those of a unit inside it too,
		// which may be undone without the rest.
		if chance(rng, s.share) && !(p.careless && s.step == stepInner) {
			p.steps = append(p.steps, s.step)
		}
	}
	// In any order, so that the units get into each other's way.
	rng.Shuffle(len(p.steps), func(i, j int) { p.steps[i], p.steps[j] = p.steps[j], p.steps[i] })
}

func (p *plan) planEnd(rng *rand.Rand) {
	p.fate = pick(rng, []fate{succeeds, fails, panics}, 90, 7, 3)
	p.fateAt = rng.IntN(len(p.steps) + 1)
	if chance(rng, 0.12) {
		p.ends = time.Duration(2+rng.IntN(400)) * time.Millisecond
		if chance(rng, 0.3) {
			p.ends = time.Duration(400+rng.IntN(3000)) * time.Millisecond
		}
		p.cancelled = chance(rng, 0.5)
	}
	p.hasty, p.haste = -1, time.Duration(1+rng.IntN(30))*time.Millisecond
	if chance(rng, 0.05) && !p.careless {
		p.hasty = rng.IntN(len(p.steps))
	}
}

func chance(rng *rand.Rand, p float64) bool { return rng.Float64() < p }

// pick draws one of the values by their weights.
func pick[T any](rng *rand.Rand, values []T, weights ...int) T {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	n := rng.IntN(sum)
	for i, w := range weights {
		if n -= w; n < 0 {
			return values[i]
		}
	}
	panic("unreachable")
}
