package fakedb

import (
	"context"
	"database/sql/driver"
	"io"
)

// Noop is a driver that answers at once and allocates nothing, so that what is
// left to measure is database/sql and livepool.
type Noop struct{}

func (Noop) Connect(context.Context) (driver.Conn, error) { return &noopConn{}, nil }
func (Noop) Driver() driver.Driver                        { return nil }

type noopConn struct{ rows OneRow }

func (c *noopConn) Prepare(string) (driver.Stmt, error) { return noopStmt{c}, nil }
func (c *noopConn) Close() error                        { return nil }
func (c *noopConn) Begin() (driver.Tx, error)           { return c, nil }
func (c *noopConn) Commit() error                       { return nil }
func (c *noopConn) Rollback() error                     { return nil }
func (c *noopConn) Ping(context.Context) error          { return nil }
func (c *noopConn) ResetSession(context.Context) error  { return nil }
func (c *noopConn) IsValid() bool                       { return true }
func (c *noopConn) PrepareContext(context.Context, string) (driver.Stmt, error) {
	return noopStmt{c}, nil
}
func (c *noopConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return c, nil }
func (c *noopConn) CheckNamedValue(*driver.NamedValue) error                     { return nil }
func (c *noopConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}
func (c *noopConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	c.rows.read = false
	return &c.rows, nil
}

type noopStmt struct{ c *noopConn }

func (s noopStmt) Close() error                               { return nil }
func (s noopStmt) NumInput() int                              { return -1 }
func (s noopStmt) Exec([]driver.Value) (driver.Result, error) { return driver.ResultNoRows, nil }
func (s noopStmt) Query([]driver.Value) (driver.Rows, error)  { return &s.c.rows, nil }

// OneRow is a result of one row.
type OneRow struct{ read bool }

func (r *OneRow) Columns() []string { return column }
func (r *OneRow) Close() error      { return nil }
func (r *OneRow) Next(dest []driver.Value) error {
	if r.read {
		return io.EOF
	}
	r.read = true
	dest[0] = one
	return nil
}

var (
	column              = []string{"one"}
	one    driver.Value = int64(1)
)
