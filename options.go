// options.go is the options of one unit of work, and what contradicts itself among
// them.

package livepool

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/livepool/livepool/internal/committable"
)

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
	refused     error // what Job does not take
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
func MaxAttempts(n int) SessionOption { return func(o *sessionOptions) { o.maxAttempts = n } }

// RequiresNew gives a unit inside another one a session of its own, with its
// own connection and commit, in place of a savepoint. It needs a second place
// in the pool while the first is held.
func RequiresNew() SessionOption { return func(o *sessionOptions) { o.requiresNew = true } }

// check refuses what contradicts itself.
func (o *sessionOptions) check(p *Pool) error {
	switch {
	case o.refused != nil:
		return o.refused
	case o.maxAttempts < 0:
		return fmt.Errorf("livepool: MaxAttempts(%d): takes 1 or more", o.maxAttempts)
	case o.oncePerID && o.onceName == "":
		return errors.New("livepool: OncePerID: the name is empty")
	case o.oncePerID:
		return errors.New("livepool: OncePerID is an option of Job, which knows the id; WithSession takes Once")
	case o.hasOnce && o.once == "":
		return errors.New("livepool: Once: the key is empty")
	case o.tx.ReadOnly && (o.hasOnce || o.verify):
		return errors.New("livepool: ReadOnly contradicts Once and VerifyCommit, which write a key")
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
