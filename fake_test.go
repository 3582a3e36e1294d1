package livepool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/livepool/livepool"
)

// fake is a database whose connections fail as a test tells them to. Its zero
// value works.
type fake struct {
	mu    sync.Mutex
	conns []*fakeConn

	connects atomic.Int64
	pings    atomic.Int64
	execs    atomic.Int64

	// When set, they decide. They run without the lock.
	onConnect func(ctx context.Context, n int64) error
	onPing    func(ctx context.Context, c *fakeConn) error
	onExec    func(ctx context.Context, c *fakeConn, query string) error
	onPrepare func(c *fakeConn) error
	onBegin   func(c *fakeConn) error
	onReset   func(c *fakeConn) error
	onCommit  func(c *fakeConn) error
}

type fakeConn struct {
	db     *fake
	id     int64
	closed atomic.Bool
	dead   atomic.Bool // the server is gone: pings fail, and so do statements
	valid  atomic.Bool
	args   []driver.NamedValue // of the last Exec
}

// CheckNamedValue takes a uint64 that database/sql would refuse.
func (c *fakeConn) CheckNamedValue(nv *driver.NamedValue) error {
	if _, ok := nv.Value.(uint64); ok {
		nv.Value = "converted uint64"
		return nil
	}
	return driver.ErrSkip
}

// errGone is what a fake's statement meets on a connection that is gone after
// it was written.
var errGone = io.ErrUnexpectedEOF

func (f *fake) Connect(ctx context.Context) (driver.Conn, error) {
	n := f.connects.Add(1)
	if f.onConnect != nil {
		if err := f.onConnect(ctx, n); err != nil {
			return nil, err
		}
	}
	c := &fakeConn{db: f, id: n}
	c.valid.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
	return c, nil
}

func (f *fake) Driver() driver.Driver { return nil }

// all are the connections that were ever opened.
func (f *fake) all() []*fakeConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*fakeConn(nil), f.conns...)
}

// open counts those that are not closed.
func (f *fake) open() (n int) {
	for _, c := range f.all() {
		if !c.closed.Load() {
			n++
		}
	}
	return n
}

// kill makes every connection that exists a dead one.
func (f *fake) kill() {
	for _, c := range f.all() {
		c.dead.Store(true)
	}
}

func (c *fakeConn) Close() error {
	if c.closed.Swap(true) {
		return errors.New("fake: closed twice")
	}
	return nil
}
func (c *fakeConn) IsValid() bool { return c.valid.Load() && !c.closed.Load() }

func (c *fakeConn) ResetSession(context.Context) error {
	if c.db.onReset != nil {
		return c.db.onReset(c)
	}
	return nil
}

func (c *fakeConn) Ping(ctx context.Context) error {
	c.db.pings.Add(1)
	switch {
	case c.db.onPing != nil:
		return c.db.onPing(ctx, c)
	case c.dead.Load():
		return errGone
	}
	return nil
}

func (c *fakeConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if query == "DO 0" { // a ping that asks for work
		c.db.pings.Add(1)
	} else {
		c.db.execs.Add(1)
	}
	c.args = args
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.db.onExec != nil {
		if err := c.db.onExec(ctx, c, query); err != nil {
			return nil, err
		}
	}
	if c.dead.Load() {
		c.valid.Store(false)
		return nil, errGone
	}
	return driver.RowsAffected(c.id), nil
}

func (c *fakeConn) Prepare(string) (driver.Stmt, error) {
	if c.db.onPrepare != nil {
		if err := c.db.onPrepare(c); err != nil {
			return nil, err
		}
	}
	return &fakeStmt{c}, nil
}

func (c *fakeConn) Begin() (driver.Tx, error) {
	if c.db.onBegin != nil {
		if err := c.db.onBegin(c); err != nil {
			return nil, err
		}
	}
	return c, nil
}
func (c *fakeConn) Commit() error {
	if c.db.onCommit != nil {
		return c.db.onCommit(c)
	}
	return nil
}
func (c *fakeConn) Rollback() error { return nil }

type fakeStmt struct{ c *fakeConn }

func (s *fakeStmt) Close() error  { return nil }
func (s *fakeStmt) NumInput() int { return -1 }
func (s *fakeStmt) Exec([]driver.Value) (driver.Result, error) {
	if s.c.closed.Load() {
		return nil, driver.ErrBadConn
	}
	return s.c.ExecContext(context.Background(), "prepared", nil)
}
func (s *fakeStmt) Query([]driver.Value) (driver.Rows, error) {
	return nil, errors.New("fake: no rows")
}

// openFake opens a pool on f with the defaults as changed by change, but for the
// keep-alive: what callers meet is theirs to find.
func openFake(t testing.TB, f *fake, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg := livepool.NewConfig()
	cfg.KeepAlive = 0
	cfg.Logger = slog.New(slog.DiscardHandler)
	if change != nil {
		change(cfg)
	}
	p, err := livepool.OpenConnector(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// execer is a sql.DB, a sql.Conn or a sql.Tx.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// servedBy runs a statement and returns which connection served it.
func servedBy(t testing.TB, db execer) int64 {
	t.Helper()
	res, err := db.ExecContext(context.Background(), "DO 1")
	if err != nil {
		t.Fatal(err)
	}
	id, err := res.RowsAffected()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// warm opens n connections at the same time and returns them to the pool.
func warm(t testing.TB, db *sql.DB, n int) {
	t.Helper()
	held := make([]*sql.Conn, n)
	for i := range held {
		c, err := db.Conn(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		servedBy(t, c)
		held[i] = c
	}
	for _, c := range held {
		c.Close()
	}
}
