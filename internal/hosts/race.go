package hosts

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Result is what came of one host.
type Result[T any] struct {
	Host  int
	Value T
	Err   error
	// Silent: it had said nothing, while another host was answering. Err is nil then.
	Silent bool
}

// ErrNotNeeded is the cause for which the context of a try ends when another host has won.
var ErrNotNeeded = errors.New("another host has won")

// Race tries hosts in the given order: the next one when the last has failed, or has had its
// head start. The first that succeeds wins, and the others are cancelled. failed says what came
// of those that were tried before the winner, and of all if none succeeds; the end of ctx is
// nobody's failure.
//
// try runs the user's dialer, which may ignore its context, or end its goroutine. So Race waits
// for none that was cancelled: losers does, and gives drop what they bring all the same. try
// reports by answered, if it fails, that the server has answered: then those that say nothing
// are waited for no longer than Silence, or four times as long as that answer took. answered is
// called before try returns.
func Race[T any](ctx context.Context, order []int, headStart func(host int) time.Duration,
	try func(ctx context.Context, host int, answered func()) (T, error), drop func(T)) (winner *Result[T], failed []Result[T], losers func()) {
	r := race[T]{results: make(chan Result[T], len(order)), answers: make(chan time.Duration, len(order))}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(ErrNotNeeded)
	losers = func() { r.dropRest(drop) }
	start := func(host int) {
		began := time.Now()
		one, cancelOne := context.WithCancel(ctx)
		r.pending = append(r.pending, pending{host, began, cancelOne})
		r.running++
		go func() {
			result := Result[T]{Host: host, Err: errEnded}
			defer func() { cancelOne(); r.results <- result }()
			result.Value, result.Err = try(one, host, func() { r.answers <- time.Since(began) })
		}()
	}
	next := time.NewTimer(0)
	defer next.Stop()
	silence := time.NewTimer(time.Hour)
	defer silence.Stop()
	for len(order) > 0 || len(r.pending) > 0 {
		select {
		case <-ctx.Done():
			return nil, failed, losers
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
			silent, wait := r.giveUpSilent()
			if failed = append(failed, silent...); len(silent) > 0 {
				next.Reset(0)
			}
			silence.Reset(wait)
		case result := <-r.results:
			r.running--
			switch wasPending := r.end(result.Host); {
			case result.Err == nil && wasPending:
				return &result, append(failed, r.passedOver(headStart)...), losers
			case result.Err == nil:
				drop(result.Value)
			case wasPending && ctx.Err() == nil: // its end is nobody's failure
				failed = append(failed, result)
				next.Reset(0)
			}
		}
	}
	return nil, failed, losers
}

// errEnded is the error of a try that did not return.
var errEnded = errors.New("the attempt has ended its goroutine (runtime.Goexit)")

// race is the state of a Race. Its goroutine alone uses what is not a channel.
type race[T any] struct {
	results  chan Result[T]
	answers  chan time.Duration // how long each answer took
	pending  []pending          // the tries that are waited for
	running  int                // those that have not brought a result, also if they are not waited for
	patience time.Duration      // how long a host is waited for that says nothing; 0: no host has answered
}

// pending is a try that is waited for.
type pending struct {
	host   int
	began  time.Time
	cancel context.CancelFunc
}

// giveUpSilent cancels the tries that have said nothing for too long, and returns them and how
// long until it must be called again.
func (r *race[T]) giveUpSilent() (silent []Result[T], wait time.Duration) {
	wait = time.Hour
	r.pending = slices.DeleteFunc(r.pending, func(p pending) bool {
		left := r.patience - time.Since(p.began)
		if left > 0 {
			wait = min(wait, left)
			return false
		}
		p.cancel()
		silent = append(silent, Result[T]{Host: p.host, Silent: true})
		return true
	})
	return silent, wait
}

// passedOver are the tries that have had their head start when another one has won.
func (r *race[T]) passedOver(headStart func(host int) time.Duration) (silent []Result[T]) {
	for _, p := range r.pending {
		if time.Since(p.began) >= headStart(p.host) {
			silent = append(silent, Result[T]{Host: p.host, Silent: true})
		}
	}
	return silent
}

// end removes a try that has brought its result, and says whether it was waited for.
func (r *race[T]) end(host int) (wasPending bool) {
	before := len(r.pending)
	r.pending = slices.DeleteFunc(r.pending, func(p pending) bool { return p.host == host })
	return len(r.pending) < before
}

// dropRest waits for the tries that were cancelled.
func (r *race[T]) dropRest(drop func(T)) {
	for range r.running {
		if result := <-r.results; result.Err == nil {
			drop(result.Value)
		}
	}
}
