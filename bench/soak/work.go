// work.go runs the units on the pool, and keeps what each was told. What a unit's
// function does is unit.go's affair.

package soak

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/clock"
)

// delivery is one that was begun, as seen from outside the pool.
type delivery struct {
	*plan
	plainSQL  bool // it was run without a pool's units: no AfterCommit, no unit inside it
	onCluster bool // of several nodes that take writes

	mu       sync.Mutex // guards what follows
	started  time.Duration
	ended    time.Duration // 0 while it runs
	err      error
	attempts []attempt
	hooks    []int    // the attempts whose AfterCommit functions have run
	wrong    []string // what must not be, as the unit itself has seen it
}

// attempt is one run of the unit's function.
type attempt struct {
	number int
	began  time.Duration
	ended  time.Duration
	notes  []string // the errors it met
	whole  bool     // it came to its end
}

// sees notes that something is there that must not be.
func (d *delivery) sees(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wrong = append(d.wrong, fmt.Sprintf(format, args...))
}

func (d *delivery) hooked(attempt int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hooks = append(d.hooks, attempt)
}

func (d *delivery) beginAttempt(number int, now time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attempts = append(d.attempts, attempt{number: number, began: now})
}

func (d *delivery) endAttempt(now time.Duration, whole bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := &d.attempts[len(d.attempts)-1]
	a.ended, a.whole = now, whole
}

func (d *delivery) met(s step, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := &d.attempts[len(d.attempts)-1]
	a.notes = append(a.notes, fmt.Sprintf("%s: %v", s, err))
}

func (d *delivery) end(now time.Duration, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended, d.err = now, err
}

// roster is the deliveries of one lane: those that were begun, and those that are
// to come.
type roster struct {
	seed      uint64
	onCluster bool
	next      atomic.Int64

	mu      sync.Mutex // guards what follows
	all     []*delivery
	waiting []*delivery // begun when their time has come
	dues    []time.Duration
}

func newRoster(r *run) roster {
	return roster{seed: r.set.seed, onCluster: r.ground.shape.is(clusters)}
}

// plan has the units of a cluster spell their statements out: a node of MariaDB
// 10.11 that ends a transaction in favour of another's may say nothing of it to who
// prepares a locking SELECT, and runs the rest statement by statement. It does so to
// plain connections without any fault, on which nothing can be proved then.
func (r *roster) plan(unit int64, delivery int) *plan {
	p := planOf(r.seed, unit, delivery)
	if r.onCluster {
		p.style = literal
	}
	return p
}

// take returns what is to be delivered now: a unit again whose time has come, or
// a new one; nil when there is nothing left and no new one is wanted.
func (r *roster) take(now time.Duration, fresh, again bool) *delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, due := range r.dues {
		if due <= now || !fresh {
			d := r.waiting[i]
			r.waiting, r.dues = slices.Delete(r.waiting, i, i+1), slices.Delete(r.dues, i, i+1)
			r.all = append(r.all, d)
			d.started = now
			return d
		}
	}
	if !fresh {
		return nil
	}
	d := &delivery{plan: r.plan(r.next.Add(1), 0), onCluster: r.onCluster, started: now}
	for n := 1; again && n < d.of; n++ {
		later := &delivery{plan: r.plan(d.unit, n), onCluster: r.onCluster}
		r.waiting, r.dues = append(r.waiting, later), append(r.dues, now+later.after)
	}
	r.all = append(r.all, d)
	return d
}

func (r *roster) deliveries() []*delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// work is the units and those who run them.
type work struct {
	roster
	run  *run
	pool *livepool.Pool
	lane *lane

	lullUntil atomic.Int64
	done      sync.WaitGroup
	applied   atomic.Int64 // what follows is for the progress line
	failed    atomic.Int64
	unknown   atomic.Int64
}

func newWork(r *run, l *lane) *work {
	return &work{roster: newRoster(r), run: r, pool: r.pool, lane: l}
}

// begin has the workers run units until ctx ends, and what is to be delivered
// again by then.
func (w *work) begin(ctx context.Context) {
	for range w.run.set.workers {
		w.done.Go(func() {
			for {
				w.rest(ctx)
				d := w.take(w.run.now(), ctx.Err() == nil, true)
				if d == nil {
					return
				}
				w.deliver(d)
				clock.Wait(ctx, nil, d.think)
			}
		})
	}
}

// lull has the workers rest for a while, so that the connections are idle.
func (w *work) lull(d time.Duration) { w.lullUntil.Store(int64(w.run.now() + d)) }

func (w *work) rest(ctx context.Context) {
	clock.Wait(ctx, nil, time.Duration(w.lullUntil.Load())-w.run.now())
}

// deliver runs the unit and keeps what it said.
func (w *work) deliver(d *delivery) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch {
	case d.ends > 0 && d.cancelled:
		defer time.AfterFunc(d.ends, cancel).Stop()
	case d.ends > 0:
		ctx, cancel = context.WithTimeout(ctx, d.ends)
		defer cancel()
	}
	err := w.call(ctx, d)
	d.end(w.run.now(), err)
	switch {
	case err == nil:
		w.applied.Add(1)
	case errors.Is(err, livepool.ErrCommitUnknown):
		w.unknown.Add(1)
	default:
		w.failed.Add(1)
	}
}

// call makes an error of a panic, if it is the unit's own.
func (w *work) call(ctx context.Context, d *delivery) (err error) {
	defer func() {
		switch v := recover(); {
		case v == nil:
		case v == any(errPanic):
			err = errPanic
		default:
			d.sees("a panic that is not the unit's: %v\n%s", v, debug.Stack())
			err = fmt.Errorf("a panic that is not the unit's: %v", v)
		}
	}()
	return w.pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		return w.unit(ctx, s, d)
	}, d.options()...)
}

func (p *plan) options() []livepool.SessionOption {
	options := []livepool.SessionOption{livepool.Name(p.name())}
	switch p.mode {
	case once:
		options = append(options, livepool.Once(fmt.Sprint("unit ", p.unit)))
	case verify:
		options = append(options, livepool.VerifyCommit())
	case readOnly:
		options = append(options, livepool.ReadOnly())
	}
	return options
}

// finish waits until all that was begun has ended.
func (w *work) finish(patience time.Duration) []violation {
	vs := within(patience, "every unit ends", func() error { w.done.Wait(); return nil })
	if vs == nil {
		return nil
	}
	for _, d := range w.deliveries() {
		if d.runs() {
			vs = append(vs, violation{Rule: "every unit ends", Unit: d.unit, Text: fmt.Sprintf("delivery %d does not", d.delivery)})
		}
	}
	return vs
}

// proveAlive runs units when all is well again: each must succeed, and soon.
func (w *work) proveAlive() (vs []violation) {
	for range 2 * w.run.set.workers {
		d := w.take(w.run.now(), true, false)
		d.of, d.fate, d.ends, d.cancelled, d.hasty = 1, succeeds, 10*time.Second, false, -1
		w.deliver(d)
		if d.err != nil {
			vs = append(vs, violation{Rule: "when all is well again a unit succeeds", Unit: d.unit, Text: d.err.Error()})
		}
	}
	return vs
}
