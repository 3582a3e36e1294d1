// replica.go has units that only read served by a replica, which may be behind, as fresh as
// they need to be. The replicas have a pool of their own, below this one.

package livepool

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/committable"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// FromReplica has a ReadOnly unit served by a replica, if the pool has several hosts and one
// of them is a replica that can be used at once; otherwise by the primary. A replica may be
// behind: see After and MaxLag. The connections to replicas come on top of the pool's own, up
// to as many. Inside another unit it has no effect, nor has the ReadOnly that goes with it.
func FromReplica() SessionOption { return func(o *sessionOptions) { o.fromReplica = true } }

// After has a unit FromReplica see what the unit with this token (Session.Token) has
// committed: it waits until the replica has that, within its context and for half a second at
// most, and is served by the primary if it has not. "" waits for nothing. The token is good
// until PurgeCommits removes it; after that the primary serves. It is refused on a pool with
// another Target, at the levels READ UNCOMMITTED and SERIALIZABLE, and inside a unit
// FromReplica that is not After the same.
func After(token string) SessionOption { return func(o *sessionOptions) { o.after = token } }

// Token identifies what the unit will have committed when it has succeeded, for After: in
// another request or another program, which it may be passed on to. It is the key of Once or
// VerifyCommit, "" for a unit without.
func (s *Session) Token() string {
	for ; s.parent != nil; s = s.parent {
		if s.options.hasOnce {
			return s.options.once
		}
	}
	return s.retryState.key
}

// awaitToken is how long a unit waits for a replica to have what it is After.
const awaitToken = 500 * time.Millisecond

// replicas is the pool on the replicas, opened when it is first asked for.
type replicas struct {
	cfg  *Config // of the pool above; nil where there are no replicas
	once sync.Once
	pool atomic.Pointer[Pool] // nil: it was not opened
}

// unitsPool is the pool to which the units belong that are run on this one.
func (p *Pool) unitsPool() *Pool { return cmp.Or(p.above, p) }

// replicaPool returns it, nil where the pool has one host or is on replicas itself.
func (p *Pool) replicaPool() *Pool {
	cfg := p.replicas.cfg
	if cfg == nil || !p.ctr.HasOtherHosts() {
		return nil
	}
	p.replicas.once.Do(func() {
		cfg.Target, cfg.MinIdle = TargetReplica, 0
		cfg.PoolTimeout = min(cfg.PoolTimeout, awaitToken) // there is the primary
		r, err := OpenConfig(cfg)
		if err != nil {
			p.cfg.log.Error("livepool: the pool on replicas cannot be opened; the primary serves what is FromReplica", "cause", err)
			return
		}
		r.above, r.ctr.Cfg.HasPrimary = p, true
		p.replicas.pool.Store(r)
	})
	return p.replicas.pool.Load()
}

// closeReplicas closes it, if it was opened.
func (p *Pool) closeReplicas() error {
	p.replicas.once.Do(func() {})
	if r := p.replicas.pool.Load(); r != nil {
		return r.Close()
	}
	return nil
}

// errNotThere: the transaction does not see what the unit is to see, or does not say it.
var errNotThere = errors.New("livepool: the replica does not have what the unit is to see")

// runOnReplica runs a unit on a replica. served is false if the primary is to run it: for what
// the session saw, since what fn returns is no evidence. That costs none of MaxAttempts.
func (c *retryState) runOnReplica(ctx context.Context, fn func(context.Context, *Session) error) (served bool, err error) {
	r := c.pool.replicaPool()
	switch {
	case r == nil:
		return false, nil
	case r.ctr.Outage.IsDown():
		r.ctr.Outage.RequestProbe()
		return false, nil
	}
	fresh := func(ctx context.Context, s *Session) error {
		if err := s.checkToken(ctx); err != nil {
			c.attempts-- // one in which fn was not called is none
			return err
		}
		return fn(ctx, s)
	}
	s, err := c.attempt(ctx, r, fresh)
	if err == errNotThere && r.pollToken(ctx, c.options.after) {
		c.attemptStart = time.Now()
		s, err = c.attempt(ctx, r, fresh)
	}
	c.freeAttempts = c.attempts
	isNotThere := errors.Is(err, errNotThere)
	switch {
	case isNotThere && ctx.Err() != nil:
		return true, &sessionDoneError{unit: c.options.name, cause: contextError(ctx)}
	case !s.mayRetry(err) && (ctx.Err() != nil || !isNotThere && s.startErr == nil || errors.Is(err, mysqlerr.ErrCommitUnknown)):
	case c.attempts == 0:
		c.attemptStart = time.Now()
		return false, nil
	default:
		err = c.runAgain(ctx, slog.LevelInfo, 0, s.retryCause(err), err)
		return err != nil, err
	}
	if s.tx != nil {
		c.pool.ctr.Stats.FromReplica.Add(1)
	}
	if err == nil {
		s.runHooks()
		return true, nil
	}
	return true, s.explainFailure(err, c)
}

// checkToken is nil if the transaction sees what the unit is After, and errNotThere if not:
// what it sees from this first look on includes it.
func (s *Session) checkToken(ctx context.Context) error {
	o, condition := s.options, committable.IfCommitted
	if o.after == "" {
		return nil
	}
	if o.tx.Isolation != 0 { // one that was checked, and that the session's variable does not show
		condition = ""
	}
	ctx, cancel := context.WithTimeout(ctx, awaitToken)
	defer cancel()
	switch found, err := s.pool.hasKey(ctx, s, o.after, condition); {
	case err != nil:
		return fmt.Errorf("%w: %w", errNotThere, err)
	case !found:
		return errNotThere
	}
	return nil
}

// hasKey says whether a unit with this key has been committed, as far as db sees.
func (p *Pool) hasKey(ctx context.Context, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, key, condition string) (found bool, err error) {
	ct := &p.ctr.CommitTable
	if ct.NoSchemaErr != nil {
		return false, ct.NoSchemaErr
	}
	err = db.QueryRowContext(ctx, ct.Lookup(key)+condition).Scan(&found)
	return found, err
}

// pollToken waits until a replica has it, and says whether one has. A refusal will not pass.
func (p *Pool) pollToken(ctx context.Context, token string) (found bool) {
	ctx, cancel := context.WithTimeout(outsideUnits{ctx, p}, awaitToken)
	defer cancel()
	for err := error(nil); err == nil && !found; {
		clock.Wait(ctx, nil, 5*time.Millisecond)
		found, err = p.hasKey(ctx, p, token, "")
	}
	return found
}
