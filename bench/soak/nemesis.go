// nemesis.go decides which fault strikes when, from the seed alone, and keeps
// what has struck. The faults themselves are faults.go's.

package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// hand is one of those that strike independently of each other: what one does
// undoes nothing of the other's, so that their faults may meet.
type hand int

const (
	network hand = iota
	theServer
	theClient
	hands
)

// kind is a sort of fault.
type kind struct {
	name   string
	hand   hand
	on     shape // of the servers that it strikes
	weight int
	hold   span // how long it lasts, where it lasts
	// strike does it, and undoes it after f.hold or when ctx ends. It returns
	// what has struck, "" if nothing has.
	strike strikeFunc
	traits trait
}

// trait is what else is to be known of a kind.
type trait int

const (
	// honest: nobody loses a connection or an answer that another has asked for.
	honest trait = 1 << iota
	// exclusive: nothing else strikes meanwhile.
	exclusive
	// deadly: the server goes down with what it has shown and not made durable.
	deadly
)

// span is from the one to the other, in milliseconds.
type span struct{ from, to int }

func (s span) draw(rng *rand.Rand) time.Duration {
	return time.Duration(s.from+rng.IntN(s.to-s.from+1)) * time.Millisecond
}

// fault is one that was decided on.
type fault struct {
	number int
	kind   *kind
	pause  time.Duration // before it
	hold   time.Duration
	rolls  [4]float64 // whatever else is to be decided
}

// of picks one of n by a roll.
func (f fault) of(roll, n int) int { return min(int(f.rolls[roll]*float64(n)), n-1) }

// The pauses between the faults of a hand: short, and now and then one in which
// much gets done.
var (
	pauses   = [hands]span{{50, 450}, {100, 700}, {100, 800}}
	respites = [hands]span{{600, 1200}, {800, 1600}, {800, 1600}}
)

const respite = 0.08 // the share of the latter

// schedule is the faults of one hand, one after the other.
type schedule struct {
	rng    *rand.Rand
	hand   hand
	kinds  []*kind
	number int
}

// kindsOn are those that strike servers of that shape and are wanted.
func kindsOn(on shape, only []string) (all []*kind) {
	for _, k := range kinds {
		if k.on&on != 0 && (len(only) == 0 || slices.Contains(only, k.name)) {
			all = append(all, k)
		}
	}
	return all
}

// newSchedule plans from the seed. It is nil if no kind of the hand's is wanted.
func newSchedule(seed uint64, h hand, on shape, only []string) *schedule {
	s := &schedule{rng: rand.New(rand.NewPCG(seed, uint64(h)|1<<63)), hand: h}
	for _, k := range kindsOn(on, only) {
		if k.hand == h {
			s.kinds = append(s.kinds, k)
		}
	}
	if s.kinds == nil {
		return nil
	}
	return s
}

func (s *schedule) draw() fault {
	var weights []int
	for _, k := range s.kinds {
		weights = append(weights, k.weight)
	}
	s.number++
	f := fault{number: s.number, kind: pick(s.rng, s.kinds, weights...), pause: pauses[s.hand].draw(s.rng)}
	if chance(s.rng, respite) {
		f.pause = respites[s.hand].draw(s.rng)
	}
	f.hold = f.kind.hold.draw(s.rng)
	for i := range f.rolls {
		f.rolls[i] = s.rng.Float64()
	}
	return f
}

func kindNames() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// event is a fault that has struck.
type event struct {
	label    string
	from, to time.Duration
	lossy    bool // it is of a kind that is not honest
	deadly   bool
}

// nemesis is all hands.
type nemesis struct {
	run    *run
	ground *ground
	alone  sync.RWMutex // held for writing by a fault that is exclusive, for reading by each other

	mu     sync.Mutex // guards what follows
	events []event
	now    [hands]string // what is being done, for the progress line
}

func newNemesis(r *run) *nemesis { return &nemesis{run: r, ground: r.ground} }

// rage strikes until ctx ends, and returns when all is healed. An error is that
// it could not be.
func (n *nemesis) rage(ctx context.Context) error {
	var wg sync.WaitGroup
	for h := range hands {
		if s := newSchedule(n.run.set.seed, h, n.ground.shape, n.run.set.only); s != nil {
			wg.Go(func() {
				for f := s.draw(); ctx.Err() == nil; f = s.draw() {
					clock.Wait(ctx, nil, f.pause)
					if ctx.Err() == nil {
						n.strike(ctx, f)
					}
				}
			})
		}
	}
	<-ctx.Done()
	wg.Wait()
	return n.healAll()
}

func (n *nemesis) strike(ctx context.Context, f fault) {
	if f.kind.traits&exclusive != 0 {
		n.alone.Lock()
		defer n.alone.Unlock()
	} else {
		n.alone.RLock()
		defer n.alone.RUnlock()
	}
	h := f.kind.hand
	n.enter(h, f.kind.name)
	defer n.enter(h, "")
	from := n.run.now()
	label, err := f.kind.strike(ctx, n, f)
	if err != nil && ctx.Err() == nil {
		n.ground.log.Info("nemesis: a fault did not go as it should", "fault", f.kind.name, "struck", label, "error", err)
	}
	if label == "" {
		return
	}
	n.ground.log.Info("nemesis: "+label, "from", from, "to", n.run.now())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, event{label, from, n.run.now(), f.kind.traits&honest == 0, f.kind.traits&deadly != 0})
}

func (n *nemesis) enter(h hand, what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now[h] = what
}

// doing is what strikes now, and how many have.
func (n *nemesis) doing() (count int, what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for _, s := range n.now {
		if s != "" {
			all = append(all, s)
		}
	}
	return len(n.events), strings.Join(all, " + ")
}

// healPatience is how long the healing of one thing may take: the start of a
// server on a busy machine.
const healPatience = 90 * time.Second

// heal does f until it succeeds.
func (n *nemesis) heal(what string, f func(ctx context.Context) error) error {
	deadline := time.Now().Add(healPatience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := f(ctx)
		cancel()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not possible for %s: %w", what, healPatience, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// healAll ends whatever there is, whether or not it should have ended already.
func (n *nemesis) healAll() error {
	for _, v := range n.ground.nodes {
		v.Resume()
	}
	if err := n.healServers(); err != nil {
		return err
	}
	for _, l := range n.ground.lanes {
		if err := n.heal("healing the network", func(context.Context) error { return l.heal() }); err != nil {
			return err
		}
	}
	return n.heal("setting the servers' variables", n.resetVariables)
}
