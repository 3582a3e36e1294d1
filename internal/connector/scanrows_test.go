//go:build go1.27

package connector_test

// Rows of a driver that scans columns by itself, as drivers may since Go 1.27.

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// scanningDB has results of three rows, which only scan, and fail with err after them.
type scanningDB struct{ err error }

func (d scanningDB) Connect(context.Context) (driver.Conn, error) { return scanningConn{d}, nil }
func (d scanningDB) Driver() driver.Driver                        { return nil }

type scanningConn struct{ db scanningDB }

func (scanningConn) Close() error                        { return nil }
func (scanningConn) Begin() (driver.Tx, error)           { return scanningConn{}, nil }
func (scanningConn) Commit() error                       { return nil }
func (scanningConn) Rollback() error                     { return nil }
func (scanningConn) Prepare(string) (driver.Stmt, error) { return nil, errors.New("not here") }
func (c scanningConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return &scanningRows{err: c.db.err}, nil
}

type scanningRows struct {
	err error
	row int
}

func (*scanningRows) Columns() []string { return []string{"n"} }
func (*scanningRows) Close() error      { return nil }
func (*scanningRows) Next([]driver.Value) error {
	return errors.New("Next was called in place of NextRow")
}

func (r *scanningRows) NextRow() error {
	if r.row++; r.row > 3 {
		return r.err
	}
	return nil
}

func (r *scanningRows) ScanColumn(_ driver.ScanContext, _ int, dest any) error {
	*dest.(*int) = r.row
	return nil
}

func TestRowsThatScanByThemselves(t *testing.T) {
	for _, end := range []error{io.EOF, fakedb.ServerError(1213, "Deadlock found")} {
		p := labtest.Open(t, scanningDB{end}, func(c *livepool.Config) { c.Logger = labtest.DiscardLogger })
		tx, err := p.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		rows, err := tx.Query("SELECT n")
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for rows.Next() {
			var n int
			if err := rows.Scan(&n); err != nil {
				t.Fatal(err)
			}
			sum += n
		}
		rows.Close()
		_, err = tx.Query("SELECT n")
		if isDeadlock := end != io.EOF; sum != 6 || isDeadlock != (rows.Err() != nil) || isDeadlock != errors.Is(err, livepool.ErrPoisoned) {
			t.Errorf("the sum of the rows is %d, their error %v; afterwards: %v", sum, rows.Err(), err)
		}
	}
}
