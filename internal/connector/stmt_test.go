package connector_test

// Arguments and their conversion, as database/sql has it.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// wrappedFake is a fake with connections of another kind, made of its own.
type wrappedFake struct {
	*fakedb.DB
	of func(*fakedb.Conn) driver.Conn
}

func (v wrappedFake) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := v.DB.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return v.of(c.(*fakedb.Conn)), nil
}

// columnConverterConn is a connection of an old driver, whose statements
// convert their arguments by a ColumnConverter.
type columnConverterConn struct {
	inputs  int
	convert func(v any) (driver.Value, error)
	got     []driver.Value
}

func (c *columnConverterConn) Connect(context.Context) (driver.Conn, error) { return c, nil }

func (c *columnConverterConn) Driver() driver.Driver { return nil }

func (c *columnConverterConn) Prepare(string) (driver.Stmt, error) { return c, nil }

func (c *columnConverterConn) Begin() (driver.Tx, error) { return nil, errors.New("no transactions") }

func (c *columnConverterConn) Close() error { return nil }

func (c *columnConverterConn) NumInput() int { return c.inputs }

func (c *columnConverterConn) ColumnConverter(int) driver.ValueConverter { return c }

func (c *columnConverterConn) ConvertValue(v any) (driver.Value, error) { return c.convert(v) }

func (c *columnConverterConn) Query(args []driver.Value) (driver.Rows, error) {
	c.got = args
	return &fakedb.OneRow{}, nil
}

func (c *columnConverterConn) Exec(args []driver.Value) (driver.Result, error) {
	c.got = args
	return driver.ResultNoRows, nil
}

// valuer is a driver.Valuer, on the pointer too, which may be nil.
type valuer float64

func (c valuer) Value() (driver.Value, error) {
	if c < -273 {
		return nil, errors.New("below absolute zero")
	}
	return float64(c), nil
}

// A ColumnConverter gets what it gets from plain database/sql, and what it
// returns reaches the driver.
func TestColumnConverterOfTheDriver(t *testing.T) {
	describe := func(v any) (driver.Value, error) { return fmt.Sprintf("%T %v", v, v), nil }
	for _, tt := range []struct {
		name    string
		inputs  int
		convert func(any) (driver.Value, error)
		args    []any
	}{
		{"a value", 1, describe, []any{int32(7)}},
		{"as many as you like", -1, describe, []any{1, "b"}},
		{"no arguments", -1, describe, nil},
		{"too many", 1, describe, []any{1, 2}},
		{"too few", 2, describe, []any{1}},
		{"a Valuer", 1, describe, []any{valuer(20)}},
		{"a pointer to a Valuer", 1, describe, []any{new(valuer)}},
		{"a nil pointer to a Valuer", -1, describe, []any{(*valuer)(nil)}},
		{"a Valuer that fails", 1, describe, []any{valuer(-300)}},
		{"nil", 1, describe, []any{nil}},
		{"a value of no type of driver.Value", 1, describe, []any{struct{ a int }{7}}},
		{"a conversion that fails", 1, func(any) (driver.Value, error) { return nil, errors.New("no such column") }, []any{1}},
		{"a conversion to no driver.Value", 1, func(any) (driver.Value, error) { return struct{}{}, nil }, []any{1}},
		{"a conversion that leaves it as it is", 1, func(v any) (driver.Value, error) { return v, nil }, []any{int32(7)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outcome := func(open func(driver.Connector) *sql.DB) (outcomes [3]string) {
				c := &columnConverterConn{inputs: tt.inputs, convert: tt.convert}
				db := open(c)
				defer db.Close()
				for i, use := range []func() error{
					func() error { _, err := db.Exec("x", tt.args...); return err },
					func() error { return db.QueryRow("x", tt.args...).Scan(new(int)) },
					func() error {
						s, err := db.Prepare("x")
						if err != nil {
							return err
						}
						defer s.Close()
						_, err = s.Exec(tt.args...)
						return err
					},
				} {
					c.got = nil
					err := use()
					outcomes[i] = fmt.Sprintf("%v, the driver got %#v", err, c.got)
				}
				return outcomes
			}
			plain := outcome(sql.OpenDB)
			live := outcome(func(c driver.Connector) *sql.DB { return labtest.Open(t, c, nil).DB })
			for i, way := range []string{"Exec", "Query", "Prepare and Exec"} {
				if live[i] != plain[i] {
					t.Errorf("%s: livepool: %s; plain: %s", way, live[i], plain[i])
				}
			}
		})
	}
}

// argRecorder is a connection that takes queries and keeps their arguments. It
// leaves out an argument that is a hint.
type argRecorder struct {
	*fakedb.Conn
	got []driver.NamedValue
}

type hint struct{}

func (r *argRecorder) CheckNamedValue(nv *driver.NamedValue) error {
	switch nv.Value.(type) {
	case hint:
		return driver.ErrRemoveArgument
	case error:
		return nv.Value.(error)
	}
	return r.Conn.CheckNamedValue(nv)
}

func (r *argRecorder) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	r.got = args
	return r.Conn.ExecContext(ctx, query, args)
}

func (r *argRecorder) QueryContext(_ context.Context, _ string, args []driver.NamedValue) (driver.Rows, error) {
	r.got = args
	return &fakedb.OneRow{}, nil
}

// waitersConn is a connection that db opened for a caller who waited for it.
// There is no driver below it before its first use.
func waitersConn(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	db.SetMaxOpenConns(1)
	held, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waits := db.Stats().WaitCount
	got := make(chan *sql.Conn)
	go func() {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Error(err)
		}
		got <- c
	}()
	for db.Stats().WaitCount == waits {
		time.Sleep(time.Millisecond)
	}
	held.Raw(func(any) error { return driver.ErrBadConn })
	c := <-got
	t.Cleanup(func() { c.Close() })
	return c
}

// The driver converts the arguments also of the first statement on a connection
// that its caller opens himself, when there is no driver yet to ask.
func TestArgumentsOfTheFirstStatementOnAWaitersConnection(t *testing.T) {
	uses := map[string]func(c *sql.Conn, args []any) error{
		"Exec": func(c *sql.Conn, args []any) error {
			_, err := c.ExecContext(t.Context(), "x", args...)
			return err
		},
		"Query": func(c *sql.Conn, args []any) error {
			var n int
			return c.QueryRowContext(t.Context(), "x", args...).Scan(&n)
		},
	}
	for _, tt := range []struct {
		name string
		args []any
	}{
		{"none", nil},
		{"converted by the driver and by default", []any{uint64(1 << 63), int32(7)}},
		{"a Valuer", []any{valuer(20)}},
		{"a nil pointer to a Valuer", []any{(*valuer)(nil)}},
		{"named", []any{sql.Named("a", uint64(1)), 2}},
		{"one that the driver leaves out", []any{int32(1), hint{}}},
		{"one before the others that the driver leaves out", []any{hint{}, int32(1)}},
		{"one that the driver refuses", []any{1, errors.New("refused")}},
		{"one that nobody can convert", []any{1, make(chan int)}},
	} {
		for name, use := range uses {
			t.Run(name+", "+tt.name, func(t *testing.T) {
				outcome := func(open func(driver.Connector) *sql.DB) string {
					var last *argRecorder
					db := open(wrappedFake{&fakedb.DB{}, func(c *fakedb.Conn) driver.Conn {
						last = &argRecorder{Conn: c}
						return last
					}})
					defer db.Close()
					c := waitersConn(t, db)
					err := use(c, tt.args)
					c.Close()
					return fmt.Sprintf("%v, the driver got %+v", err, append([]driver.NamedValue(nil), last.got...))
				}
				plain := outcome(sql.OpenDB)
				live := outcome(func(c driver.Connector) *sql.DB { return labtest.Open(t, c, nil).DB })
				if live != plain {
					t.Errorf("livepool: %s; plain: %s", live, plain)
				}
			})
		}
	}
}
