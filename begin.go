// begin.go is how a session gets its connection: a place in the pool, then a transaction on
// one of its connections, for which it waits through outages.

package livepool

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"runtime"
	"time"

	"github.com/livepool/livepool/internal/boundctx"
	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/fifo"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/trace"
)

// startTx takes a place and a connection, and begins. If it fails no later statement of
// the attempt runs either: the function may have swallowed the error of the first one,
// and the rest would be half of the work. root.mu is held.
func (s *Session) startTx(ctx context.Context) (*sql.Tx, error) {
	start := time.Now()
	err := s.acquire(ctx, start)
	if err == nil {
		return s.tx, nil
	}
	s.pool.queue.Give(&s.place)
	switch {
	case s.caller.Err() != nil:
		err = &sessionDoneError{s.options.name, contextError(s.caller), s.pool.ctr.Outage.LastError()}
	case s.pool.ctr.Ctx.Err() != nil, connector.AsPoolClosed(err) == ErrPoolClosed:
		err = ErrPoolClosed
	case err == fifo.ErrTimeout:
		err = s.pool.poolTimeout(s.options.name, time.Since(start))
	case ctx.Err() == nil && s.pool.ctr.Classify(err)&mysqlerr.Retry != 0:
		s.attempt.NoteFailure(err) // nothing has run
	}
	s.startErr = err
	return nil, err
}

// acquire takes a place, which a session has that resolves a lost COMMIT, and begins on a
// connection.
func (s *Session) acquire(ctx context.Context, start time.Time) error {
	if !s.resolveDeadline.IsZero() {
		return s.beginWhenReachable(ctx, s.resolveDeadline)
	}
	s.retryState.startElapsed(start)
	if limit := s.pool.cfg.MaxElapsed; limit > 0 {
		s.retryDeadline = s.retryState.elapsedFrom.Add(limit)
	}
	t := &s.pool.ctr.Tracer
	end := trace.AcquireEnd{AcquireStart: trace.AcquireStart{Unit: s.options.name, Attempt: s.attemptNumber}, Err: connector.ErrNotReturned}
	s.beginCtx.Context = t.AcquireStart(s.beginCtx.Context, end.AcquireStart) //nolint:fatcontext // once for each attempt
	defer func() {
		end.Took = t.Since(start)
		t.AcquireEnd(s.beginCtx.Context, end)
	}()
	deadline := start.Add(s.pool.cfg.PoolTimeout)
	err := s.pool.queue.Take(ctx, &s.place, s.options.name, deadline)
	end.Queued = t.Since(start)
	if err == nil {
		err = s.beginWhenReachable(ctx, deadline)
	}
	end.Err = err
	if err == nil && t.HasEvents() {
		s.acquiredAt = time.Now()
	}
	return err
}

// beginWhenReachable begins, and waits meanwhile for a server that cannot be
// reached: nothing has happened yet, so that this costs the unit no attempt.
func (s *Session) beginWhenReachable(ctx context.Context, deadline time.Time) error {
	ctr := s.pool.ctr
	waitUntil := deadline
	if !s.retryDeadline.IsZero() && s.retryDeadline.Before(deadline) {
		waitUntil = s.retryDeadline
	}
	if s.pool.cfg.PoolTimeout > 0 || !s.resolveDeadline.IsZero() { // PoolTimeout 0: it may dial, and waits for nothing else
		s.beginCtx.DialDeadline = waitUntil
	}
	for {
		err := s.beginTx(ctx, deadline)
		switch {
		case err == nil:
			return nil
		case ctr.IsUnreachable(err) && ctr.Outage.AwaitServer(ctx, waitUntil):
			continue
		case ctx.Err() != nil, s.caller.Err() != nil:
			return err
		case !time.Now().Before(deadline) && (mysqlerr.CallerGaveUp(err) || ctr.IsUnreachable(err)):
			return fifo.ErrTimeout
		case mysqlerr.CallerGaveUp(err):
			if err = ctr.Outage.LastError(); err == nil {
				err = os.ErrDeadlineExceeded
			}
			return &connector.ConnectError{Unreachable: true, Text: "livepool: no connection within MaxElapsed (pool_max_elapsed): the server cannot be reached", Cause: err}
		}
		return err
	}
}

// beginTx begins on a connection of the pool. There are as many places as there may be
// connections, so a session that has a place finds one free, unless the pool is also used
// without sessions. Only then may it have to wait, and pays for a bound of that wait; it
// lets sessions go first for which a connection is free.
func (s *Session) beginTx(ctx context.Context, deadline time.Time) (err error) {
	ps := s.pool
	ps.unboundedBegins.Add(1)          // before begins, so that the others see it and wait
	beginning := int(ps.begins.Add(1)) // this one and others at the same time
	defer ps.begins.Add(-1)
	st := s.pool.DB.Stats()
	if int64(st.MaxOpenConnections) != s.pool.ctr.Limits.Open.Load() {
		s.pool.ctr.SyncLimits()
	}
	if st.MaxOpenConnections == 0 || st.InUse+beginning <= st.MaxOpenConnections {
		s.beginCtx.Unbounded = &ps.unboundedBegins
		s.tx, err = s.pool.DB.BeginTx(&s.beginCtx, &s.options.tx)
		s.beginCtx.NoteServed()
		return err
	}
	ps.unboundedBegins.Add(-1)
	for i := 0; ps.unboundedBegins.Load() > 0 && ctx.Err() == nil && time.Now().Before(deadline); i++ {
		if runtime.Gosched(); i > 100 {
			time.Sleep(time.Millisecond)
		}
	}
	waitCtx, cancel := context.WithDeadline(boundctx.WithValues(ctx, &s.beginCtx), deadline)
	defer cancel()
	s.conn, err = s.pool.DB.Conn(waitCtx)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && !time.Now().Before(deadline) {
			return fifo.ErrTimeout
		}
		return err
	}
	s.tx, err = s.conn.BeginTx(&s.beginCtx, &s.options.tx)
	if err != nil {
		s.conn.Close()
		s.conn = nil
	}
	return err
}
