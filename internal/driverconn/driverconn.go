// Package driverconn is a driver's connection with the optional interfaces that it
// lacks filled in, as database/sql fills them in. It adds only QueryRow and QueryRows,
// by which livepool asks the server something of its own. It knows nothing of pools
// or of who uses the connection; internal/connector calls it.
package driverconn

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// Conn has all eight optional interfaces of a driver.Conn. New finds out
// which of them the driver has; nothing changes afterwards.
type Conn struct {
	driver.Conn
	pinger          driver.Pinger
	execer          driver.ExecerContext
	queryer         driver.QueryerContext
	preparer        driver.ConnPrepareContext
	beginner        driver.ConnBeginTx
	resetter        driver.SessionResetter
	validator       driver.Validator
	checker         driver.NamedValueChecker
	ExecsDirectly   bool // it can run a statement without preparing it
	QueriesDirectly bool // and a query
}

// New finds out what dc can do.
func New(dc driver.Conn) Conn {
	c := Conn{Conn: dc}
	c.pinger, _ = dc.(driver.Pinger)
	c.execer, _ = dc.(driver.ExecerContext)
	c.queryer, _ = dc.(driver.QueryerContext)
	c.preparer, _ = dc.(driver.ConnPrepareContext)
	c.beginner, _ = dc.(driver.ConnBeginTx)
	c.resetter, _ = dc.(driver.SessionResetter)
	c.validator, _ = dc.(driver.Validator)
	c.checker, _ = dc.(driver.NamedValueChecker)
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	_, execer := dc.(driver.Execer)
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	_, queryer := dc.(driver.Queryer)
	c.ExecsDirectly, c.QueriesDirectly = c.execer != nil || execer, c.queryer != nil || queryer
	return c
}

// Missing names an optional interface that the MySQL driver's connections have and dc, of a
// wrapper, has not; "" for none.
func Missing(dc driver.Conn) string {
	c := New(dc)
	for name, has := range map[string]bool{"Pinger": c.pinger != nil, "ExecerContext": c.execer != nil, "QueryerContext": c.queryer != nil,
		"ConnPrepareContext": c.preparer != nil, "ConnBeginTx": c.beginner != nil, "SessionResetter": c.resetter != nil,
		"Validator": c.validator != nil, "NamedValueChecker": c.checker != nil} {
		if !has {
			return name
		}
	}
	return ""
}

// Ping pings. It returns nil if the driver cannot.
func (c *Conn) Ping(ctx context.Context) error {
	if c.pinger == nil {
		return nil
	}
	return c.pinger.Ping(ctx)
}

// ResetSession of a driver that cannot reset succeeds if the connection is valid; a
// driver that can reset checks that itself.
func (c *Conn) ResetSession(ctx context.Context) error {
	switch {
	case c.resetter != nil:
		return c.resetter.ResetSession(ctx)
	case !c.IsValid():
		return driver.ErrBadConn
	}
	return nil
}

func (c *Conn) IsValid() bool { return c.validator == nil || c.validator.IsValid() }

// MayPrepare says whether database/sql has to prepare some statements, because the driver
// has no direct Exec or no direct Query. The prepared statement then converts their
// arguments.
func (c *Conn) MayPrepare() bool { return !c.ExecsDirectly || !c.QueriesDirectly }

func (c *Conn) CheckNamedValue(nv *driver.NamedValue) error {
	if c.checker != nil {
		return c.checker.CheckNamedValue(nv)
	}
	return driver.ErrSkip
}

func (c *Conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if c.execer != nil {
		return c.execer.ExecContext(ctx, query, args)
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	execer, ok := c.Conn.(driver.Execer)
	if !ok {
		return nil, driver.ErrSkip
	}
	values, err := Positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return execer.Exec(query, values)
}

func (c *Conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.queryer != nil {
		return c.queryer.QueryContext(ctx, query, args)
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	queryer, ok := c.Conn.(driver.Queryer)
	if !ok {
		return nil, driver.ErrSkip
	}
	values, err := Positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return queryer.Query(query, values)
}

func (c *Conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if c.preparer != nil {
		return c.preparer.PrepareContext(ctx, query)
	}
	s, err := c.Prepare(query)
	if err == nil && ctx.Err() != nil {
		s.Close()
		return nil, ctx.Err()
	}
	return s, err
}

func (c *Conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.beginner != nil {
		return c.beginner.BeginTx(ctx, opts)
	}
	if opts.Isolation != 0 {
		return nil, errors.New("sql: driver does not support non-default isolation level")
	}
	if opts.ReadOnly {
		return nil, errors.New("sql: driver does not support read-only transactions")
	}
	tx, err := c.Begin()
	if err == nil && ctx.Err() != nil {
		tx.Rollback()
		return nil, ctx.Err()
	}
	return tx, err
}

// Positional turns arguments into those of a driver without contexts.
func Positional(ctx context.Context, args []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(args))
	for i, arg := range args {
		if arg.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		values[i] = arg.Value
	}
	return values, ctx.Err()
}

// Named turns the arguments of a driver without contexts into named ones.
func Named(args []driver.Value) []driver.NamedValue {
	values := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		values[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	return values
}

// QueryRow asks the server for one row, without any bookkeeping. NULL becomes "".
func (c *Conn) QueryRow(ctx context.Context, query string) ([]string, error) {
	rows, err := c.QueryRows(ctx, query)
	if err == nil && len(rows) == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	return rows[0], nil
}

// QueryRows is QueryRow for any number of rows.
func (c *Conn) QueryRows(ctx context.Context, query string) (all [][]string, err error) {
	_, all, err = c.query(ctx, query)
	return all, err
}

// query returns the names of the columns and the rows.
func (c *Conn) query(ctx context.Context, query string) (names []string, all [][]string, err error) {
	rows, err := c.QueryContext(ctx, query, nil)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	names = rows.Columns()
	values := make([]driver.Value, len(names))
	for {
		err := rows.Next(values)
		if err == io.EOF {
			return names, all, nil
		}
		if err != nil {
			return nil, nil, err
		}
		row := make([]string, len(values))
		for i, v := range values {
			switch v := v.(type) {
			case nil:
			case []byte:
				row[i] = string(v)
			default:
				row[i] = fmt.Sprint(v)
			}
		}
		all = append(all, row)
	}
}

// QueryNamed is QueryRows with the columns by their names.
func (c *Conn) QueryNamed(ctx context.Context, query string) (all []map[string]string, err error) {
	names, rows, err := c.query(ctx, query)
	for _, row := range rows {
		named := map[string]string{}
		for i, value := range row {
			named[names[i]] = value
		}
		all = append(all, named)
	}
	return all, err
}

// IsAnswer says whether an error is the server's answer: a refusal, or no row.
func IsAnswer(err error) bool { return mysqlerr.Number(err) != 0 || err == io.EOF }
