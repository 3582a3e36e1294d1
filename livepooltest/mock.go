package livepooltest

// This file has the faults happen on sqlmock, which plays the server: what a fault keeps
// from the server the mock does not see.

import (
	"cmp"
	"context"
	"database/sql/driver"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
)

// Mock opens a pool on sqlmock, with livepool's defaults but no pings in the background.
// The mock expects what the server would see, for each attempt of a unit anew:
//
//   - FailNextCommit(AfterApplied): ExpectCommit. BeforeApplied: ExpectRollback, since the
//     server rolls back.
//   - NextStatement: not the statement, but the ExpectRollback of the unit that is undone.
//   - GoAway in a transaction: ExpectRollback.
//
// Connections are opened and closed without the mock seeing it, so ExpectClose is never
// met. In a BlackHole only contexts end a wait: what watches real connections needs the
// MySQL driver. At the end of the test the pool is closed, and expectations that were not
// met fail the test.
func Mock(t testing.TB) (*livepool.Pool, sqlmock.Sqlmock, *Faults) {
	t.Helper()
	name := fmt.Sprint("livepooltest ", mocks.Add(1)) // sqlmock takes each once
	db, mock, err := sqlmock.NewWithDSN(name)
	if err != nil {
		t.Fatalf("livepooltest: Mock: %v", err)
	}
	faults := newFaults(t)
	cfg := livepool.NewConfig()
	cfg.KeepAlive = 0
	pool, err := livepool.OpenConnector(mockConnector{faults, db.Driver(), name}, cfg)
	if err != nil {
		t.Fatalf("livepooltest: Mock: %v", err)
	}
	t.Cleanup(func() {
		faults.end()
		_ = pool.Close()
		if err := mock.ExpectationsWereMet(); err != nil {
			t.Errorf("livepooltest: Mock: %v", err)
		}
		_ = db.Close()
	})
	return pool, mock, faults
}

var mocks atomic.Int64

type mockConnector struct {
	f    *Faults
	mock driver.Driver
	name string
}

func (m mockConnector) Driver() driver.Driver { return m.mock }

func (m mockConnector) Connect(context.Context) (driver.Conn, error) {
	inner, err := m.mock.Open(m.name)
	if err != nil {
		return nil, err
	}
	c := &mockConn{f: m.f, sqlmockConn: inner.(sqlmockConn), lost: make(chan struct{})}
	m.f.track(c)
	return c, nil
}

// sqlmockConn is what a connection of sqlmock is.
type sqlmockConn interface {
	driver.Conn
	driver.Pinger
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.NamedValueChecker
}

type mockConn struct {
	sqlmockConn

	f    *Faults
	lost chan struct{} // closed once it is lost
	once sync.Once

	mu sync.Mutex
	tx driver.Tx // the mock's, while one is open; guarded by mu
}

// lose loses the connection, and the server rolls back.
func (c *mockConn) lose() {
	c.once.Do(func() {
		close(c.lost)
		c.f.forget(c)
		if tx := c.swapTx(nil); tx != nil {
			_ = tx.Rollback()
		}
	})
}

func (c *mockConn) swapTx(tx driver.Tx) (before driver.Tx) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, c.tx = c.tx, tx
	return before
}

// ask asks the mock, unless a fault comes in between. Its errors are the driver's: ErrBadConn
// if nothing was sent, ErrInvalidConn if no answer came.
func ask[T any](ctx context.Context, c *mockConn, query string, mock func() (T, error)) (none T, err error) {
	if !c.IsValid() {
		return none, driver.ErrBadConn
	}
	if !c.f.pass(true, c.lost, ctx.Done()) {
		c.lose()
		return none, cmp.Or(ctx.Err(), mysql.ErrInvalidConn)
	}
	hit := c.f.meet(query)
	if hit == nil && query == runAgain {
		hit = &fault{answer: &Deadlock}
	}
	switch {
	case hit == nil:
		return mock()
	case hit.answer != nil:
		copied := *hit.answer
		return none, &copied
	case hit.applies:
		if _, err := mock(); err != nil {
			return none, err // the mock did not expect it
		}
	}
	c.lose()
	return none, mysql.ErrInvalidConn
}

func (c *mockConn) Close() error { c.f.forget(c); return nil }

func (c *mockConn) IsValid() bool {
	select {
	case <-c.lost:
		return false
	default:
		return true
	}
}

func (c *mockConn) Ping(ctx context.Context) error {
	_, err := ask(ctx, c, "", func() (any, error) { return nil, c.sqlmockConn.Ping(ctx) })
	return err
}

func (c *mockConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return ask(ctx, c, query, func() (driver.Result, error) { return c.sqlmockConn.ExecContext(ctx, query, args) })
}

func (c *mockConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return ask(ctx, c, query, func() (driver.Rows, error) { return c.sqlmockConn.QueryContext(ctx, query, args) })
}

func (c *mockConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return ask(ctx, c, "", func() (driver.Stmt, error) {
		s, err := c.sqlmockConn.PrepareContext(ctx, query)
		if err != nil {
			return nil, err
		}
		return &mockStmt{s.(sqlmockStmt), c, query}, nil
	})
}

func (c *mockConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return ask(ctx, c, "", func() (driver.Tx, error) {
		tx, err := c.sqlmockConn.BeginTx(ctx, opts)
		if err != nil {
			return nil, err
		}
		c.swapTx(tx)
		return c, nil
	})
}

// Commit and Rollback end the transaction that is open.
func (c *mockConn) Commit() error   { return c.end("COMMIT", driver.Tx.Commit) }
func (c *mockConn) Rollback() error { return c.end("ROLLBACK", driver.Tx.Rollback) }

func (c *mockConn) end(query string, how func(driver.Tx) error) error {
	_, err := ask(context.Background(), c, query, func() (any, error) {
		tx := c.swapTx(nil)
		if tx == nil { // lost at this moment
			return nil, mysql.ErrInvalidConn
		}
		return nil, how(tx)
	})
	return err
}

// sqlmockStmt is what a prepared statement of sqlmock is.
type sqlmockStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type mockStmt struct {
	sqlmockStmt

	c     *mockConn
	query string
}

func (s *mockStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return ask(ctx, s.c, s.query, func() (driver.Result, error) { return s.sqlmockStmt.ExecContext(ctx, args) })
}

func (s *mockStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return ask(ctx, s.c, s.query, func() (driver.Rows, error) { return s.sqlmockStmt.QueryContext(ctx, args) })
}
