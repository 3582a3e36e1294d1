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
	Waited time.Duration // how long a silent one was waited for
}

// The causes for which the context of a try ends: another host has won, or this one has said
// nothing for too long.
var (
	ErrNotNeeded = errors.New("another host has won")
	ErrGivenUp   = errors.New("the host was silent, while another one has answered")
)

// Race tries hosts in the given order: the next one when the last has failed, or has had its
// head start. The first that succeeds wins, and the others are cancelled. failed says what came
// of those that were tried before the winner, and of all if none succeeds; those that were being
// tried when ctx ended were silent.
//
// try reports by answered, if it fails, that the server has answered: then those that say nothing
// are waited for no longer than Silence, four times as long as that answer took, or the patience
// for them. answered is called before try returns.
//
// try runs the user's dialer, which may ignore its context, or end its goroutine; and it may have
// reasons to go on. So Race waits for none whose context has ended: losers does, and gives drop
// what they bring.
func Race[T any](ctx context.Context, order []int, headStart, patience func(host int) time.Duration,
	try func(ctx context.Context, host int, answered func()) (T, error), drop func(T)) (winner *Result[T], failed []Result[T], losers func()) {
	r := race[T]{results: make(chan Result[T], len(order)), answers: make(chan time.Duration, len(order)), patienceFor: patience}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(ErrNotNeeded)
	losers = func() { r.dropRest(drop) }
	start := func(host int) {
		began := time.Now()
		one, cancelOne := context.WithCancelCause(ctx)
		r.pending = append(r.pending, pending{host, began, cancelOne})
		r.running++
		go func() {
			result := Result[T]{Host: host, Err: errEnded}
			defer func() { cancelOne(nil); r.results <- result }()
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
			return nil, append(failed, r.silent(func(int) time.Duration { return 0 })...), losers
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
			switch began, wasPending := r.end(result.Host); {
			case result.Err == nil: // also if it was given up
				failed = slices.DeleteFunc(failed, func(f Result[T]) bool { return f.Host == result.Host })
				return &result, append(failed, r.passedOver(headStart)...), losers
			case wasPending && ctx.Err() != nil: // it is silent like the others
				failed = append(failed, Result[T]{Host: result.Host, Silent: true, Waited: time.Since(began)})
			case wasPending:
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
	results     chan Result[T]
	answers     chan time.Duration // how long each answer took
	pending     []pending          // the tries that are waited for
	running     int                // those that have not brought a result, also if they are not waited for
	patience    time.Duration      // how long a host is waited for that says nothing, at least; 0: no host has answered
	patienceFor func(host int) time.Duration
}

// pending is a try that is waited for.
type pending struct {
	host   int
	began  time.Time
	cancel context.CancelCauseFunc
}

// giveUpSilent gives up the tries that have said nothing for too long, and returns them and how
// long until it must be called again.
func (r *race[T]) giveUpSilent() (silent []Result[T], wait time.Duration) {
	wait = time.Hour
	r.pending = slices.DeleteFunc(r.pending, func(p pending) bool {
		left := max(r.patience, r.patienceFor(p.host)) - time.Since(p.began)
		if left > 0 {
			wait = min(wait, left)
			return false
		}
		p.cancel(ErrGivenUp)
		silent = append(silent, Result[T]{Host: p.host, Silent: true, Waited: time.Since(p.began)})
		return true
	})
	return silent, wait
}

// passedOver are the tries that have had their head start when another one has won, or what is
// usual for that.
func (r *race[T]) passedOver(headStart func(host int) time.Duration) []Result[T] {
	return r.silent(func(i int) time.Duration { return max(headStart(i), attemptDelay) })
}

// silent are the tries that are waited for, for at least so long.
func (r *race[T]) silent(atLeast func(host int) time.Duration) (silent []Result[T]) {
	for _, p := range r.pending {
		if waited := time.Since(p.began); waited >= atLeast(p.host) {
			silent = append(silent, Result[T]{Host: p.host, Silent: true, Waited: waited})
		}
	}
	return silent
}

// end removes a try that has brought its result, and says whether it was waited for, since when.
func (r *race[T]) end(host int) (began time.Time, wasPending bool) {
	for i, p := range r.pending {
		if p.host == host {
			r.pending = slices.Delete(r.pending, i, i+1)
			return p.began, true
		}
	}
	return began, false
}

// dropRest waits for the tries that nobody else waits for.
func (r *race[T]) dropRest(drop func(T)) {
	for range r.running {
		if result := <-r.results; result.Err == nil {
			drop(result.Value)
		}
	}
}
