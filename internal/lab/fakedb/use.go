package fakedb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"
)

// Execer is a sql.DB, a sql.Conn or a sql.Tx.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// ServedBy runs a statement and returns which connection served it.
func ServedBy(t testing.TB, db Execer) int64 {
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

// Warm opens n connections at the same time and returns them to the pool.
func Warm(t testing.TB, db *sql.DB, n int) {
	t.Helper()
	held, _ := Take(t, db, n)
	GiveBack(held)
}

// Take takes n connections out of the pool, uses each and returns which they are.
func Take(t testing.TB, db *sql.DB, n int) (held []*sql.Conn, ids []int64) {
	t.Helper()
	for range n {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held, ids = append(held, c), append(ids, ServedBy(t, c))
	}
	return held, ids
}

// GiveBack returns connections to their pool.
func GiveBack(held []*sql.Conn) {
	for _, c := range held {
		c.Close()
	}
}

// ByDSN is the connector of a driver that opens by a DSN only.
type ByDSN struct {
	Of  driver.Driver
	DSN string
}

// Connect opens a connection.
func (c ByDSN) Connect(context.Context) (driver.Conn, error) { return c.Of.Open(c.DSN) }

// Driver is the driver.
func (c ByDSN) Driver() driver.Driver { return c.Of }
