// statements.go is what a function does with its Session: the statements, each
// within the session's time and in its transaction.

package livepool

import (
	"context"
	"database/sql"
	"errors"
)

// told makes an error that only says that the transaction is over say why.
func (s *Session) told(err error) error {
	if err == nil || errors.Is(err, ErrPoisoned) {
		return err
	}
	if errors.Is(err, sql.ErrTxDone) || s.root.caller.Err() != nil {
		return s.ended()
	}
	return err
}

// ExecContext runs a statement in the session's transaction.
func (s *Session) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s.using.RLock()
	defer s.using.RUnlock()
	if bound := bindContext(ctx, s.root.caller); bound != nil {
		defer bound.release()
		ctx = bound
	}
	tx, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	res, err := tx.ExecContext(ctx, query, args...)
	return res, s.told(err)
}

// QueryContext runs a query in the session's transaction. Close the rows before
// the next statement.
func (s *Session) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s.using.RLock()
	defer s.using.RUnlock()
	bound := bindContext(ctx, s.root.caller) // released with the rows
	if bound != nil {
		ctx = bound
	}
	tx, err := s.open(ctx)
	var rows *sql.Rows
	if err == nil {
		rows, err = tx.QueryContext(ctx, query, args...)
		err = s.told(err)
	}
	if err != nil && bound != nil {
		bound.release()
	}
	return rows, err
}

// QueryRowContext runs a query of one row in the session's transaction.
func (s *Session) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	s.using.RLock()
	defer s.using.RUnlock()
	bound := bindContext(ctx, s.root.caller) // released with the row
	if bound != nil {
		ctx = bound
	}
	var row *sql.Row
	if tx, err := s.open(ctx); err == nil {
		row = tx.QueryRowContext(ctx, query, args...)
	} else {
		// A sql.Row with an error can be had only from a query that fails so.
		row = s.pool.DB.QueryRowContext(&endedContext{ctx, err}, query)
	}
	if bound != nil && row.Err() != nil {
		bound.release()
	}
	return row
}

// PrepareContext prepares a statement in the session's transaction, with which
// it is closed.
func (s *Session) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	s.using.RLock()
	defer s.using.RUnlock()
	if bound := bindContext(ctx, s.root.caller); bound != nil {
		defer bound.release()
		ctx = bound
	}
	tx, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	stmt, err := tx.PrepareContext(ctx, query)
	return stmt, s.told(err)
}

// Tx returns the transaction itself, for a library that wants a *sql.Tx. The
// session ends it: a Commit by anyone else is refused, and rolls back.
func (s *Session) Tx(ctx context.Context) (*sql.Tx, error) {
	s.using.RLock()
	defer s.using.RUnlock()
	return s.open(ctx)
}

// Attempt says how often the unit has been tried, this time included: 1 the
// first time.
func (s *Session) Attempt() int { return s.number }
