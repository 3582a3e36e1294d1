// once.go has a unit of work applied at most once, whatever happens to COMMIT:
// its key goes into the commit table as the first statement of its transaction,
// and the primary key decides everything.
//
//   - The insert says duplicate: a unit with this key has been committed.
//   - The insert waits: an earlier attempt is still alive on the server.
//   - The insert succeeds: no earlier attempt was committed, and none can be any
//     more, for its own insert would fail.
//
// So the insert is the probe. No plain SELECT is trusted anywhere: it says "not
// there" while the earlier attempt is about to be committed.
//
// A lost COMMIT is resolved by a transaction of its own that inserts the key, deletes
// it and commits. The commit is for clusters: there rows and locks are each node's
// own until a transaction is certified, and nothing is proved by an insert before.
// Of this transaction and the earlier attempt the cluster certifies one.

package livepool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/committable"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// Once applies at most one unit of this key, ever: a later one returns nil and does not
// run fn. It needs the commit table (see CreateCommitTable), costs one round trip, and
// holds until PurgeCommits removes the key. A key has at most 255 bytes.
func Once(key string) SessionOption {
	return func(o *sessionOptions) { o.once, o.hasOnce = key, true }
}

// VerifyCommit resolves a COMMIT whose answer was lost: the unit is run again
// only if it was not applied, and WithSession returns nil if it was. It is Once
// with a random key: it needs the commit table and costs one round trip.
func VerifyCommit() SessionOption {
	return func(o *sessionOptions) { o.verify = true }
}

// ErrAlreadyApplied is what errors.Is finds in the error of a unit that was not run,
// because a unit with its key was applied before, where ReportApplied asks for an error.
var ErrAlreadyApplied = errors.New("livepool: not run again, because a unit with its key was applied before")

// ReportApplied has a unit with Once return ErrAlreadyApplied in place of nil, if its key
// was found and its function not run.
func ReportApplied() SessionOption { return func(o *sessionOptions) { o.reportApplied = true } }

func (o *sessionOptions) alreadyApplied() error {
	if o.reportApplied {
		return fmt.Errorf("%w: %s (key %q)", ErrAlreadyApplied, o.name, o.once)
	}
	return nil
}

// ownError is what a function returned, as the error of its unit. ErrAlreadyApplied is that of
// another unit: this one is not applied, and its error must not say that it is.
func ownError(err error) error {
	if errors.Is(err, ErrAlreadyApplied) {
		return errors.New("livepool: nothing was applied, because the function returned the error of another unit: " + err.Error())
	}
	return err
}

// errKeyTaken: a unit with this key has been committed.
var errKeyTaken = errors.New("livepool: a unit with this key has been committed")

// insertKey inserts the key, as the transaction's first statement.
func (s *Session) insertKey(ctx context.Context, key string) error {
	ct := &s.pool.ctr.CommitTable
	if ct.NoSchemaErr != nil {
		return ct.NoSchemaErr
	}
	err := s.execOwn(ctx, "INSERT INTO "+ct.Name+" (unit) VALUES ("+committable.KeyLiteral(key)+")")
	if mysqlerr.Number(err) == 1062 {
		return errKeyTaken
	}
	return ct.Explain(err)
}

// execOwn runs a statement of livepool's own. It is never taken for the cause of a lost
// connection: it may only have been waiting when that happened, as the insert of a key
// waits for an earlier attempt.
func (s *Session) execOwn(ctx context.Context, query string) error {
	_, err := s.ExecContext(ctx, query)
	if err != nil {
		s.root.attempt.ForgetLostStatement(query)
	}
	return err
}

// withKey is fn with the insert of the key before it.
func withKey(fn func(context.Context, *Session) error, key string) func(context.Context, *Session) error {
	return func(ctx context.Context, s *Session) error {
		if err := s.insertKey(ctx, key); err != nil {
			return err
		}
		return fn(ctx, s)
	}
}

// resolveCommit finds out whether the COMMIT of an attempt happened, whose answer was
// lost. It probes at least once, and goes on after any error until the context ends or
// MaxElapsed and CommitTimeout have passed, from now. The attempt has kept its place, so
// that the probe waits for no other session, until it is clear that this may last.
func (c *retryState) resolveCommit(ctx context.Context, unknown *Session, commitErr error) (committed bool, unresolvedErr error) {
	p := c.pool
	defer p.queue.Give(&unknown.place)
	maxWait := time.Duration(math.MaxInt64) // MaxElapsed 0: as long as the context
	if limit := p.cfg.MaxElapsed; limit > 0 {
		maxWait = limit + p.cfg.CommitTimeout
	}
	deadline := time.Now().Add(maxWait)
	resolveCtx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	var lastErr error // of the last probe
	waits, orphan := defaultBackOff(), unknown.attempt.Orphan.Load()
	c.commitSentTo = unknown.attempt.Server()
	for resolveCtx.Err() == nil && p.ctr.Ctx.Err() == nil {
		p.ctr.AwaitOrphan(resolveCtx, orphan)
		s := p.newSession(resolveCtx, &sessionOptions{name: c.options.name, once: c.key, hasOnce: true}, c)
		s.resolveDeadline, s.beginCtx.MayRunAgain = deadline, false
		s.attempt.Key = "" // a probe leaves none
		err := s.run(c.probeKey)
		switch {
		case errors.Is(err, errKeyTaken):
			p.ctr.Stats.CommitsResolved.Add(1)
			return true, nil
		case err == nil, errors.Is(err, errKeyFree):
			return false, nil
		case !errors.Is(err, ErrSessionDone): // which says only that the probe committed nothing
			lastErr = err
		}
		if errors.Is(err, errNoWitness) { // which may never come
			p.queue.Give(&unknown.place)
		}
		orphan = s.attempt.Orphan.Load()
		clock.Wait(resolveCtx, p.ctr.Ctx.Done(), waits.NextBackOff())
	}
	ended := contextError(ctx)
	why := fmt.Sprintf("and its lost COMMIT could not be resolved within %s (MaxElapsed and CommitTimeout)", maxWait)
	switch {
	case ended != nil:
		why = "when its context ended, before its lost COMMIT was resolved"
	case p.ctr.Ctx.Err() != nil:
		why = "because the pool was closed, before its lost COMMIT was resolved"
	}
	e := c.unitError(errors.Join(commitErr, ended, lastErr), why)
	e.keyTells = c.options.hasOnce
	return false, e
}

// probeKey is a transaction that can be committed only if the lost COMMIT did not
// happen, and after which that COMMIT cannot happen any more. It leaves nothing behind. It
// is committed, and not only begun, because a cluster certifies transactions at COMMIT:
// before that an insert proves nothing.
func (c *retryState) probeKey(ctx context.Context, s *Session) error {
	if err := s.insertKey(ctx, c.key); err != nil {
		return err
	}
	if err := c.checkWitness(ctx, s); err != nil {
		return err
	}
	_, err := s.ExecContext(ctx, "DELETE FROM "+c.pool.ctr.CommitTable.Name+" WHERE unit = "+committable.KeyLiteral(c.key))
	if mysqlerr.Number(err) == 1142 && !c.pool.ctr.InCluster.Load() {
		return errKeyFree // no DELETE privilege; on a single server the insert is proof enough
	}
	return err
}

// checkWitness says why the free key proves nothing: another server than the one that COMMIT
// was sent to has taken over, and is not seen to have all that the other had acknowledged.
func (c *retryState) checkWitness(ctx context.Context, s *Session) error {
	name := s.attempt.Server()
	witness, needed := c.pool.ctr.Witness(c.commitSentTo, name)
	if !needed {
		return nil
	}
	if witness != "" {
		if found, err := c.pool.hasKey(ctx, s, witness, ""); err != nil || found {
			return err
		}
	}
	return fmt.Errorf("livepool: the key is not on %s, but COMMIT was sent to %s, whose last acknowledged unit, if there was one, is not there either: %w", name, c.commitSentTo, errNoWitness)
}

// errNoWitness: the last unit that the server of the COMMIT had acknowledged is not there.
var errNoWitness = errors.New("the server that has taken over may lack what the other had committed")

// errKeyFree: the key could be inserted. Returning it rolls the insert back.
var errKeyFree = errors.New("livepool: the key is free")

// CreateCommitTable creates the table that Once and VerifyCommit need
// (Config.CommitTable), if it does not exist. One that exists and cannot keep their
// promise is an error.
func (p *Pool) CreateCommitTable(ctx context.Context) error {
	ct := &p.ctr.CommitTable
	if ct.NoSchemaErr != nil {
		return ct.NoSchemaErr
	}
	ctx = outsideUnits{ctx, nil} // it is no statement of the unit that ctx may be of
	if _, err := p.ExecContext(ctx, ct.DDL()); err != nil {
		return fmt.Errorf("livepool: creating the commit table %s: %w", ct.Name, ct.Explain(err))
	}
	if !p.ctr.IsMySQL {
		return nil
	}
	_, err := committable.InspectTable(ctx, ct, p.DB)
	return err
}

// PurgeCommits removes the keys of committed units that are older than olderThan
// and returns how many. A key's age is counted from its insert, at the beginning
// of its unit (the server's clock). Once it is removed such a unit would be
// applied again: choose a time beyond the longest unit and any redelivery.
//
// It works in small transactions of its own, beside units that go on, and ends
// with the keys that were old when it began. If it fails it returns how many it
// has removed by then.
func (p *Pool) PurgeCommits(ctx context.Context, olderThan time.Duration) (removed int64, err error) {
	if olderThan < 0 {
		return 0, fmt.Errorf("livepool: PurgeCommits(%s): takes a duration of 0 or more", olderThan)
	}
	if err := p.ctr.CommitTable.NoSchemaErr; err != nil {
		return 0, err
	}
	purge := &committable.Purge{Table: &p.ctr.CommitTable, OlderThan: olderThan}
	for unknowns := 0; ; {
		err := p.WithSession(ctx, func(ctx context.Context, s *Session) error { return purge.Batch(ctx, s) }, RequiresNew(), Isolation(sql.LevelRepeatableRead), Name("PurgeCommits"))
		if errors.Is(err, mysqlerr.ErrCommitUnknown) && unknowns < 3 && ctx.Err() == nil {
			unknowns++
			continue // with the same keys: deleting them again shows whether they are gone
		}
		if err != nil {
			return removed, fmt.Errorf("livepool: purging %s, of which %d keys were removed: %w", p.ctr.CommitTable.Name, removed, err)
		}
		removed += purge.Deleted
		if len(purge.Keys) < committable.PurgeBatch {
			return removed, nil
		}
		purge.Keys, purge.Deleted, unknowns = nil, 0, 0
	}
}
