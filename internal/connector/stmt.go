// stmt.go wraps the driver's prepared statements, so that their requests go through
// their connection.

package connector

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/sqltext"
)

// stmt wraps a prepared statement. Its owner's requests write it, and Close under the
// slot's mu.
type stmt struct {
	c          *conn
	driverStmt driver.Stmt
	query      string
	effects    sqltext.Effects
	linkSerial int64     // of the link on which it is prepared
	preparedIn InnerUnit // the nested unit that has prepared it, nil for most
}

// wrapStmt uses inlineStmt for the first open statement: a query with arguments is
// prepared, executed and closed each time.
func (c *conn) wrapStmt(s driver.Stmt, query string, effects sqltext.Effects) *stmt {
	wrapped := &c.inlineStmt
	if wrapped.driverStmt != nil {
		wrapped = new(stmt)
	}
	*wrapped = stmt{c: c, driverStmt: s, query: query, effects: effects, linkSerial: c.serial}
	c.openStmts++
	return wrapped
}

// Close forwards to the driver. database/sql closes a statement once and does not use it
// afterwards, so inlineStmt is free again. It closes statements of idle connections,
// too: during a reservation the close is deferred, so that nobody waits for it.
func (s *stmt) Close() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.driverStmt == nil {
		return nil
	}
	var err error
	switch {
	case s.linkSerial != c.serial: // the link was replaced, and the server's statement went with it
	case c.reservation != nil:
		c.openStmts--
		c.reservation.deferredCloses = append(c.reservation.deferredCloses, s.driverStmt)
	default:
		c.openStmts--
		err = s.driverStmt.Close()
	}
	if s == &c.inlineStmt {
		*s = stmt{c: c}
	}
	return err
}

// beginRequest is the conn's. It also prepares the statement again if the link was
// replaced, which happens only while nobody uses the connection.
func (s *stmt) beginRequest(ctx context.Context) (mark uint64, err error) {
	if s.preparedIn != nil {
		if err := s.preparedIn.EndedErr(); err != nil { // the connection is used for undoing the unit
			return 0, err
		}
	}
	effects := s.effects
	if !s.c.ctr.IsMySQL { // its statements are read only inside a unit, and it may have been prepared outside
		effects = s.c.effects(s.query)
	}
	if mark, err = s.c.beginRequest(ctx, s.query, effects); err != nil {
		return mark, err
	}
	if s.linkSerial != s.c.serial {
		watched := s.c.watch(ctx)
		inner, err := s.c.driverConn.PrepareContext(watched, s.query)
		if err = s.c.unwatch(watched, err); err != nil {
			return mark, s.c.parkWith(s.c.handleFailure(ctx, err, s.query, mark, effectlessRequest))
		}
		s.driverStmt, s.linkSerial = inner, s.c.serial
		s.c.openStmts++
		if mark, err = s.c.beginRequest(ctx, s.query, effects); err != nil {
			return mark, err
		}
	}
	if effects == 0 {
		return mark, nil
	}
	if mark, err = s.c.noteEffects(ctx, s.query, effects); err != nil {
		return 0, s.c.parkWith(err)
	}
	return mark, nil
}

// NumInput forwards to the driver.
func (s *stmt) NumInput() int { return s.driverStmt.NumInput() }

// Exec is what database/sql uses of a driver without contexts.
func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), driverconn.Named(args))
}

// Query is what database/sql uses of a driver without contexts.
func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), driverconn.Named(args))
}

// ExecContext forwards to the driver.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	mark, err := s.beginRequest(ctx)
	if err != nil {
		return nil, err
	}
	watched := s.c.watch(ctx)
	res, err := s.execContext(watched, args)
	if err = s.c.unwatch(watched, err); err != nil {
		return nil, s.c.parkWith(s.c.afterStatement(ctx, s.c.handleFailure(ctx, err, s.query, mark, statementRequest)))
	}
	s.c.recordAnswer()
	return res, s.c.endStatement(ctx)
}

func (s *stmt) execContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if execer, ok := s.driverStmt.(driver.StmtExecContext); ok {
		return execer.ExecContext(ctx, args)
	}
	values, err := driverconn.Positional(ctx, args)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	return s.driverStmt.Exec(values)
}

// QueryContext forwards to the driver.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	mark, err := s.beginRequest(ctx)
	if err != nil {
		return nil, err
	}
	watched := s.c.watch(ctx)
	rows, err := s.queryContext(watched, args)
	if err != nil {
		err = s.c.unwatch(watched, err)
		return nil, s.c.parkWith(s.c.afterStatement(ctx, s.c.handleFailure(ctx, err, s.query, mark, statementRequest)))
	}
	s.c.recordAnswer()
	return s.c.wrapRows(ctx, watched, rows, s.query), nil
}

func (s *stmt) queryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if queryer, ok := s.driverStmt.(driver.StmtQueryContext); ok {
		return queryer.QueryContext(ctx, args)
	}
	values, err := driverconn.Positional(ctx, args)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	return s.driverStmt.Query(values)
}

// CheckNamedValue converts an argument as database/sql would with the driver's
// own statement: its NamedValueChecker, else the connection's, and then its
// ColumnConverter.
func (s *stmt) CheckNamedValue(nv *driver.NamedValue) error {
	checker, ok := s.driverStmt.(driver.NamedValueChecker)
	if !ok {
		checker = &s.c.driverConn
	}
	err := checker.CheckNamedValue(nv)
	if err != driver.ErrSkip {
		return err
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	converter, ok := s.driverStmt.(driver.ColumnConverter)
	if !ok {
		return driver.ErrSkip
	}
	if want := s.driverStmt.NumInput(); want >= 0 && want < nv.Ordinal {
		return nil // database/sql will say that there are too many
	}
	value := nv.Value
	if _, ok := value.(driver.Valuer); ok {
		// The default converter calls it, and handles a nil pointer.
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
