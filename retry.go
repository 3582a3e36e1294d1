// retry.go runs a unit of work again, if its transaction cannot have been
// committed and the cause is one that may pass.

package livepool

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// unitError is the last error of a unit of work that was tried more than once,
// or whose outcome needs telling.
type unitError struct {
	name     string
	key      string
	attempts int
	elapsed  time.Duration
	why      string // it was not tried again
	cause    error
}

func (e *unitError) Error() string {
	text := fmt.Sprintf("livepool: %s failed after %d attempt(s) in %s", e.name, e.attempts, e.elapsed.Round(time.Millisecond))
	if e.key != "" {
		text += fmt.Sprintf(" (key %q)", e.key)
	}
	if e.why != "" {
		text += ", " + e.why
	}
	return text + ": " + e.cause.Error()
}
func (e *unitError) Unwrap() error { return e.cause }

// course is the course of one unit of work over its attempts.
type course struct {
	pool     *Pool
	options  *sessionOptions
	key      string // of the commit table, "" for none
	started  time.Time
	asked    time.Time // from when MaxElapsed counts, zero until a connection was asked for
	attempts int
	free     int             // of those, the ones of which nothing ran, or is left, for want of a server that takes it
	began    time.Time       // the attempt, if it is not the first
	paused   bool            // it was run again because its connection died while fn was elsewhere
	waits    backoff.BackOff // made at the first retry
	losses   losses
}

func (p *Pool) newCourse(o *sessionOptions) *course {
	c := &course{pool: p, options: o, started: time.Now()}
	switch {
	case o.hasOnce:
		c.key = o.once
	case o.verify:
		c.key = "verify:" + rand.Text()
	}
	return c
}

// asks notes that an attempt asks for a connection. What its function has done
// until now asks nothing of the server, and is not counted.
func (c *course) asks(now time.Time) {
	if c.asked.IsZero() {
		c.asked = now
	} else {
		c.asked = c.asked.Add(now.Sub(c.began))
	}
}

// elapsed is what counts against MaxElapsed.
func (c *course) elapsed() time.Duration {
	if c.asked.IsZero() {
		return 0
	}
	return time.Since(c.asked)
}

// again waits until the unit that failed with err, because of cause, may be run
// again, and returns nil; or returns the error that ends it.
func (c *course) again(ctx context.Context, cause, err error) error {
	if !errors.Is(err, cause) {
		err = errors.Join(err, cause)
	}
	cfg := c.pool.cfg
	class := c.pool.ctr.classify(cause)
	level, wait := slog.LevelInfo, time.Duration(0)
	outwaited := c.outwaits(ctx, cause)
	switch {
	case outwaited && c.free <= freeAtOnce:
		level = slog.LevelDebug // the outage is told once for all
	case c.attempts > 1, class&BackOff != 0: // a stale connection is replaced at once, the first time
		wait = c.nextWait()
	}
	tooLong := diedOfPause(cause)
	switch {
	case tooLong && c.paused:
		return c.failed(err, "because its connection died twice while its function sent nothing for too long")
	case outwaited && ctx.Err() != nil:
	case c.attempts-c.free >= c.options.maxAttempts:
		return c.failed(err, "the limit of MaxAttempts (pool_max_attempts)")
	case wait == backoff.Stop:
		return c.failed(err, "where BackOff stops")
	case cfg.MaxElapsed > 0 && c.elapsed()+wait > cfg.MaxElapsed:
		return c.failed(err, "the limit of MaxElapsed (pool_max_elapsed)")
	}
	c.paused = c.paused || tooLong
	c.pool.ctr.stats.retried.Add(1)
	cfg.log.Log(ctx, level, "livepool: a unit of work is run again",
		slog.String("unit", c.options.name), slog.Int("attempt", c.attempts), slog.Duration("wait", wait), slog.Any("cause", cause))
	if wait > 0 {
		waitFor(ctx, nil, wait)
	}
	if ended := contextEnd(ctx); ended != nil {
		return c.cutShort(ended, err)
	}
	c.began = time.Now()
	return nil
}

// nextWait is how long the user's BackOff, or the default in its place where
// that panics, has a unit wait before its next attempt.
func (c *course) nextWait() (wait time.Duration) {
	cfg := c.pool.cfg
	if contain(cfg.log, "Config.BackOff", func() {
		if c.waits == nil {
			c.waits = cfg.BackOff()
		}
		wait = c.waits.NextBackOff()
	}) {
		return wait
	}
	c.waits = defaultBackOff()
	return c.waits.NextBackOff()
}

// freeAtOnce is how many attempts that cost none follow each other without a
// pause, when the prober has found that the server takes what they need.
const freeAtOnce = 2

// outwaits waits for a server that cannot be reached, or takes no writes, if that
// is why the attempt failed: nothing of it ran, or is left, so that it counts
// against MaxElapsed alone. It is not for a unit that is never to be run again.
func (c *course) outwaits(ctx context.Context, cause error) bool {
	ctr, limit := c.pool.ctr, c.pool.cfg.MaxElapsed
	unreachable := ctr.lackOf(cause) != nothing
	if c.options.maxAttempts == 1 || !unreachable && !refusesWrites(cause) {
		return false
	}
	c.free++
	deadline := time.Now().Add(limit - c.elapsed())
	if limit == 0 {
		deadline = time.Now().Add(time.Hour) // and then it tries by itself
	}
	if unreachable {
		ctr.awaitServer(ctx, deadline)
	} else {
		ctr.awaitWrites(ctx, deadline, cause)
	}
	return true
}

// tellWrites lets in those who wait for writes, if one that was refused before
// has been done.
func (c *course) tellWrites() {
	if c.free > 0 {
		c.pool.ctr.writable()
	}
}

// cutShort is the error of a unit that would be run again, had its context not
// ended.
func (c *course) cutShort(ended, err error) error {
	return c.failed(errors.Join(&sessionDoneError{unit: c.options.name, cause: ended}, err), "when its context ended")
}

// failed is the error of a unit that is not tried again.
func (c *course) failed(cause error, why string) error {
	return &unitError{c.options.name, c.key, c.attempts, time.Since(c.started), why, cause}
}

// Retry runs fn, which must bear to be run twice, until it succeeds or fails
// with an error that will not pass: lost connections, deadlocks, servers that
// refuse or cannot be reached, commits of unknown outcome are tried again,
// within MaxAttempts, MaxElapsed and ctx; while the server cannot be reached or
// takes no writes it waits as a unit does. There is no transaction, and the
// context that fn gets is Idempotent. Of the options it takes Name and
// MaxAttempts. It is safe for concurrent use.
func (p *Pool) Retry(ctx context.Context, fn func(context.Context) error, opts ...SessionOption) error {
	var o sessionOptions
	for _, opt := range opts {
		opt(&o)
	}
	if rest := (sessionOptions{name: o.name, maxAttempts: o.maxAttempts}); o != rest {
		return errors.New("livepool: Retry takes the options Name and MaxAttempts; the others are about a transaction, which it has not: see WithSession")
	}
	o.name = cmp.Or(o.name, "a retried function")
	if err := o.check(p); err != nil {
		return err
	}
	c := p.newCourse(&o)
	c.asked = c.started
	for {
		c.attempts++
		err := fn(context.WithValue(ctx, idempotentKey{}, &c.losses))
		switch {
		case err == nil:
			c.tellWrites()
			return nil
		case ctx.Err() != nil, p.ctr.classify(err)&Retry == 0 && !errors.Is(err, ErrCommitUnknown):
			return err
		}
		if err := c.again(ctx, err, err); err != nil {
			return err
		}
	}
}

// runUnit runs a unit of work to its end.
func (p *Pool) runUnit(ctx context.Context, fn func(context.Context, *Session) error, o *sessionOptions) error {
	c := p.newCourse(o)
	if c.key != "" {
		fn = keyed(fn, c.key)
	}
	for {
		c.attempts++
		s := p.newSession(ctx, o, c)
		err := s.run(fn)
		cause := s.cause(err)
		switch {
		case err == nil:
			c.tellWrites()
			s.committed()
			return nil
		case errors.Is(err, errKeyTaken):
			return nil
		case s.unknown && c.key != "":
			happened, unsettled := c.settle(ctx, s, err)
			if unsettled != nil {
				return unsettled
			}
			if happened {
				s.committed()
				return nil
			}
			err = &notAppliedError{err}
			cause = err
		case !s.mayRunAgain(err):
			return s.explain(err, c)
		case s.tx != nil && c.losses.add(s.observed.lostOver):
			return c.failed(err, notAThirdTime(s.observed.lostOver))
		}
		if err := c.again(ctx, cause, err); err != nil {
			return err
		}
		p.ctr.settle(ctx, s.attempt.ghost.Load())
	}
}

// mayRunAgain says whether an attempt that failed with err has certainly left
// nothing behind, and for a cause that may pass.
func (s *Session) mayRunAgain(err error) bool {
	switch {
	case s.caller.Err() != nil, s.observed.implicit != "", s.attempt.usurped.Load():
		return false
	case s.unknown:
		return s.options.tx.ReadOnly
	case errors.Is(err, ErrCommitUnknown):
		return false // another unit's, inside this one: running this again would repeat that
	}
	return s.mayPass(err) && !s.asksToWriteReadOnly(err)
}

// mayPass says whether the unit failed for what its connection saw, and for
// which it may be run again. What the function returned is not evidence: an EOF
// may be of a file.
func (s *Session) mayPass(err error) bool { return s.observed.failure != nil || s.passesOn(err) }

// cause is the error by which an attempt is judged: what the connection said,
// which the function may have swallowed or replaced, before what it returned.
func (s *Session) cause(err error) error {
	switch {
	case s.observed.failure != nil:
		return s.observed.failure
	case s.passesOn(err):
		return s.observed.cured
	}
	return err
}

// passesOn says whether the function returns the failure of a unit inside it,
// which a savepoint has undone, and has not swallowed it.
func (s *Session) passesOn(err error) bool {
	return s.observed.cured != nil && errors.Is(err, s.observed.cured)
}

// asksToWriteReadOnly: a write in a unit that is ReadOnly is refused by every
// server.
func (s *Session) asksToWriteReadOnly(err error) bool {
	return s.options.tx.ReadOnly && errorNumber(s.cause(err)) == 1792
}

// explain adds what the caller of a failed unit must know: also that it would be
// run again, had its context not ended. The first attempt's own error, with
// nothing to add, stays as it is.
func (s *Session) explain(err error, c *course) error {
	switch {
	case s.observed.implicit != "":
		return c.failed(err, fmt.Sprintf("and what it did before and after %q may be committed, because that statement commits implicitly, or may", s.observed.implicit))
	case s.caller.Err() != nil && !s.unknown && s.mayPass(err) && !errors.Is(err, ErrSessionDone):
		return c.cutShort(contextEnd(s.caller), err)
	case c.attempts > 1 || errors.Is(err, ErrCommitUnknown):
		return c.failed(err, "")
	}
	return err
}
