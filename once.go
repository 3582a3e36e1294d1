// once.go has a unit of work applied at most once, whatever happens to COMMIT:
// its key goes into the commit table as the first statement of its transaction,
// and the primary key decides everything.
//
//   - The insert says duplicate: a unit with this key has been committed.
//   - The insert waits: an earlier attempt is still alive on the server.
//   - The insert succeeds: no earlier attempt was committed, and none can be any
//     more, for its own insert would fail.
//
// So the retry is the probe. No plain SELECT is trusted anywhere: it says "not
// there" while the earlier attempt is about to be committed.
//
// In a Galera cluster rows and locks are each node's own until a transaction is
// certified: there nothing is proved by an insert before it is committed. So a
// lost COMMIT is settled by a transaction that inserts the key, deletes it and
// commits. Of it and the earlier attempt the cluster certifies one.

package livepool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"
)

// maxKey is the length of the key column, in bytes.
const maxKey = 255

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

// CreateCommitTable creates the table that Once and VerifyCommit need
// (Config.CommitTable), if it does not exist.
func (p *Pool) CreateCommitTable(ctx context.Context) error {
	_, err := p.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS "+p.ctr.cfg.CommitTable+` (
	unit VARBINARY(255) NOT NULL PRIMARY KEY,
	committed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
	KEY (committed_at)
) ENGINE=InnoDB`)
	if err != nil {
		return fmt.Errorf("livepool: creating the commit table %s: %w", p.ctr.cfg.CommitTable, err)
	}
	return nil
}

// purgeBatch bounds the locks that PurgeCommits holds at a time.
const purgeBatch = 1000

// PurgeCommits removes the keys of committed units that are older than olderThan
// and returns how many. A key's age is counted from its insert, at the beginning
// of its unit (the server's clock). Once it is removed such a unit would be
// applied again: choose a time beyond the longest unit and any redelivery.
func (p *Pool) PurgeCommits(ctx context.Context, olderThan time.Duration) (int64, error) {
	if olderThan < 0 {
		return 0, fmt.Errorf("livepool: PurgeCommits(%s): takes a duration of 0 or more", olderThan)
	}
	// The first condition has the index, the second is right when the clocks change.
	query := fmt.Sprintf("DELETE FROM %s WHERE committed_at <= NOW() - INTERVAL %d MICROSECOND AND UNIX_TIMESTAMP(committed_at) <= UNIX_TIMESTAMP() - %.6f LIMIT %d",
		p.ctr.cfg.CommitTable, olderThan.Microseconds(), olderThan.Seconds(), purgeBatch)
	for total := int64(0); ; {
		res, err := p.ExecContext(Idempotent(ctx), query)
		if err != nil {
			return total, fmt.Errorf("livepool: purging %s: %w", p.ctr.cfg.CommitTable, err)
		}
		n, err := res.RowsAffected()
		total += n
		if err != nil || n < purgeBatch {
			return total, err
		}
	}
}

// errKeyTaken: a unit with this key has been committed.
var errKeyTaken = errors.New("livepool: a unit with this key has been committed")

// takeKey inserts the key, as the transaction's first statement.
func (s *Session) takeKey(ctx context.Context, key string) error {
	table := s.pool.ctr.cfg.CommitTable
	_, err := s.ExecContext(ctx, "INSERT INTO "+table+" (unit) VALUES ("+keyLiteral(key)+")")
	switch errorNumber(err) {
	case 1062:
		return errKeyTaken
	case 1146:
		return fmt.Errorf("livepool: the commit table %s, which Once and VerifyCommit need, does not exist: call CreateCommitTable once: %w", table, err)
	}
	return err
}

// giveKeyBack leaves nothing of the key but what the cluster certifies.
func (s *Session) giveKeyBack(ctx context.Context, key string) error {
	_, err := s.ExecContext(ctx, "DELETE FROM "+s.pool.ctr.cfg.CommitTable+" WHERE unit = "+keyLiteral(key))
	return err
}

// keyLiteral is the key in a statement's text, because a statement with arguments
// costs the driver a round trip more.
func keyLiteral(key string) string { return "x'" + hex.EncodeToString([]byte(key)) + "'" }

// notAppliedError is a lost COMMIT that was found not to have happened, and will
// not any more.
type notAppliedError struct{ lost error }

func (e *notAppliedError) Error() string {
	return "livepool: nothing was applied: the COMMIT whose answer was lost did not happen: " + e.lost.Error()
}

// runKeyed runs a unit of work that has a key in the commit table.
func runKeyed(ctx context.Context, fn func(context.Context, *Session) error, o *sessionOptions, c *course) error {
	c.key = o.once
	if !o.hasOnce {
		c.key = "verify:" + rand.Text()
	}
	u := &keyedUnit{fn: fn, options: o, course: c}
	for {
		if done, err := u.attempt(ctx); done {
			return err
		}
	}
}

// A keyedUnit is a unit of work that has a key in the commit table. Once the
// answer to a COMMIT was lost, nothing but the insert of the key ends the
// uncertainty, and whatever ends the unit before that leaves it unknown.
type keyedUnit struct {
	fn      func(context.Context, *Session) error
	options *sessionOptions
	course  *course
	pending *Session // whose COMMIT is to be settled (course.lost), nil if none
}

// attempt runs the unit once, or finds out about a lost COMMIT, and reports
// whether the unit is at its end.
func (u *keyedUnit) attempt(ctx context.Context) (done bool, err error) {
	c := u.course
	c.attempts++
	s := c.pool.newSession(ctx, u.options, c)
	settling := c.lost != nil && c.pool.ctr.inCluster.Load()
	if settling {
		if err = s.run(u.settleInCluster); err == nil {
			if err = u.settled(); err == nil {
				c.attempts-- // fn has not run
				return false, nil
			}
		}
	} else if err = s.run(u.work); err == nil {
		s.committed()
		return true, nil
	}
	switch {
	case errors.Is(err, errKeyTaken):
		if u.pending != nil {
			c.pool.ctr.stats.commitsResolved.Add(1)
			u.pending.committed()
		}
		return true, nil
	case s.unknown && settling: // to be asked again
	case s.unknown:
		c.lost, u.pending = err, s
		c.limit = math.MaxInt // to settle it is no retry
	case errors.As(err, new(*notAppliedError)):
		return true, c.failed(err, "the limit of MaxAttempts (pool_max_attempts)")
	case !s.mayRunAgain(err) && c.lost == nil:
		return true, s.explain(err, c)
	case !s.mayRunAgain(err):
		return true, c.failed(errors.Join(c.lost, contextsOwn(err)), "before its lost COMMIT was resolved")
	}
	if err := c.again(ctx, s.cause(err), err); err != nil {
		if c.lost != nil {
			return true, errors.Join(c.lost, err)
		}
		return true, err
	}
	c.pool.ctr.settle(ctx, s.attempt.ghost.Load())
	return false, nil
}

// work is the unit's transaction. That the key could be inserted settles a lost
// COMMIT, too, but in a cluster.
func (u *keyedUnit) work(ctx context.Context, s *Session) error {
	if err := s.takeKey(ctx, u.course.key); err != nil {
		return err
	}
	if u.course.lost != nil {
		if err := u.settled(); err != nil {
			return err
		}
	}
	return u.fn(ctx, s)
}

// settleInCluster is a transaction that the cluster certifies only if it does not
// certify the lost COMMIT, and of which nothing remains.
func (u *keyedUnit) settleInCluster(ctx context.Context, s *Session) error {
	if err := s.takeKey(ctx, u.course.key); err != nil {
		return err
	}
	return s.giveKeyBack(ctx, u.course.key)
}

// settled is said of a lost COMMIT that did not happen, and cannot any more: the
// unit may be run again, within its attempts.
func (u *keyedUnit) settled() error {
	c, lost, allowed := u.course, u.course.lost, u.options.maxAttempts
	c.lost, u.pending, c.limit = nil, nil, allowed
	if c.attempts > allowed {
		return &notAppliedError{lost}
	}
	return nil
}
