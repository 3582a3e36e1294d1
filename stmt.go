// stmt.go wraps the driver's prepared statements, so that what happens on them
// is known to their connection.

package livepool

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/livepool/livepool/internal/sqltext"
)

// stmt wraps a prepared statement.
type stmt struct {
	c     *conn
	inner driver.Stmt
	query string
	seen  sqltext.Effects
	on    int64 // the serial of the link it was prepared on
	unit  unit  // inside another one, which has prepared it; nil for most
}

// wrapStmt uses the conn's own slot for the first open statement: a query with
// arguments is prepared, executed and closed each time.
func (c *conn) wrapStmt(s driver.Stmt, query string, seen sqltext.Effects) *stmt {
	wrapped := &c.slot
	if wrapped.inner != nil {
		wrapped = new(stmt)
	}
	*wrapped = stmt{c: c, inner: s, query: query, seen: seen, on: c.serial}
	c.prepared++
	return wrapped
}

// Close forwards to the driver. database/sql closes a statement once and does
// not use it afterwards, so that its slot is free again.
// It closes them on idle connections too; what is waiting for its server then
// is not interrupted, and nobody waits for it.
func (s *stmt) Close() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.inner == nil {
		return nil
	}
	var err error
	switch {
	case s.on != c.serial: // with another link the server's statement is gone, or going
	case c.visit != nil:
		c.prepared--
		c.visit.owed = append(c.visit.owed, s.inner)
	default:
		c.prepared--
		err = s.inner.Close()
	}
	if s == &c.slot {
		*s = stmt{c: c}
	}
	return err
}

// enter is the conn's, and prepares the statement again where its link has been
// replaced, which happens only while nobody uses the connection.
func (s *stmt) enter(ctx context.Context) (mark uint64, err error) {
	if s.unit != nil {
		if err := s.unit.over(); err != nil { // what undoes the unit waits for the connection
			return 0, err
		}
	}
	seen := s.seen
	if !s.c.ctr.mysql { // only units read its statements, and it may not have been in one then
		seen = s.c.effects(s.query)
	}
	if mark, err = s.c.enter(ctx, s.query, seen); err != nil {
		return mark, err
	}
	if s.on != s.c.serial {
		inner, err := s.c.inner.PrepareContext(ctx, s.query)
		if err != nil {
			return mark, s.c.restWith(s.c.failed(ctx, err, s.query, mark, effectNone))
		}
		s.inner, s.on = inner, s.c.serial
		s.c.prepared++
		if mark, err = s.c.enter(ctx, s.query, seen); err != nil {
			return mark, err
		}
	}
	if seen == 0 {
		return mark, nil
	}
	if mark, err = s.c.runs(ctx, s.query, seen); err != nil {
		return 0, s.c.restWith(err)
	}
	return mark, nil
}

// NumInput forwards to the driver.
func (s *stmt) NumInput() int { return s.inner.NumInput() }

// Exec is what database/sql uses of a driver without contexts.
func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), named(args))
}

// Query is what database/sql uses of a driver without contexts.
func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), named(args))
}

// ExecContext forwards to the driver.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	mark, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	res, err := s.exec(ctx, args)
	if err != nil {
		return nil, s.c.restWith(s.c.answeredMarked(ctx, s.c.failed(ctx, err, s.query, mark, effectUnknown)))
	}
	s.c.answered()
	return res, s.c.restWith(s.c.answeredMarked(ctx, nil))
}

func (s *stmt) exec(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if execer, ok := s.inner.(driver.StmtExecContext); ok {
		return execer.ExecContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	return s.inner.Exec(values)
}

// QueryContext forwards to the driver.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	mark, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := s.querying(ctx, args)
	if err != nil {
		return nil, s.c.restWith(s.c.answeredMarked(ctx, s.c.failed(ctx, err, s.query, mark, effectUnknown)))
	}
	s.c.answered()
	return s.c.wrapRows(ctx, rows, s.query), nil
}

func (s *stmt) querying(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if queryer, ok := s.inner.(driver.StmtQueryContext); ok {
		return queryer.QueryContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	return s.inner.Query(values)
}

// CheckNamedValue converts an argument as database/sql would with the driver's
// own statement: its NamedValueChecker, else the connection's, and then its
// ColumnConverter.
func (s *stmt) CheckNamedValue(nv *driver.NamedValue) error {
	checker, ok := s.inner.(driver.NamedValueChecker)
	if !ok {
		checker = s.c.inner.checker
	}
	var err error
	if checker != nil {
		if err = checker.CheckNamedValue(nv); err != driver.ErrSkip {
			return err
		}
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	converter, ok := s.inner.(driver.ColumnConverter)
	if !ok {
		return driver.ErrSkip
	}
	if want := s.inner.NumInput(); want >= 0 && want < nv.Ordinal {
		return nil // database/sql will say that there are too many
	}
	value := nv.Value
	if _, ok := value.(driver.Valuer); ok {
		// The default converter calls it, and minds a nil pointer.
		if value, err = driver.DefaultParameterConverter.ConvertValue(value); err != nil {
			return err
		}
	}
	if value, err = converter.ColumnConverter(nv.Ordinal - 1).ConvertValue(value); err != nil {
		return err
	}
	if !driver.IsValue(value) {
		return fmt.Errorf("driver ColumnConverter error converted %T to unsupported type %T", nv.Value, value)
	}
	nv.Value = value
	return nil
}
