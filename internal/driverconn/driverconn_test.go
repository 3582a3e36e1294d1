package driverconn_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/driverconn"
)

// bareConn has nothing that a driver.Conn need not have.
type bareConn struct{ driver.Conn }

// oldConn is one of a driver without contexts, which answers each query with its rows.
type oldConn struct {
	bareConn
	rows [][]driver.Value
	err  error
}

func (c *oldConn) Query(string, []driver.Value) (driver.Rows, error) { return c, c.err }
func (c *oldConn) Columns() []string                                 { return []string{"a", "b", "c"} }
func (c *oldConn) Close() error                                      { return nil }
func (c *oldConn) Next(dest []driver.Value) error {
	if len(c.rows) == 0 {
		return io.EOF
	}
	copy(dest, c.rows[0])
	c.rows = c.rows[1:]
	return nil
}

// What a driver lacks is done as database/sql does it.
func TestWhatADriverLacksIsFilledIn(t *testing.T) {
	c := driverconn.New(bareConn{})
	if err := errors.Join(c.Ping(t.Context()), c.ResetSession(t.Context())); err != nil || !c.IsValid() {
		t.Errorf("%v, valid is %v", err, c.IsValid())
	}
	if _, err := c.ExecContext(t.Context(), "DO 1", nil); err != driver.ErrSkip {
		t.Errorf("Exec: %v", err)
	}
	if _, err := c.QueryContext(t.Context(), "DO 1", nil); err != driver.ErrSkip || !c.MayPrepare() {
		t.Errorf("Query: %v, may prepare is %v", err, c.MayPrepare())
	}
	if err := c.CheckNamedValue(&driver.NamedValue{}); err != driver.ErrSkip {
		t.Errorf("CheckNamedValue: %v", err)
	}
	for _, opts := range []driver.TxOptions{{Isolation: 1}, {ReadOnly: true}} {
		if _, err := c.BeginTx(t.Context(), opts); err == nil {
			t.Errorf("%+v began", opts)
		}
	}
	if old := driverconn.New(&oldConn{}); !old.QueriesDirectly || old.ExecsDirectly {
		t.Error("a Queryer cannot query, or can Exec")
	}
}

func TestArgumentsOfADriverWithoutContexts(t *testing.T) {
	values, err := driverconn.Positional(t.Context(), driverconn.Named([]driver.Value{int64(1), "x"}))
	if err != nil || !slices.Equal(values, []driver.Value{int64(1), "x"}) {
		t.Errorf("%v, %v", values, err)
	}
	if _, err := driverconn.Positional(t.Context(), []driver.NamedValue{{Name: "n"}}); err == nil {
		t.Error("a named argument was taken")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := driverconn.Positional(ended, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v under a context that has ended", err)
	}
}

// A refusal and an empty result are answers; a connection that breaks gives none.
func TestWhatIsAnAnswer(t *testing.T) {
	c := driverconn.New(&oldConn{rows: [][]driver.Value{{[]byte("x"), nil, int64(3)}}})
	if row, err := c.QueryRow(t.Context(), "SELECT"); err != nil || !slices.Equal(row, []string{"x", "", "3"}) {
		t.Errorf("%q, %v", row, err)
	}
	if _, err := c.QueryRow(t.Context(), "SELECT"); !driverconn.IsAnswer(err) {
		t.Errorf("no row: %v is no answer", err)
	}
	for err, want := range map[error]bool{error(&mysql.MySQLError{Number: 1064}): true, mysql.ErrInvalidConn: false} {
		c := driverconn.New(&oldConn{err: err})
		if _, err := c.QueryRow(t.Context(), "SELECT"); driverconn.IsAnswer(err) != want {
			t.Errorf("%v: an answer is %v", err, !want)
		}
	}
}
