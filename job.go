// job.go has the options of a unit of work, and makes a unit into a job body for a
// runner. A session or a pool cannot be passed to a job.

package livepool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/livepool/livepool/internal/committable"
)

// ID is what identifies the object that a job is about: an integer, a string or
// a UUID. A row object or a session is not: by the time the job runs it would be stale,
// or ended.
type ID interface {
	~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~string | ~[16]byte
}

// Job returns a job body that runs fn as a unit of work on p. The id is looked
// up by fn, in its own transaction.
func Job[I ID](p *Pool, fn func(ctx context.Context, s *Session, id I) error, opts ...SessionOption) func(ctx context.Context, id I) error {
	return func(ctx context.Context, id I) error {
		return p.WithSession(ctx, func(ctx context.Context, s *Session) error { return fn(ctx, s, id) },
			append(opts[:len(opts):len(opts)], completeOnce(id))...)
	}
}

// OncePerID is for Job: Once with the key "name:id", so that a job of that name
// is applied at most once for each id. Where ids are strings, no name should be
// another with a colon and more.
func OncePerID(name string) SessionOption {
	return func(o *sessionOptions) { o.onceName, o.oncePerID = name, true }
}

// completeOnce gives OncePerID the id.
func completeOnce[I ID](id I) SessionOption {
	return func(o *sessionOptions) {
		switch {
		case o.hasOnce && o.oncePerID:
			o.refused = fmt.Errorf("livepool: Job: Once(%q) and OncePerID(%q) together: a unit has one key", o.once, o.onceName)
		case o.hasOnce:
			o.refused = fmt.Errorf("livepool: Job: Once(%q) is one key for all ids, of which only the first would be applied: use OncePerID(%q)", o.once, o.once)
		}
		if !o.oncePerID || o.onceName == "" {
			return
		}
		o.once, o.hasOnce, o.oncePerID = o.onceName+":"+committable.IDText(id), true, false
	}
}

var errNotSerialisable = errors.New("livepool: a session or a pool cannot be passed to a job: pass the id of the object, and look it up in the job's own session")

// MarshalJSON refuses: pass an id to a job, never a session.
func (s *Session) MarshalJSON() ([]byte, error) { return nil, errNotSerialisable }

// GobEncode refuses: pass an id to a job, never a session.
func (s *Session) GobEncode() ([]byte, error) { return nil, errNotSerialisable }

// MarshalJSON refuses: pass an id to a job, never a pool.
func (p *Pool) MarshalJSON() ([]byte, error) { return nil, errNotSerialisable }

// GobEncode refuses: pass an id to a job, never a pool.
func (p *Pool) GobEncode() ([]byte, error) { return nil, errNotSerialisable }

// A SessionOption changes one unit of work.
type SessionOption func(*sessionOptions)

type sessionOptions struct {
	name        string
	tx          sql.TxOptions
	maxAttempts int
	requiresNew bool
	once        string
	hasOnce     bool
	verify      bool
	oncePerID   bool // which only Job can complete
	onceName    string
	refused     error // for an option that is none, or that Job does not take

	reportApplied bool
	fromReplica   bool
	after         string // a token, "" for none
}

// Name names the unit in errors, logs, statistics and leak reports.
func Name(name string) SessionOption { return func(o *sessionOptions) { o.name = name } }

// ReadOnly runs the unit in a read-only transaction. Since it changes nothing,
// it is run again even when the answer to its COMMIT was lost.
func ReadOnly() SessionOption { return func(o *sessionOptions) { o.tx.ReadOnly = true } }

// Isolation sets the transaction's isolation level; it costs a round trip.
func Isolation(level sql.IsolationLevel) SessionOption {
	return func(o *sessionOptions) { o.tx.Isolation = level }
}

// MaxAttempts takes the place of Config.MaxAttempts; 1 never retries.
func MaxAttempts(n int) SessionOption {
	return func(o *sessionOptions) {
		if o.maxAttempts = n; n < 1 {
			o.refused = fmt.Errorf("livepool: MaxAttempts(%d): takes 1 or more", n)
		}
	}
}

// RequiresNew gives a unit inside another one a session of its own, with its
// own connection and commit, in place of a savepoint. It needs a second place
// in the pool while the first is held.
func RequiresNew() SessionOption { return func(o *sessionOptions) { o.requiresNew = true } }

// check refuses what contradicts itself.
func (o *sessionOptions) check(p *Pool) error {
	switch {
	case o.refused != nil:
		return o.refused
	case o.oncePerID && o.onceName == "":
		return errors.New("livepool: OncePerID: the name is empty")
	case o.oncePerID:
		return errors.New("livepool: OncePerID is an option of Job, which knows the id; WithSession takes Once")
	case o.hasOnce && o.once == "":
		return errors.New("livepool: Once: the key is empty")
	case o.tx.ReadOnly && (o.hasOnce || o.verify):
		return errors.New("livepool: ReadOnly contradicts Once and VerifyCommit, which write a key")
	case o.fromReplica && !o.tx.ReadOnly:
		return errors.New("livepool: FromReplica is for a unit that is ReadOnly")
	case o.after != "" && !o.fromReplica:
		return errors.New("livepool: After is for a unit FromReplica; on the primary all is there")
	case o.after != "" && p.cfg.Target != TargetPrimary:
		return fmt.Errorf("livepool: After is for a pool on the primary, which serves what no replica has; this one has pool_target=%s", p.cfg.Target)
	case o.after != "" && (o.tx.Isolation == sql.LevelReadUncommitted || o.tx.Isolation == sql.LevelSerializable):
		return fmt.Errorf("livepool: After contradicts Isolation(%s): Read Uncommitted sees a token before its unit is committed, Serializable waits for it", o.tx.Isolation)
	case len(o.once) > committable.MaxKey:
		return fmt.Errorf("livepool: Once: the key has %d bytes, takes at most %d", len(o.once), committable.MaxKey)
	}
	if o.name == "" {
		o.name = "a unit of work"
	}
	if o.maxAttempts == 0 {
		o.maxAttempts = p.cfg.MaxAttempts
	}
	return nil
}
