package livepool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"math"
	"runtime"
	"testing"

	"github.com/livepool/livepool"
)

// noop is a driver that answers at once and allocates nothing, so that what is
// left to measure is database/sql and livepool.
type noop struct{}

func (noop) Connect(context.Context) (driver.Conn, error) { return &noopConn{}, nil }
func (noop) Driver() driver.Driver                        { return nil }

type noopConn struct{ rows noopRows }

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

type noopRows struct{ read bool }

func (r *noopRows) Columns() []string { return column }
func (r *noopRows) Close() error      { return nil }
func (r *noopRows) Next(dest []driver.Value) error {
	if r.read {
		return io.EOF
	}
	r.read = true
	dest[0] = one
	return nil
}

var (
	column                     = []string{"one"}
	one           driver.Value = int64(1)
	hotOperations              = []struct {
		name string
		run  func(*sql.DB) error
	}{
		{"Conn+Close", func(db *sql.DB) error {
			c, err := db.Conn(context.Background())
			if err != nil {
				return err
			}
			return c.Close()
		}},
		{"QueryRow", func(db *sql.DB) error {
			var n int64
			return db.QueryRow("SELECT 1").Scan(&n)
		}},
		{"Exec", func(db *sql.DB) error {
			_, err := db.Exec("DO 1")
			return err
		}},
		{"Begin+Commit", func(db *sql.DB) error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			return tx.Commit()
		}},
	}
)

func openNoop(tb testing.TB) (plain, live *sql.DB) {
	tb.Helper()
	plain = sql.OpenDB(noop{})
	pool, err := livepool.OpenConnector(noop{}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { plain.Close(); pool.Close() })
	return plain, pool.DB
}

// The hot path allocates nothing that plain database/sql does not.
func TestHotPathAllocatesNoMoreThanPlain(t *testing.T) {
	plain, live := openNoop(t)
	for _, op := range hotOperations {
		measure := func(db *sql.DB) float64 {
			least := math.Inf(1) // the runtime's own allocations come and go
			for range 5 {
				least = min(least, testing.AllocsPerRun(100, func() {
					if err := op.run(db); err != nil {
						t.Fatal(err)
					}
					runtime.Gosched() // so that the goroutine of a sql.Tx ends, and the next finds its stack
				}))
			}
			return least
		}
		if p, l := measure(plain), measure(live); l > p {
			t.Errorf("%s: %v allocations, plain database/sql has %v", op.name, l, p)
		}
	}
}

func BenchmarkHotPath(b *testing.B) {
	plain, live := openNoop(b)
	for _, op := range hotOperations {
		for _, side := range []struct {
			name string
			db   *sql.DB
		}{{"plain", plain}, {"livepool", live}} {
			b.Run(op.name+"/"+side.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := op.run(side.db); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
