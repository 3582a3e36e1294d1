// replica.go has units that only read served by a replica, which may be behind, as fresh as
// they need to be. The replicas have a pool of their own, below this one.

package livepool

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/committable"
)

// FromReplica has a ReadOnly unit served by a replica, if the pool has several hosts and one
// of them is a replica that can be used at once; otherwise by the primary. A replica may be
// behind: see After and MaxLag. The connections to replicas come on top of the pool's own, up
// to as many. Inside another unit it has no effect.
func FromReplica() SessionOption { return func(o *sessionOptions) { o.fromReplica = true } }

// After has a unit FromReplica see what the unit with this token (Session.Token) has
// committed: it waits until the replica has that, within its context and for half a second at
// most, and is served by the primary if it has not. "" waits for nothing. The token is good
// until PurgeCommits removes it; after that the primary serves.
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
	p.replicas.once.Do(func() {
		cfg := p.replicas.cfg
		if cfg == nil {
			return
		}
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

// errNotThere: the replica does not have the token.
var errNotThere = errors.New("livepool: the replica does not have what the unit is to see")

// runOnReplica runs a unit on a replica. served is false if the primary is to run it, for which
// that was no attempt.
func (c *retryState) runOnReplica(ctx context.Context, fn func(context.Context, *Session) error) (served bool, err error) {
	r, after := c.pool.replicaPool(), c.options.after
	if r == nil {
		return false, nil
	}
	if r.ctr.Outage.IsDown() {
		r.ctr.Outage.RequestProbe()
		return false, nil
	}
	there := &retryState{pool: r, options: c.options, started: c.started}
	there.options.maxAttempts, there.options.fromReplica = 1, false
	fresh := fn
	if after != "" {
		fresh = func(ctx context.Context, s *Session) error { // what the transaction sees from the first look on includes it
			if found, err := r.hasKey(ctx, s, after); err != nil || !found {
				return errNotThere
			}
			return fn(ctx, s)
		}
	}
	err = there.run(ctx, fresh)
	if err == errNotThere && r.pollToken(ctx, after) {
		err = there.run(ctx, fresh)
	}
	c.attempts, c.outcome = there.attempts, there.outcome
	if ctx.Err() == nil && (err == errNotThere || there.mayPass || isUnstarted(err)) {
		c.options.maxAttempts += c.attempts
		return false, nil
	}
	c.pool.ctr.Stats.FromReplica.Add(1)
	return true, err
}

// hasKey says whether a unit with this key has been committed, as far as db sees.
func (p *Pool) hasKey(ctx context.Context, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, key string) (found bool, err error) {
	query := "SELECT COUNT(*) FROM " + p.ctr.CommitTable.Name + " WHERE unit = " + committable.KeyLiteral(key)
	return found, db.QueryRowContext(ctx, query).Scan(&found)
}

// pollToken waits until a replica has it, and says whether one has.
func (p *Pool) pollToken(ctx context.Context, token string) (found bool) {
	ctx, cancel := context.WithTimeout(outsideUnits{ctx, p}, awaitToken)
	defer cancel()
	for ctx.Err() == nil && !found {
		clock.Wait(ctx, nil, 5*time.Millisecond)
		found, _ = p.hasKey(ctx, p, token)
	}
	return found
}
