// session.go is the unit of work: one function, one connection, one
// transaction. It takes the connection at the first statement, ends the
// transaction one way or the other, and gives the connection back. retry.go decides
// whether the unit is run again; internal/connector's tx.go what COMMIT's outcome was.

package livepool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/fifo"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/unitdb"
	"github.com/livepool/livepool/trace"
)

// A Session is one attempt of a unit of work: it runs statements on one
// connection, in one transaction, which ends with the function that got it. It
// satisfies sqlc's DBTX and bun's IConn; for other libraries there are DB and Tx. It may be used from
// several goroutines, which then take turns; a result must be closed before the
// next statement. While a unit inside it is running they should wait: what
// they send meanwhile is undone with that unit if it fails.
type Session struct {
	pool          *Pool
	options       *sessionOptions
	parent        *Session    // of a unit inside another one, whose transaction it shares
	root          *Session    // itself, except for those
	retryState    *retryState // the root's
	attempt       connector.Attempt
	attemptNumber int
	retryDeadline time.Time // when the unit is not tried again, zero for never
	depth         int       // how many units it is inside of

	// resolveDeadline is set for a session that resolves a lost COMMIT: it needs no place, and
	// waits for a connection until then.
	resolveDeadline time.Time

	caller    context.Context
	fnContext sessionContext         // what the function gets
	beginCtx  connector.BeginContext // what the transaction is begun under

	mu            sync.Mutex // guards what follows
	tx            *sql.Tx
	conn          *sql.Conn // set where tx was begun on one
	acquiredAt    time.Time // when it got its connection, if a tracer is told
	startErr      error     // why there is no transaction: no later statement gets one
	rollbackOnly  error     // why there must be no commit
	innerKeys     []string  // of units inside this one that have ended well
	commitUnknown bool      // its COMMIT was lost

	db       atomic.Pointer[unitdb.DB] // set where DB was called
	observed connector.Observed        // of the attempt, once it has ended

	place           fifo.Place
	inFlight        sync.RWMutex // read-locked while a statement is being sent, of this unit or of one inside it
	ended           atomic.Bool
	innerRunning    atomic.Bool  // a unit inside this one is running
	innerUnreleased atomic.Bool  // and its savepoint is not released: half of its work may be there
	innerEnded      atomic.Int64 // how many units inside this one have ended well
	notUndone       bool         // it could not be undone by itself, because the unit around it had ended

	hooks hooks
}

// FromContext returns the Session of the unit of work that ctx belongs to.
func FromContext(ctx context.Context) (*Session, bool) {
	s, ok := ctx.Value(sessionKey{}).(*Session)
	return s, ok
}

// FromContext returns the Session of the innermost unit of work of this pool that ctx
// belongs to.
func (p *Pool) FromContext(ctx context.Context) (*Session, bool) {
	s, ok := ctx.Value(poolKey{p}).(*Session)
	return s, ok
}

// WithSession runs fn as a unit of work: its statements in one transaction on
// one connection, committed if fn returns nil, rolled back if it returns an
// error, panics or calls runtime.Goexit. It is run again, on a fresh session, if its
// transaction cannot have been committed and the cause is one that may pass: a
// lost connection, a deadlock, a server that refuses or cannot be reached;
// within MaxAttempts, MaxElapsed and ctx. So fn may run more than once: what it
// does outside the database must tolerate being repeated, or wait for AfterCommit.
//
// It returns nil if the unit was applied once. It returns an error that is
// ErrCommitUnknown if COMMIT was sent and its answer lost: applied once or not
// at all. Any other error: nothing was applied, but for what a statement that
// commits implicitly, such as DDL, had committed by then; the error says so.
//
// A function that swallows the error of a statement does not have half of its work
// committed: unless it rolls back to a savepoint, its later statements fail with
// ErrPoisoned, and so does the unit. Only errors that its own words and data bring
// about may be handled by going on (SQLSTATE classes 21, 22, 23, 42, 44 and 45: a
// duplicate or foreign key, a value out of range, syntax, unknown names, SIGNAL;
// and NOWAIT), and only of a statement that the server has undone as a whole: not
// of a procedure, EXECUTE, several statements in one, a result of which rows were
// read, or LOAD DATA LOCAL whose rows could not be read. A statement that was not
// sent, because its own context had ended or a result was still open, is missing
// as well: what may be given up belongs into a unit of its own inside this one, or
// behind a savepoint. Config.Classify may say otherwise.
//
// Inside another unit of the same pool it joins its transaction with a
// savepoint, and is not retried by itself. WithSession is safe for concurrent
// use.
func (p *Pool) WithSession(ctx context.Context, fn func(context.Context, *Session) error, opts ...SessionOption) error {
	c := &retryState{pool: p}
	o := &c.options
	for _, opt := range opts {
		opt(o)
	}
	if err := o.check(p); err != nil {
		return err
	}
	if ctx.Err() != nil { // the function may do more than what a transaction undoes
		return &sessionDoneError{unit: o.name, cause: contextError(ctx)}
	}
	if o.hasOnce && isKeyHeld(ctx, p, o.once, o.requiresNew) {
		return fmt.Errorf("livepool: %s: Once(%q): a unit that it is inside of holds this key, and has not committed it: it would be taken for done, or wait for itself; give it a key of its own", o.name, o.once)
	}
	if outer, ok := p.FromContext(ctx); ok && !o.requiresNew {
		return outer.runInner(ctx, fn, o)
	}
	if err := p.begin(ctx, o.name); err != nil {
		return err
	}
	defer p.end()
	return c.runUnit(ctx, fn)
}

// Do is WithSession for a function with a result: it returns that of the attempt that was
// applied, and the zero value with an error. If a unit with the key of Once was applied
// before, the error is ErrAlreadyApplied. As with AfterCommit, an attempt whose COMMIT was
// lost counts as applied when its key is found, which another delivery of the same key may
// have committed in its place.
func Do[T any](ctx context.Context, p *Pool, fn func(ctx context.Context, s *Session) (T, error), opts ...SessionOption) (T, error) {
	var result, none T
	err := p.WithSession(ctx, func(ctx context.Context, s *Session) (err error) {
		result, err = fn(ctx, s)
		return err
	}, append(opts[:len(opts):len(opts)], ReportApplied())...)
	if err != nil {
		return none, err
	}
	return result, nil
}

// newSession is one attempt.
func (p *Pool) newSession(ctx context.Context, o *sessionOptions, c *retryState) *Session {
	s := &Session{pool: p, options: o, retryState: c, attemptNumber: c.attempts, caller: ctx}
	s.root = s
	s.fnContext = sessionContext{ctx, s}
	s.beginCtx = connector.BeginContext{Context: ctx, Attempt: &s.attempt, MayRunAgain: c.attempts-c.freeAttempts < o.maxAttempts, NeedsPrimary: o.after != "" && p.above == nil}
	s.attempt.Name, s.attempt.Key = o.name, c.key
	s.attempt.HasKey.Store(c.key != "")
	return s
}

// run is the life of an attempt: fn, whose first statement begins the transaction
// (startTx), then COMMIT or ROLLBACK (commit, rollback). However fn ends, the connection
// is given back.
func (s *Session) run(fn func(context.Context, *Session) error) (err error) {
	returned := false
	defer func() {
		if !returned { // by a panic or runtime.Goexit, which goes on
			s.stopStatements()
			s.rollback()
		}
		s.release()
		if err != nil {
			s.observed = s.attempt.Snapshot()
		}
	}()
	err = ownError(fn(&s.fnContext, s))
	s.stopStatements()
	if err == nil {
		err = s.commit()
	} else {
		s.rollback()
	}
	returned = true
	return err
}

// openTx returns the transaction, which it begins at the first statement.
func (s *Session) openTx(ctx context.Context) (*sql.Tx, error) {
	root := s.root
	root.mu.Lock()
	defer root.mu.Unlock()
	switch {
	case s.hasEnded(), root.caller.Err() != nil:
		return nil, s.endedError()
	case root.startErr != nil:
		return nil, root.startErr
	case root.tx != nil:
		return root.tx, nil
	}
	return root.startTx(ctx)
}

// commit commits what there is to commit.
func (s *Session) commit() error {
	switch {
	case s.tx == nil && s.startErr == nil && s.caller.Err() != nil:
		return s.endedError()
	case s.tx == nil:
		return s.startErr // which the function swallowed, if there is one
	}
	err := s.unfinishedErr() // before rollbackOnlyErr, because a unit inside sets that before it has ended
	if err == nil {
		err = s.rollbackOnlyErr()
	}
	if err != nil {
		s.rollback()
		return err
	}
	s.attempt.CommitState.Store(connector.CommitAllowed)
	s.retryState.outcome = trace.Unknown // until it is answered
	err = s.sendCommit()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrTxDone) && !s.attempt.CommitState.CompareAndSwap(connector.CommitAllowed, connector.CommitNotAllowed):
		s.commitUnknown = true
		return fmt.Errorf("%w: the COMMIT of somebody else, through Session.Tx of %s, was under way", mysqlerr.ErrCommitUnknown, s.options.name)
	case errors.Is(err, mysqlerr.ErrCommitUnknown):
		s.commitUnknown = true
		return err
	case s.caller.Err() != nil:
		return s.endedError()
	case errors.Is(err, sql.ErrTxDone):
		return fmt.Errorf("livepool: nothing was committed: the transaction of %s was ended through Session.Tx, which only the session may", s.options.name)
	}
	if s.attempt.Snapshot().Failure == nil && s.pool.ctr.Classify(err)&mysqlerr.Retry != 0 {
		s.attempt.NoteFailure(err) // COMMIT was refused, or never sent
	}
	return err
}

func (s *Session) sendCommit() error {
	t := &s.pool.ctr.Tracer
	if !t.HasEvents() || !s.resolveDeadline.IsZero() { // the unit has committed, or not, before
		return s.tx.Commit()
	}
	start := time.Now()
	err := s.tx.Commit()
	if !s.attempt.CommitWasSent() {
		return err
	}
	t.Event(s.caller, trace.Commit{Unit: s.options.name, Took: time.Since(start), Err: err})
	return err
}

func (s *Session) rollback() {
	if s.tx != nil {
		_ = s.tx.Rollback() // its failure closes the connection, and the server rolls back
	}
}

// release gives the connection and the place back. The place is kept while a lost COMMIT
// is still to be resolved.
func (s *Session) release() {
	s.closeDB()
	s.mu.Lock()
	conn, acquiredAt := s.conn, s.acquiredAt
	s.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	if t := &s.pool.ctr.Tracer; !acquiredAt.IsZero() {
		t.Event(s.caller, trace.Release{Unit: s.options.name, Held: time.Since(acquiredAt)})
	}
	if !s.commitUnknown || s.retryState.key == "" {
		s.pool.queue.Give(&s.place)
	}
}

func (s *Session) rollbackOnlyErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rollbackOnly
}

func (s *Session) setRollbackOnly(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rollbackOnly = err
}

// unfinishedErr is the error of a unit whose function has returned before what it began.
func (s *Session) unfinishedErr() error {
	var what string
	switch db := s.db.Load(); {
	case s.innerUnreleased.Load():
		what = "a unit inside it was running"
	case db != nil && db.HasOpenTx():
		what = "a transaction that it began on Session.DB was open"
	default:
		return nil
	}
	return fmt.Errorf("livepool: nothing is committed: the function of %s has returned while %s", s.options.name, what)
}

// stopStatements refuses further statements, and waits for those that are being
// sent, in this unit and in those inside it: a goroutine that outlives the function
// leaves no transaction behind, and adds nothing to what has been undone.
func (s *Session) stopStatements() {
	s.ended.Store(true)
	s.inFlight.Lock()
	defer s.inFlight.Unlock()
}

// beginStatement and endStatement enclose each statement: whatever ends this unit, or one
// around it, waits for endStatement. They lock from the inside out.
func (s *Session) beginStatement() {
	for ; s != nil; s = s.parent {
		s.inFlight.RLock()
	}
}

func (s *Session) endStatement() {
	for ; s != nil; s = s.parent {
		s.inFlight.RUnlock()
	}
}

// hasEnded says whether the unit, or one that it is inside of, has ended. Then its work is
// undone or applied, and no more can be added.
func (s *Session) hasEnded() bool {
	for ; s != nil; s = s.parent {
		if s.ended.Load() {
			return true
		}
	}
	return false
}

// EndedErr is the error of a statement that comes too late, nil if none does.
func (s *Session) EndedErr() error {
	if s.hasEnded() {
		return s.endedError()
	}
	return nil
}

// endedError is the error of a statement that comes too late.
func (s *Session) endedError() error {
	return &sessionDoneError{unit: s.options.name, cause: contextError(s.root.caller)}
}
