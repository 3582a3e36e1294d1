// driverconn.go is the driver's own connection. Optional interfaces that it lacks are
// replaced as database/sql does for such a driver.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
)

// driverConn has all eight optional interfaces of a driver.Conn. newDriverConn finds out
// which of them the driver has; nothing changes afterwards.
type driverConn struct {
	driver.Conn
	pinger          driver.Pinger
	execer          driver.ExecerContext
	queryer         driver.QueryerContext
	preparer        driver.ConnPrepareContext
	beginner        driver.ConnBeginTx
	resetter        driver.SessionResetter
	validator       driver.Validator
	checker         driver.NamedValueChecker
	execsDirectly   bool // it can run a statement without preparing it
	queriesDirectly bool // and a query
}

func newDriverConn(dc driver.Conn) driverConn {
	in := driverConn{Conn: dc}
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
	in.execsDirectly, in.queriesDirectly = in.execer != nil || execer, in.queryer != nil || queryer
	return in
}

// Ping of a driver that cannot ping succeeds.
func (in *driverConn) Ping(ctx context.Context) error {
	if in.pinger == nil {
		return nil
	}
	return in.pinger.Ping(ctx)
}

// ResetSession of a driver that cannot reset succeeds if the connection is valid; a
// driver that can reset checks that itself.
func (in *driverConn) ResetSession(ctx context.Context) error {
	switch {
	case in.resetter != nil:
		return in.resetter.ResetSession(ctx)
	case !in.IsValid():
		return driver.ErrBadConn
	}
	return nil
}

func (in *driverConn) IsValid() bool { return in.validator == nil || in.validator.IsValid() }

// mayPrepare says whether database/sql has to prepare a statement or a query of this
// driver. Then the prepared statement converts their arguments.
func (in *driverConn) mayPrepare() bool { return !in.execsDirectly || !in.queriesDirectly }

func (in *driverConn) CheckNamedValue(nv *driver.NamedValue) error {
	if in.checker != nil {
		return in.checker.CheckNamedValue(nv)
	}
	return driver.ErrSkip
}

func (in *driverConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
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

func (in *driverConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
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

func (in *driverConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
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

func (in *driverConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
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

// positional turns arguments into those of a driver without contexts.
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

// named turns the arguments of a driver without contexts into named ones.
func named(args []driver.Value) []driver.NamedValue {
	values := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		values[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	return values
}
