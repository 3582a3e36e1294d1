// errors.go is what a program may ask of an error: what it is, and what it means. The
// table behind it is in internal/mysqlerr.

package livepool

import (
	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// ErrCommitUnknown is what errors.Is finds in the error of a commit whose
// outcome is open: COMMIT was sent, and its answer lost. The work was applied
// once or not at all.
var ErrCommitUnknown = mysqlerr.ErrCommitUnknown

// ErrPoisoned is what errors.Is finds in the error of a statement, or of a
// Commit, that came after the server had ended the transaction; the error that
// ended it is wrapped too. Such a statement is not sent: it would run outside
// the transaction, and survive its rollback.
var ErrPoisoned = connector.ErrPoisoned

// Class is what an error means: a set of the flags below. 0 is an error that
// leaves connection and transaction as good as they were, such as a duplicate
// key.
type Class uint16

const (
	// ConnDead: the connection cannot be used again.
	ConnDead = Class(mysqlerr.ConnDead)
	// NotRun: the statement was refused, or never read; it did nothing.
	NotRun = Class(mysqlerr.NotRun)
	// Elsewhere: this server will not do the work now; another one, or a new
	// connection after a failover, may.
	Elsewhere = Class(mysqlerr.Elsewhere)
	// StatementUndone: the server has undone this statement alone. What the
	// transaction did before is still there, and would be committed.
	StatementUndone = Class(mysqlerr.StatementUndone)
	// TxGone: the server has ended the transaction, or will never commit it.
	// A later statement would run outside it, and survive a rollback.
	TxGone = Class(mysqlerr.TxGone)
	// CommitUnknown: as the answer to COMMIT, or in place of one, it leaves open
	// whether the transaction was committed.
	CommitUnknown = Class(mysqlerr.CommitUnknown)
	// Retry: a unit of work that met it may succeed when it is run again.
	Retry = Class(mysqlerr.Retry)
	// BackOff: but not at once.
	BackOff = Class(mysqlerr.BackOff)
)

// String lists the flags of c.
func (c Class) String() string { return mysqlerr.Class(c).String() }

// Classify says what err means, looking through errors that wrap it. A context
// that ended is 0: it says nothing of the server. ErrCommitUnknown never says
// Retry, whatever came in place of the answer: the work may have been applied.
func Classify(err error) Class { return Class(mysqlerr.Classify(err)) }
