// replica.go has units that only read served by a replica, which may be behind, as fresh as
// they need to be. The replicas have a pool of their own, below this one.

package livepool

import (
	"context"
	"database/sql"
	"errors"
	"sync"
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

// awaitToken is how long a unit waits for a replica to have what it is After, tokenPause the
// pause between two looks.
const (
	awaitToken = 500 * time.Millisecond
	tokenPause = 5 * time.Millisecond
)

// replicas is the pool on the replicas, opened when it is first asked for.
type replicas struct {
	cfg  *Config // of the pool above; nil where there are no replicas
	once sync.Once
	pool *Pool // nil: it was not opened
}

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
		context.AfterFunc(p.ctr.Ctx, func() { r.Close() }) // the sql.DB may be closed by itself
		r.above = p
		p.replicas.pool = r
	})
	return p.replicas.pool
}

// closeReplicas closes it, if it was opened.
func (p *Pool) closeReplicas() error {
	p.replicas.once.Do(func() {})
	if r := p.replicas.pool; r != nil {
		return r.Close()
	}
	return nil
}

// errNotThere: the replica does not have the token.
var errNotThere = errors.New("livepool: the replica does not have what the unit is to see")

// runOnReplica runs a unit on a replica. served is false if the primary is to run it.
func (p *Pool) runOnReplica(ctx context.Context, fn func(context.Context, *Session) error, o *sessionOptions) (served bool, err error) {
	r := p.replicaPool()
	if r == nil {
		return false, nil
	}
	if r.ctr.Outage.IsDown() {
		r.ctr.Outage.RequestProbe()
		return false, nil
	}
	onReplica := *o
	onReplica.maxAttempts = 1
	fresh := fn
	if o.after != "" {
		fresh = func(ctx context.Context, s *Session) error { // what the transaction sees from the first look on includes it
			if found, err := r.hasToken(ctx, s, o.after); err != nil || !found {
				return errNotThere
			}
			return fn(ctx, s)
		}
	}
	var c *retryState
	run := func() error {
		c = &retryState{pool: r, options: onReplica}
		return c.runUnit(ctx, fresh)
	}
	err = run()
	if err == errNotThere && r.pollToken(ctx, o.after) {
		err = run()
	}
	if ctx.Err() == nil && (err == errNotThere || c.mayPass || isUnstarted(err)) {
		return false, nil
	}
	p.ctr.Stats.FromReplica.Add(1)
	return true, err
}

// hasToken says whether a replica has what the unit with this token has committed.
func (p *Pool) hasToken(ctx context.Context, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, token string) (found bool, err error) {
	query := "SELECT COUNT(*) FROM " + p.ctr.CommitTable.Name + " WHERE unit = " + committable.KeyLiteral(token)
	return found, db.QueryRowContext(ctx, query).Scan(&found)
}

// pollToken waits until a replica has it, and says whether one has.
func (p *Pool) pollToken(ctx context.Context, token string) (found bool) {
	ctx, cancel := context.WithTimeout(outsideUnits{ctx, p}, awaitToken)
	defer cancel()
	for ctx.Err() == nil && !found {
		clock.Wait(ctx, nil, tokenPause)
		found, _ = p.hasToken(ctx, p, token)
	}
	return found
}
