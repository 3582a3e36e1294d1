// statements.go is what a function does with its Session: statements in its transaction,
// each under a context that ends with the session. A statement's own context may end
// earlier.

package livepool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/livepool/livepool/internal/boundctx"
	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/unitdb"
)

// explainDone makes an error that only says that the transaction is over say why.
func (s *Session) explainDone(err error) error {
	if err == nil || errors.Is(err, connector.ErrPoisoned) {
		return err
	}
	if errors.Is(err, sql.ErrTxDone) || s.root.caller.Err() != nil {
		return s.endedError()
	}
	return err
}

// noteUnsent has the connection note a statement that database/sql did not send,
// because the statement's own context had ended: without it, too, nothing of the
// unit is to be committed.
func (s *Session) noteUnsent(ctx context.Context, tx *sql.Tx, query string, err error) {
	if err == nil || ctx.Err() == nil || s.root.caller.Err() != nil || !errors.Is(err, ctx.Err()) {
		return
	}
	_, _ = tx.ExecContext(connector.WithUnsent(ctx, query, err), query)
}

// ExecContext runs a statement in the session's transaction.
func (s *Session) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s.beginStatement()
	defer s.endStatement()
	if bound := boundctx.Bind(ctx, s.root.caller); bound != nil {
		defer bound.Release()
		ctx = bound
	}
	tx, err := s.openTx(ctx)
	if err != nil {
		return nil, err
	}
	res, err := tx.ExecContext(ctx, query, args...)
	s.noteUnsent(ctx, tx, query, err)
	return res, s.explainDone(err)
}

// QueryContext runs a query in the session's transaction. Close the rows before
// the next statement.
func (s *Session) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s.beginStatement()
	defer s.endStatement()
	bound := boundctx.Bind(ctx, s.root.caller) // released with the rows
	if bound != nil {
		ctx = bound
	}
	tx, err := s.openTx(ctx)
	var rows *sql.Rows
	if err == nil {
		rows, err = tx.QueryContext(ctx, query, args...)
		s.noteUnsent(ctx, tx, query, err)
		err = s.explainDone(err)
	}
	if err != nil && bound != nil {
		bound.Release()
	}
	return rows, err
}

// QueryRowContext runs a query of one row in the session's transaction.
func (s *Session) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	s.beginStatement()
	defer s.endStatement()
	bound := boundctx.Bind(ctx, s.root.caller) // released with the row
	if bound != nil {
		ctx = bound
	}
	var row *sql.Row
	if tx, err := s.openTx(ctx); err == nil {
		row = tx.QueryRowContext(ctx, query, args...)
		s.noteUnsent(ctx, tx, query, row.Err())
	} else {
		// A sql.Row with an error can be had only from a query that fails so.
		row = s.pool.DB.QueryRowContext(boundctx.Ended(ctx, err), query)
	}
	if bound != nil && row.Err() != nil {
		bound.Release()
	}
	return row
}

// PrepareContext prepares a statement in the session's transaction, with which
// it is closed. One that a unit inside another one has prepared is refused once
// that unit has ended.
func (s *Session) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	s.beginStatement()
	defer s.endStatement()
	if bound := boundctx.Bind(ctx, s.root.caller); bound != nil {
		defer bound.Release()
		ctx = bound
	}
	tx, err := s.openTx(ctx)
	if err != nil {
		return nil, err
	}
	inside := ctx
	if s.parent != nil {
		inside = connector.WithPreparingUnit(ctx, s)
	}
	stmt, err := tx.PrepareContext(inside, query)
	s.noteUnsent(ctx, tx, query, err)
	return stmt, s.explainDone(err)
}

// Tx returns the transaction itself, for a library that wants a *sql.Tx. The
// session ends it: a Commit by anyone else is refused, and rolls back. Of a unit
// inside another one it is the outer one's transaction: what is sent on it after
// the inner unit has ended is the outer unit's, also if the inner one was undone.
// A statement on it, or on a sql.Stmt, whose own context has ended is refused by
// database/sql, and livepool does not see it: that error must not be swallowed.
func (s *Session) Tx(ctx context.Context) (*sql.Tx, error) {
	s.beginStatement()
	defer s.endStatement()
	return s.openTx(ctx)
}

// DB returns the unit as a *sql.DB, for a library that takes nothing else, such as ent, bun,
// xorm or goqu: what is run on it runs in the session's transaction, on its one connection,
// and a transaction begun on it is a savepoint. Such transactions only nest; one that is
// left open, or whose own context ends before it does, has the unit fail. A statement on it
// whose own context has ended is refused by database/sql, as with Tx. It is closed when the
// function has returned. For GORM there is Tx.
func (s *Session) DB() *sql.DB {
	// Not under mu: who has the lock of a DB runs statements, which take mu.
	if s.db.Load() == nil {
		root := s.root
		s.db.CompareAndSwap(nil, unitdb.New(unitdb.Env{Unit: s, Driver: s.pool.Driver(), Tx: &root.options.tx, Prefix: s.savepoint() + "_tx",
			Begin: func(ctx context.Context) error { _, err := s.Tx(ctx); return err }, Inner: s.innerEnded.Load,
			Exec: func(query string) error { return s.execOwn(&root.fnContext, query) },
			Broken: func(err error) {
				root.setRollbackOnly(fmt.Errorf("livepool: nothing is committed, because a transaction of %s on Session.DB was neither kept nor undone: %w", s.options.name, err))
			}}))
	}
	db := s.db.Load().SQL()
	if s.hasEnded() {
		db.Close()
	}
	return db
}

func (s *Session) closeDB() {
	if db := s.db.Load(); db != nil {
		db.Close()
	}
}

// Attempt says how often the unit has been tried, this time included: 1 the
// first time.
func (s *Session) Attempt() int { return s.attemptNumber }

type sessionKey struct{}

// poolKey finds the innermost session of one pool, whatever other pools' are
// between.
type poolKey struct{ p *Pool }

// sessionContext is the caller's context with the Session in it.
type sessionContext struct {
	context.Context
	s *Session
}

func (c *sessionContext) Value(key any) any {
	if key == (sessionKey{}) || key == (poolKey{c.s.pool.unitsPool()}) {
		return c.s
	}
	return c.Context.Value(key)
}
