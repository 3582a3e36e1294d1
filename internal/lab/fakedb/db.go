package fakedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/go-sql-driver/mysql"
)

// DB is a database whose connections fail as a test tells them to. Its zero
// value works. It is a driver.Connector.
type DB struct {
	mu    sync.Mutex
	conns []*Conn

	Connects atomic.Int64 // attempts, those that fail among them
	Pings    atomic.Int64
	Execs    atomic.Int64

	// When set, they decide. They run without the lock.
	OnConnect func(ctx context.Context, n int64) error
	OnPing    func(ctx context.Context, c *Conn) error
	OnExec    func(ctx context.Context, c *Conn, query string) error
	OnPrepare func(c *Conn) error
	OnBegin   func(c *Conn) error
	OnReset   func(c *Conn) error
	OnCommit  func(c *Conn) error
}

// Conn is one of its connections.
type Conn struct {
	db     *DB
	ID     int64 // which of the attempts to connect it came from, from 1
	Closed atomic.Bool
	Dead   atomic.Bool         // the server is gone: pings fail, and so do statements
	Valid  atomic.Bool         // false: the driver does not want it kept
	Args   []driver.NamedValue // of the last Exec
}

// CheckNamedValue takes a uint64 that database/sql would refuse.
func (c *Conn) CheckNamedValue(nv *driver.NamedValue) error {
	if _, ok := nv.Value.(uint64); ok {
		nv.Value = "converted uint64"
		return nil
	}
	return driver.ErrSkip
}

// ErrGone is what a statement meets on a connection that is gone after
// it was written.
var ErrGone = io.ErrUnexpectedEOF

func (f *DB) Connect(ctx context.Context) (driver.Conn, error) {
	n := f.Connects.Add(1)
	if f.OnConnect != nil {
		if err := f.OnConnect(ctx, n); err != nil {
			return nil, err
		}
	}
	c := &Conn{db: f, ID: n}
	c.Valid.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
	return c, nil
}

func (f *DB) Driver() driver.Driver { return nil }

// Conns are all connections that were ever opened.
func (f *DB) Conns() []*Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*Conn(nil), f.conns...)
}

// OpenConns counts those that are not closed.
func (f *DB) OpenConns() (n int) {
	for _, c := range f.Conns() {
		if !c.Closed.Load() {
			n++
		}
	}
	return n
}

// Kill makes every connection that exists a dead one.
func (f *DB) Kill() {
	for _, c := range f.Conns() {
		c.Dead.Store(true)
	}
}

func (c *Conn) Close() error {
	if c.Closed.Swap(true) {
		return errors.New("fakedb: closed twice")
	}
	return nil
}
func (c *Conn) IsValid() bool { return c.Valid.Load() && !c.Closed.Load() }

func (c *Conn) ResetSession(context.Context) error {
	if c.db.OnReset != nil {
		return c.db.OnReset(c)
	}
	return nil
}

func (c *Conn) Ping(ctx context.Context) error {
	c.db.Pings.Add(1)
	switch {
	case c.db.OnPing != nil:
		return c.db.OnPing(ctx, c)
	case c.Dead.Load():
		return ErrGone
	}
	return nil
}

func (c *Conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if query == "DO 0" { // a ping that asks for work
		c.db.Pings.Add(1)
	} else {
		c.db.Execs.Add(1)
	}
	c.Args = args
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.db.OnExec != nil {
		if err := c.db.OnExec(ctx, c, query); err != nil {
			return nil, err
		}
	}
	if c.Dead.Load() {
		c.Valid.Store(false)
		return nil, ErrGone
	}
	return driver.RowsAffected(c.ID), nil
}

func (c *Conn) Prepare(string) (driver.Stmt, error) {
	if c.db.OnPrepare != nil {
		if err := c.db.OnPrepare(c); err != nil {
			return nil, err
		}
	}
	return &stmt{c}, nil
}

func (c *Conn) Begin() (driver.Tx, error) {
	if c.db.OnBegin != nil {
		if err := c.db.OnBegin(c); err != nil {
			return nil, err
		}
	}
	return c, nil
}
func (c *Conn) Commit() error {
	if c.db.OnCommit != nil {
		return c.db.OnCommit(c)
	}
	return nil
}
func (c *Conn) Rollback() error { return nil }

type stmt struct{ c *Conn }

func (s *stmt) Close() error  { return nil }
func (s *stmt) NumInput() int { return -1 }
func (s *stmt) Exec([]driver.Value) (driver.Result, error) {
	if s.c.Closed.Load() {
		return nil, driver.ErrBadConn
	}
	return s.c.ExecContext(context.Background(), "prepared", nil)
}
func (s *stmt) Query([]driver.Value) (driver.Rows, error) {
	return nil, errors.New("fakedb: no rows")
}

// ServerError is what the driver makes of an error of the server.
func ServerError(number uint16, message string) error {
	return &mysql.MySQLError{Number: number, Message: message}
}

// BlackHole is an OnPing: it lets pings on dead connections wait for their end, and ends the
// connection with them, as the driver does.
func BlackHole(ctx context.Context, c *Conn) error {
	if !c.Dead.Load() {
		return nil
	}
	<-ctx.Done()
	c.Valid.Store(false)
	return ctx.Err()
}
