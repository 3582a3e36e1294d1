// noop.go is a database/sql driver that does nothing as fast as it can, so
// that what is measured on it is what lies above the driver. It has every
// optional interface and allocates nothing.

package main

import (
	"context"
	"database/sql/driver"
	"io"
)

type noopConnector struct{}

func (noopConnector) Connect(context.Context) (driver.Conn, error) { return new(noopConn), nil }
func (noopConnector) Driver() driver.Driver                        { return noopDriver{} }

type noopDriver struct{}

func (noopDriver) Open(string) (driver.Conn, error)               { return new(noopConn), nil }
func (noopDriver) OpenConnector(string) (driver.Connector, error) { return noopConnector{}, nil }

// noopConn is its own transaction, statement and result, which it can be
// because database/sql uses a connection from one goroutine at a time.
type noopConn struct {
	rows noopRows
	stmt noopStmt
}

func (c *noopConn) Ping(context.Context) error               { return nil }
func (c *noopConn) ResetSession(context.Context) error       { return nil }
func (c *noopConn) IsValid() bool                            { return true }
func (c *noopConn) CheckNamedValue(*driver.NamedValue) error { return nil }
func (c *noopConn) Close() error                             { return nil }
func (c *noopConn) Begin() (driver.Tx, error)                { return c, nil }
func (c *noopConn) Commit() error                            { return nil }
func (c *noopConn) Rollback() error                          { return nil }
func (c *noopConn) Prepare(string) (driver.Stmt, error)      { return c.prepared(), nil }

func (c *noopConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return c, nil }

func (c *noopConn) PrepareContext(context.Context, string) (driver.Stmt, error) {
	return c.prepared(), nil
}

func (c *noopConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return noopResult, nil
}

func (c *noopConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return c.result(), nil
}

func (c *noopConn) prepared() driver.Stmt {
	c.stmt.conn = c
	return &c.stmt
}

// result is one row of one column.
func (c *noopConn) result() driver.Rows {
	c.rows.left = 1
	return &c.rows
}

var noopResult driver.Result = driver.RowsAffected(1)

type noopStmt struct{ conn *noopConn }

func (s *noopStmt) Close() error                               { return nil }
func (s *noopStmt) NumInput() int                              { return -1 }
func (s *noopStmt) Exec([]driver.Value) (driver.Result, error) { return noopResult, nil }
func (s *noopStmt) Query([]driver.Value) (driver.Rows, error)  { return s.conn.result(), nil }

func (s *noopStmt) ExecContext(context.Context, []driver.NamedValue) (driver.Result, error) {
	return noopResult, nil
}

func (s *noopStmt) QueryContext(context.Context, []driver.NamedValue) (driver.Rows, error) {
	return s.conn.result(), nil
}

type noopRows struct{ left int }

var noopColumns = []string{"n"}

// one is boxed once.
var one driver.Value = int64(1)

func (r *noopRows) Columns() []string { return noopColumns }
func (r *noopRows) Close() error      { return nil }

func (r *noopRows) Next(dest []driver.Value) error {
	if r.left == 0 {
		return io.EOF
	}
	r.left--
	dest[0] = one
	return nil
}
