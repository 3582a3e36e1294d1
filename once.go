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
// A lost COMMIT is settled by a transaction of its own that inserts the key, deletes
// it and commits. The commit is for clusters: there rows and locks are each node's
// own until a transaction is certified, and nothing is proved by an insert before.
// Of this transaction and the earlier attempt the cluster certifies one.

package livepool

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// Once applies the unit at most once among all units of the same key, ever: of
// those that come later fn is not run, and they succeed. It needs the commit
// table (see CreateCommitTable), costs one round trip, and holds until
// PurgeCommits removes the key. A key has at most 255 bytes.
func Once(key string) SessionOption {
	return func(o *sessionOptions) { o.once, o.hasOnce = key, true }
}

// VerifyCommit resolves a COMMIT whose answer was lost: the unit is run again
// only if it was not applied, and WithSession returns nil if it was. It is Once
// with a random key: it needs the commit table and costs one round trip.
func VerifyCommit() SessionOption {
	return func(o *sessionOptions) { o.verify = true }
}

// errKeyTaken: a unit with this key has been committed.
var errKeyTaken = errors.New("livepool: a unit with this key has been committed")

// takeKey inserts the key, as the transaction's first statement.
func (s *Session) takeKey(ctx context.Context, key string) error {
	ct := &s.pool.ctr.commits
	if ct.wrong != nil {
		return ct.wrong
	}
	_, err := s.ExecContext(ctx, "INSERT INTO "+ct.name+" (unit) VALUES ("+keyLiteral(key)+")")
	if errorNumber(err) == 1062 {
		return errKeyTaken
	}
	return ct.explain(err)
}

// keyed is the work of a unit that has a key: that comes first.
func keyed(fn func(context.Context, *Session) error, key string) func(context.Context, *Session) error {
	return func(ctx context.Context, s *Session) error {
		if err := s.takeKey(ctx, key); err != nil {
			return err
		}
		return fn(ctx, s)
	}
}

// notAppliedError is a lost COMMIT that was found not to have happened, and will
// not any more.
type notAppliedError struct{ lost error }

func (e *notAppliedError) Error() string {
	return "livepool: nothing was applied: the COMMIT whose answer was lost did not happen: " + e.lost.Error()
}

// settle finds out whether the COMMIT of an attempt happened, whose answer was
// lost. It looks at least once and, whatever a look meets, until the context ends
// or the time for it: MaxElapsed and CommitTimeout, from now. The attempt has kept
// its place, so that no other session is waited for.
func (c *course) settle(ctx context.Context, lost *Session, commit error) (happened bool, unsettled error) {
	p := c.pool
	defer p.places.release(&lost.place)
	patience := time.Duration(math.MaxInt64) // MaxElapsed 0: as long as the context
	if limit := p.cfg.MaxElapsed; limit > 0 {
		patience = limit + p.cfg.CommitTimeout
	}
	until := time.Now().Add(patience)
	looking, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	var met error // by the last look
	waits, orphan := defaultBackOff(), lost.attempt.ghost.Load()
	for looking.Err() == nil && p.ctr.life.Err() == nil {
		p.ctr.settle(looking, orphan)
		s := p.newSession(looking, &sessionOptions{name: c.options.name, once: c.key, hasOnce: true}, c)
		s.lookUntil = until
		err := s.run(c.look)
		switch {
		case errors.Is(err, errKeyTaken):
			p.ctr.stats.commitsResolved.Add(1)
			return true, nil
		case err == nil, errors.Is(err, errKeyFree):
			return false, nil
		case !errors.Is(err, ErrSessionDone): // which says that nothing was committed, of the look
			met = err
		}
		orphan = s.attempt.ghost.Load()
		waitFor(looking, p.ctr.life.Done(), waits.NextBackOff())
	}
	ended := contextEnd(ctx)
	why := fmt.Sprintf("and its lost COMMIT could not be resolved within %s (MaxElapsed and CommitTimeout)", patience)
	switch {
	case ended != nil:
		why = "when its context ended, before its lost COMMIT was resolved"
	case p.ctr.life.Err() != nil:
		why = "because the pool was closed, before its lost COMMIT was resolved"
	}
	return false, c.failed(errors.Join(commit, ended, met), why)
}

// look is a transaction that can be committed only if the lost COMMIT did not
// happen, and after which that cannot happen any more; nothing of it remains. It
// is committed, and not only begun, because in a cluster that certifies
// transactions an insert proves nothing before.
func (c *course) look(ctx context.Context, s *Session) error {
	if err := s.takeKey(ctx, c.key); err != nil {
		return err
	}
	_, err := s.ExecContext(ctx, "DELETE FROM "+c.pool.ctr.commits.name+" WHERE unit = "+keyLiteral(c.key))
	if errorNumber(err) == 1142 && !c.pool.ctr.inCluster.Load() {
		return errKeyFree // it may not delete; on a single server the insert has told
	}
	return err
}

// errKeyFree: the key could be inserted. It has the insert rolled back.
var errKeyFree = errors.New("livepool: the key is free")
