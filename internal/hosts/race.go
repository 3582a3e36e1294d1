package hosts

import (
	"context"
	"errors"
	"time"
)

// Result is what came of one host.
type Result[T any] struct {
	Host  int
	Value T
	Err   error
	// Silent: it had said nothing, while another host was answering.
	Silent bool
}

// ErrNotNeeded is the cause for which the context of a try ends when another host has won.
var ErrNotNeeded = errors.New("another host has won")

// Race tries hosts in the given order: the next one when the last has failed, or has had its
// head start. The first that succeeds wins, and the others are cancelled: losers waits for
// them, and gives drop what they bring all the same. failed says what came of those that were
// tried before the winner, and of all if none succeeds.
//
// try returns in time after its context has ended. It reports by answered, if it fails, that
// the server has answered: then those that say nothing are waited for no longer than Silence,
// or four times as long as that answer took. answered is called before try returns.
func Race[T any](ctx context.Context, order []int, headStart func(host int) time.Duration,
	try func(ctx context.Context, host int, answered func()) (T, error), drop func(T)) (winner *Result[T], failed []Result[T], losers func()) {
	r := race[T]{results: make(chan Result[T], len(order)), answers: make(chan time.Duration, len(order))}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(ErrNotNeeded)
	start := func(host int) {
		began := time.Now()
		one, cancelOne := context.WithCancel(ctx)
		r.pending = append(r.pending, pending{host, began, cancelOne})
		go func() {
			defer cancelOne()
			value, err := try(one, host, func() { r.answers <- time.Since(began) })
			r.results <- Result[T]{Host: host, Value: value, Err: err}
		}()
	}
	next := time.NewTimer(0)
	defer next.Stop()
	silence := time.NewTimer(time.Hour)
	defer silence.Stop()
	for len(order) > 0 || len(r.pending) > 0 {
		select {
		case <-next.C:
			if len(order) > 0 {
				start(order[0])
				next.Reset(headStart(order[0]))
				order = order[1:]
				if r.patience > 0 { // another has answered before
					silence.Reset(0)
				}
			}
		case took := <-r.answers:
			r.patience = max(Silence, 4*took)
			silence.Reset(0)
		case <-silence.C:
			silence.Reset(r.giveUpSilent())
		case result := <-r.results:
			silent := r.end(result.Host)
			if result.Err == nil {
				cancel(ErrNotNeeded)
				for _, p := range r.pending {
					if time.Since(p.began) >= headStart(p.host) {
						failed = append(failed, Result[T]{Host: p.host, Silent: true})
					}
				}
				return &result, failed, func() { r.dropRest(drop) }
			}
			result.Silent = silent
			failed = append(failed, result)
			next.Reset(0)
		}
	}
	return nil, failed, func() {}
}

// race is the state of a Race. Its goroutine alone uses what is not a channel.
type race[T any] struct {
	results  chan Result[T]
	answers  chan time.Duration // how long each answer took
	pending  []pending
	patience time.Duration // how long a host is waited for that says nothing; 0: no host has answered
}

// pending is a try under way.
type pending struct {
	host  int
	began time.Time
	// giveUp cancels it; nil after that.
	giveUp context.CancelFunc
}

// giveUpSilent cancels the tries that have said nothing for too long, and returns how long
// until it must be called again.
func (r *race[T]) giveUpSilent() (wait time.Duration) {
	wait = time.Hour
	for i := range r.pending {
		p := &r.pending[i]
		switch left := r.patience - time.Since(p.began); {
		case p.giveUp == nil:
		case left <= 0:
			p.giveUp()
			p.giveUp = nil
		default:
			wait = min(wait, left)
		}
	}
	return wait
}

// end removes a try, and says whether it was given up as silent.
func (r *race[T]) end(host int) (silent bool) {
	for i, p := range r.pending {
		if p.host == host {
			silent = p.giveUp == nil
			r.pending = append(r.pending[:i], r.pending[i+1:]...)
			break
		}
	}
	return silent
}

// dropRest waits for the tries that were cancelled.
func (r *race[T]) dropRest(drop func(T)) {
	for range r.pending {
		if result := <-r.results; result.Err == nil {
			drop(result.Value)
		}
	}
}
