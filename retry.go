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
	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/usercode"
	"github.com/livepool/livepool/trace"
)

// runUnit runs a unit of its own, and tells the tracer of it.
func (c *retryState) runUnit(ctx context.Context, fn func(context.Context, *Session) error) error {
	c.started = time.Now()
	switch o := &c.options; {
	case o.hasOnce:
		c.key = o.once
	case o.verify:
		c.key = "verify:" + rand.Text()
	}
	end := trace.UnitEnd{UnitStart: trace.UnitStart{Unit: c.options.name, Key: c.key}}
	t := &c.pool.ctr.Tracer
	ctx = t.UnitStart(ctx, end.UnitStart)
	defer func() { // also if fn panics
		end.Took, end.Attempts, end.Outcome = t.Since(c.started), c.attempts, c.outcome
		t.UnitEnd(ctx, end)
	}()
	end.Err = c.run(ctx, fn)
	return end.Err
}

// run is the life of a unit: attempts, each a session of its own (Session.run), until
// one is committed or must not be repeated. A lost COMMIT of a unit with a key is resolved
// before the next attempt.
func (c *retryState) run(ctx context.Context, fn func(context.Context, *Session) error) error {
	p, o := c.pool, &c.options
	if o.fromReplica {
		if served, err := c.runOnReplica(ctx, fn); served {
			return err
		}
	}
	if c.key != "" {
		fn = withKey(fn, c.key)
	}
	for {
		s, err := c.attempt(ctx, p, fn)
		cause := s.retryCause(err)
		switch {
		case err == nil:
			c.noteWritable()
			s.runHooks()
			return nil
		case errors.Is(err, errKeyTaken):
			c.outcome = trace.AlreadyApplied
			return o.alreadyApplied()
		case s.commitUnknown && c.key != "":
			committed, unresolvedErr := c.resolveCommit(ctx, s, err)
			if unresolvedErr != nil {
				return unresolvedErr
			}
			c.outcome = trace.NotApplied
			if committed {
				c.outcome = trace.Applied
				s.runHooks()
				return nil
			}
			err = errors.New("livepool: nothing was applied: the COMMIT whose answer was lost did not happen: " + err.Error())
			cause = err
		case !s.mayRetry(err):
			return s.explainFailure(err, c)
		case s.tx != nil && c.lossCounter.Add(s.observed.LostStatement):
			return c.unitError(err, connector.RepeatedLossText(s.observed.LostStatement.Query))
		}
		if err := c.waitToRetry(ctx, cause, err); err != nil {
			return err
		}
		p.ctr.AwaitOrphan(ctx, s.attempt.Orphan.Load())
	}
}

// attempt runs fn in a session of p, and notes what became of it.
func (c *retryState) attempt(ctx context.Context, p *Pool, fn func(context.Context, *Session) error) (*Session, error) {
	c.attempts++
	c.outcome = trace.NotApplied
	s := p.newSession(ctx, &c.options, c)
	err := s.run(fn)
	switch {
	case err == nil:
		c.outcome = trace.Applied
	case !s.commitUnknown:
		c.outcome = trace.NotApplied
	}
	return s, err
}

// mayRetry says whether an attempt that failed with err has certainly left
// nothing behind, and for a cause that may pass.
func (s *Session) mayRetry(err error) bool {
	switch {
	case s.caller.Err() != nil, s.observed.ImplicitCommit != "", s.attempt.CommitTriedByOther.Load():
		return false
	case s.commitUnknown:
		return s.options.tx.ReadOnly
	case errors.Is(err, mysqlerr.ErrCommitUnknown):
		return false // another unit's, inside this one: running this again would repeat that
	}
	isWriteInReadOnly := s.options.tx.ReadOnly && mysqlerr.Number(s.retryCause(err)) == 1792 // which every server refuses
	return s.isTransient(err) && !isWriteInReadOnly
}

// isTransient says whether the unit failed for what its connection saw, and for
// which it may be run again. What the function returned is not evidence: an EOF
// may be of a file.
func (s *Session) isTransient(err error) bool {
	return s.observed.Failure != nil || s.returnsRecovered(err)
}

// retryCause is the error by which an attempt is judged: what the connection said,
// which the function may have swallowed or replaced, before what it returned.
func (s *Session) retryCause(err error) error {
	switch {
	case s.observed.Failure != nil:
		return s.observed.Failure
	case s.returnsRecovered(err):
		return s.observed.Recovered
	}
	return err
}

// returnsRecovered says whether the function returns the failure of a unit inside it,
// which a savepoint has undone, and has not swallowed it.
func (s *Session) returnsRecovered(err error) bool {
	return s.observed.Recovered != nil && errors.Is(err, s.observed.Recovered)
}

// explainFailure adds what the caller of a failed unit must know, for example that only
// the end of its context kept it from being run again. An error of the first attempt that
// needs no addition stays as it is.
func (s *Session) explainFailure(err error, c *retryState) error {
	switch {
	case s.observed.ImplicitCommit != "":
		return c.unitError(err, fmt.Sprintf("and what it did before and after %q may be committed, because that statement commits implicitly, or may", s.observed.ImplicitCommit))
	case errors.Is(err, mysqlerr.ErrCommitUnknown): // this unit's, or that of one inside it
		return c.unitError(err, "")
	case s.caller.Err() != nil && !errors.Is(err, ErrSessionDone) && (s.isTransient(err) || mysqlerr.CallerGaveUp(err)):
		return c.contextEndedError(contextError(s.caller), err)
	case isUnstarted(err):
		return c.retryableError(err, "")
	case c.attempts > 1:
		return c.unitError(err, "")
	}
	return err
}

// retryState is the state of one unit of work over its attempts. It belongs to the
// goroutine of the unit.
type retryState struct {
	pool              *Pool
	options           sessionOptions
	key               string // of the commit table, "" for none
	started           time.Time
	elapsedFrom       time.Time // from when MaxElapsed counts, zero until a connection was asked for
	attempts          int
	outcome           trace.Outcome   // what is known of its transaction; also if what runs now panics
	freeAttempts      int             // of those, the ones of which nothing ran, or is left, because no server accepted them
	attemptStart      time.Time       // the attempt, if it is not the first
	retriedAfterPause bool            // it was run again because its connection died while fn sent nothing
	backOff           backoff.BackOff // made at the first retry
	lossCounter       connector.LossCounter
	commitSentTo      string // the server that the lost COMMIT was sent to, while that is resolved
	idempotent        bool   // it is a function of Retry, and no unit
}

// waitToRetry waits until the unit that failed with err, because of cause, may be run
// again, and returns nil; or it returns the error that ends the unit.
func (c *retryState) waitToRetry(ctx context.Context, cause, err error) error {
	if !errors.Is(err, cause) {
		err = errors.Join(err, cause)
	}
	class := c.pool.ctr.Classify(cause)
	level, wait := slog.LevelInfo, time.Duration(0)
	waited := c.awaitAvailable(ctx, cause)
	switch {
	case waited && c.freeAttempts <= maxFreeWithoutPause:
		level = slog.LevelDebug // the outage is logged once, not per unit
	case c.attempts > 1, class&mysqlerr.BackOff != 0: // a stale connection is replaced at once, the first time
		wait = c.nextWait()
	}
	lostByPause := connector.IsLossByPause(cause)
	switch {
	case lostByPause && c.retriedAfterPause:
		return c.retryableError(err, "because its connection died twice while its function sent nothing for too long")
	case waited && ctx.Err() != nil:
	case c.attempts-c.freeAttempts >= c.options.maxAttempts:
		return c.retryableError(err, "the limit of MaxAttempts (pool_max_attempts)")
	case wait == backoff.Stop:
		return c.retryableError(err, "where BackOff stops")
	}
	c.retriedAfterPause = c.retriedAfterPause || lostByPause
	return c.runAgain(ctx, level, wait, cause, err)
}

// runAgain tells that the unit is run again, and waits before; or it returns the error that
// ends the unit.
func (c *retryState) runAgain(ctx context.Context, level slog.Level, wait time.Duration, cause, err error) error {
	if limit := c.pool.cfg.MaxElapsed; limit > 0 && ctx.Err() == nil && c.elapsed()+wait > limit {
		return c.retryableError(err, "the limit of MaxElapsed (pool_max_elapsed)")
	}
	c.pool.ctr.Stats.Retried.Add(1)
	c.pool.ctr.Tracer.Event(ctx, trace.Retry{Unit: c.options.name, Attempt: c.attempts, Wait: wait, Cause: cause})
	c.logRetry(ctx, level, wait, cause)
	if wait > 0 {
		clock.Wait(ctx, nil, wait)
	}
	if ended := contextError(ctx); ended != nil {
		return c.contextEndedError(ended, err)
	}
	c.attemptStart = time.Now()
	return nil
}

// logRetry logs that the unit is run again. An attempt that was refused by an outage, or was
// made on a replica, is not counted among those that MaxAttempts allows.
func (c *retryState) logRetry(ctx context.Context, level slog.Level, wait time.Duration, cause error) {
	log := c.pool.cfg.log
	if !log.Enabled(ctx, level) {
		return
	}
	attrs := []any{slog.String("unit", c.options.name), slog.String("attempt", fmt.Sprintf("%d of %d", c.attempts-c.freeAttempts, c.options.maxAttempts)),
		slog.Duration("wait", wait), slog.Any("cause", cause)}
	if c.key != "" {
		attrs = append(attrs, slog.String("key", c.key))
	}
	log.Log(ctx, level, "livepool: a unit of work is run again", attrs...)
}

// nextWait is the wait before the next attempt: of the user's BackOff, or of the default
// if that panics.
func (c *retryState) nextWait() (wait time.Duration) {
	cfg := c.pool.cfg
	if usercode.CatchPanic(cfg.log, "Config.BackOff", func() {
		if c.backOff == nil {
			c.backOff = cfg.BackOff()
		}
		wait = c.backOff.NextBackOff()
	}) {
		return wait
	}
	c.backOff = defaultBackOff()
	return c.backOff.NextBackOff()
}

// maxFreeWithoutPause is how many attempts that cost none follow each other without a
// pause, when the prober has found that the server takes what they need.
const maxFreeWithoutPause = 2

// awaitAvailable waits for a server that cannot be reached, or takes no writes, if that
// is why the attempt failed: nothing of it ran, or is left, so that it counts
// against MaxElapsed alone. A unit that is tried only once does not wait.
func (c *retryState) awaitAvailable(ctx context.Context, cause error) bool {
	ctr, limit := c.pool.ctr, c.pool.cfg.MaxElapsed
	unreachable := ctr.IsUnreachable(cause)
	if c.options.maxAttempts == 1 || !unreachable && !mysqlerr.IsWriteRefusal(cause) {
		return false
	}
	c.freeAttempts++
	deadline := time.Now().Add(limit - c.elapsed())
	if limit == 0 {
		deadline = time.Now().Add(time.Hour) // then it tries again itself
	}
	if unreachable {
		ctr.Outage.AwaitServer(ctx, deadline)
	} else {
		ctr.AwaitWrites(ctx, deadline, cause)
	}
	return true
}

// startElapsed notes that an attempt asks for a connection. What its function has done
// until now asks nothing of the server, and is not counted.
func (c *retryState) startElapsed(now time.Time) {
	if c.elapsedFrom.IsZero() {
		c.elapsedFrom = now
	} else {
		c.elapsedFrom = c.elapsedFrom.Add(now.Sub(c.attemptStart))
	}
}

// elapsed is what counts against MaxElapsed.
func (c *retryState) elapsed() time.Duration {
	if c.elapsedFrom.IsZero() {
		return 0
	}
	return time.Since(c.elapsedFrom)
}

// noteWritable ends the wait of other units for writes, if this one was refused before
// and has succeeded now. One that only reads says nothing of writes.
func (c *retryState) noteWritable() {
	if c.freeAttempts > 0 && !c.options.tx.ReadOnly {
		c.pool.ctr.RecordWritable()
	}
}

// contextEndedError is the error of a unit that would be run again, had its context not
// ended.
func (c *retryState) contextEndedError(ended, err error) error {
	if !c.idempotent {
		ended = &sessionDoneError{unit: c.options.name, cause: ended}
	}
	return c.retryableError(errors.Join(ended, err), "when its context ended")
}

// unitError is the error of a unit that is not tried again.
func (c *retryState) unitError(cause error, reason string) *UnitError {
	return &UnitError{Name: c.options.name, Key: c.key, Attempts: c.attempts, Elapsed: time.Since(c.started), Reason: reason, Err: cause}
}

// retryableError is unitError where another delivery of the job may succeed.
func (c *retryState) retryableError(cause error, reason string) error {
	e := c.unitError(cause, reason)
	e.retryable, e.idempotent = true, c.idempotent
	return e
}

// Retry runs fn, which must tolerate being run twice, until it succeeds or fails
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
	if rest := (sessionOptions{name: o.name, maxAttempts: o.maxAttempts, refused: o.refused}); o != rest {
		return errors.New("livepool: Retry takes the options Name and MaxAttempts; the others are about a transaction, which it has not: see WithSession")
	}
	o.name = cmp.Or(o.name, "a retried function")
	if err := o.check(p); err != nil {
		return err
	}
	if err := p.begin(ctx, o.name); err != nil {
		return err
	}
	defer p.end()
	now := time.Now()
	c := &retryState{pool: p, options: o, started: now, elapsedFrom: now, idempotent: true}
	fnCtx := context.WithValue(connector.WithIdempotent(ctx, &c.lossCounter), underWayKey{p}, true)
	for {
		c.attempts++
		err := fn(fnCtx)
		switch {
		case err == nil:
			c.noteWritable()
			return nil
		case ctx.Err() != nil && mysqlerr.CallerGaveUp(err):
			return c.contextEndedError(contextError(ctx), err)
		case ctx.Err() != nil, p.ctr.Classify(err)&mysqlerr.Retry == 0 && !errors.Is(err, mysqlerr.ErrCommitUnknown):
			return err
		}
		if err := c.waitToRetry(ctx, err, err); err != nil {
			return err
		}
	}
}

// Idempotent returns a context under which a statement outside a transaction
// may be sent again after its connection was lost, even if it may have run:
// the caller guarantees that running it twice does no harm. Without it a
// statement that was written and not answered fails with
// mysql.ErrInvalidConn. It changes nothing inside a transaction.
func Idempotent(ctx context.Context) context.Context { return connector.WithIdempotent(ctx, nil) }
