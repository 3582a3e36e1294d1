// inner.go is the driver's own connection with the optional interfaces that it
// lacks filled in as database/sql does for such a driver. It adds nothing.

package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
)

// inner has all eight optional interfaces of a driver.Conn. Which of them the
// driver has is asked once, at birth.
type inner struct {
	driver.Conn
	pinger    driver.Pinger
	execer    driver.ExecerContext
	queryer   driver.QueryerContext
	preparer  driver.ConnPrepareContext
	beginner  driver.ConnBeginTx
	resetter  driver.SessionResetter
	validator driver.Validator
	checker   driver.NamedValueChecker
	execs     bool // it has a way to run a statement without preparing it
	queries   bool // and one for a query
}

func newInner(dc driver.Conn) inner {
	in := inner{Conn: dc}
	in.pinger, _ = dc.(driver.Pinger)
	in.execer, _ = dc.(driver.ExecerContext)
	in.queryer, _ = dc.(driver.QueryerContext)
	in.preparer, _ = dc.(driver.ConnPrepareContext)
	in.beginner, _ = dc.(driver.ConnBeginTx)
	in.resetter, _ = dc.(driver.SessionResetter)
	in.validator, _ = dc.(driver.Validator)
	in.checker, _ = dc.(driver.NamedValueChecker)
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	_, execer := dc.(driver.Execer)
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	_, queryer := dc.(driver.Queryer)
	in.execs, in.queries = in.execer != nil || execer, in.queryer != nil || queryer
	return in
}

// Ping of a driver that cannot ping succeeds: there is nothing to go by.
func (in *inner) Ping(ctx context.Context) error {
	if in.pinger == nil {
		return nil
	}
	return in.pinger.Ping(ctx)
}

// ResetSession of a driver that cannot reset succeeds if the connection is
// valid; one that can looks for itself.
func (in *inner) ResetSession(ctx context.Context) error {
	switch {
	case in.resetter != nil:
		return in.resetter.ResetSession(ctx)
	case !in.IsValid():
		return driver.ErrBadConn
	}
	return nil
}

func (in *inner) IsValid() bool { return in.validator == nil || in.validator.IsValid() }

// mayPrepare says whether database/sql has to prepare a statement or a query of
// this driver. Their arguments are then the statement's to convert.
func (in *inner) mayPrepare() bool { return !in.execs || !in.queries }

func (in *inner) CheckNamedValue(nv *driver.NamedValue) error {
	if in.checker != nil {
		return in.checker.CheckNamedValue(nv)
	}
	return driver.ErrSkip
}

func (in *inner) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if in.execer != nil {
		return in.execer.ExecContext(ctx, query, args)
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	execer, ok := in.Conn.(driver.Execer)
	if !ok {
		return nil, driver.ErrSkip
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return execer.Exec(query, values)
}

func (in *inner) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if in.queryer != nil {
		return in.queryer.QueryContext(ctx, query, args)
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	queryer, ok := in.Conn.(driver.Queryer)
	if !ok {
		return nil, driver.ErrSkip
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return queryer.Query(query, values)
}

func (in *inner) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if in.preparer != nil {
		return in.preparer.PrepareContext(ctx, query)
	}
	s, err := in.Prepare(query)
	if err == nil && ctx.Err() != nil {
		s.Close()
		return nil, ctx.Err()
	}
	return s, err
}

func (in *inner) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if in.beginner != nil {
		return in.beginner.BeginTx(ctx, opts)
	}
	if opts.Isolation != 0 {
		return nil, errors.New("sql: driver does not support non-default isolation level")
	}
	if opts.ReadOnly {
		return nil, errors.New("sql: driver does not support read-only transactions")
	}
	tx, err := in.Begin()
	if err == nil && ctx.Err() != nil {
		tx.Rollback()
		return nil, ctx.Err()
	}
	return tx, err
}

// positional turns arguments into what a driver without contexts takes.
func positional(ctx context.Context, args []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(args))
	for i, arg := range args {
		if arg.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		values[i] = arg.Value
	}
	return values, ctx.Err()
}

// named is the other way round.
func named(args []driver.Value) []driver.NamedValue {
	values := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		values[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	return values
}
