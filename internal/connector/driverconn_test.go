package connector_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// convertible is what only the statement of a driver can convert.
type convertible struct{ n int }

// optionalDriver is a driver whose connections and statements have some of the optional
// interfaces, and which keeps what it was called with.
type optionalDriver struct {
	exec, query string // "", "old" or "ctx"
	checker     bool   // the connection has a NamedValueChecker, which takes ints only
	stmt        string // "", "converter" or "checker"
	skips       bool   // what the connection has to run a statement at once says driver.ErrSkip

	calls []string
}

func (s *optionalDriver) String() string {
	return fmt.Sprintf("exec=%q query=%q checker=%v stmt=%q skips=%v", s.exec, s.query, s.checker, s.stmt, s.skips)
}

func (s *optionalDriver) called(what string, args any) error {
	s.calls = append(s.calls, fmt.Sprintf("%s %v", what, args))
	if s.skips {
		return driver.ErrSkip
	}
	return nil
}

func (s *optionalDriver) Driver() driver.Driver { return nil }

// Connect puts a connection together. Which methods it has is its type's.
func (s *optionalDriver) Connect(context.Context) (driver.Conn, error) {
	type (
		c = driver.Conn
		n = driver.NamedValueChecker
		//lint:ignore SA1019 drivers that have no other are served too
		e1 = driver.Execer
		e2 = driver.ExecerContext
		//lint:ignore SA1019 drivers that have no other are served too
		q1 = driver.Queryer
		q2 = driver.QueryerContext
	)
	conn, check, exec, execCtx, query, queryCtx := shapeConn{s}, shapeChecker{s}, shapeExec{s}, shapeExecCtx{s}, shapeQuery{s}, shapeQueryCtx{s}
	key := s.exec + "/" + s.query
	if s.checker {
		key += "/n"
	}
	made, ok := map[string]driver.Conn{
		"/": struct{ c }{conn},
		"/old": struct {
			c
			q1
		}{conn, query},
		"/ctx": struct {
			c
			q2
		}{conn, queryCtx},
		"old/": struct {
			c
			e1
		}{conn, exec},
		"old/old": struct {
			c
			e1
			q1
		}{conn, exec, query},
		"old/ctx": struct {
			c
			e1
			q2
		}{conn, exec, queryCtx},
		"ctx/": struct {
			c
			e2
		}{conn, execCtx},
		"ctx/old": struct {
			c
			e2
			q1
		}{conn, execCtx, query},
		"ctx/ctx": struct {
			c
			e2
			q2
		}{conn, execCtx, queryCtx},
		"//n": struct {
			c
			n
		}{conn, check},
		"/old/n": struct {
			c
			q1
			n
		}{conn, query, check},
		"/ctx/n": struct {
			c
			q2
			n
		}{conn, queryCtx, check},
		"old//n": struct {
			c
			e1
			n
		}{conn, exec, check},
		"old/old/n": struct {
			c
			e1
			q1
			n
		}{conn, exec, query, check},
		"old/ctx/n": struct {
			c
			e1
			q2
			n
		}{conn, exec, queryCtx, check},
		"ctx//n": struct {
			c
			e2
			n
		}{conn, execCtx, check},
		"ctx/old/n": struct {
			c
			e2
			q1
			n
		}{conn, execCtx, query, check},
		"ctx/ctx/n": struct {
			c
			e2
			q2
			n
		}{conn, execCtx, queryCtx, check},
	}[key]
	if !ok {
		return nil, errors.New("no such shape: " + key)
	}
	return made, nil
}

type shapeConn struct{ s *optionalDriver }

func (c shapeConn) Close() error { return nil }

func (c shapeConn) Begin() (driver.Tx, error) { return nil, errors.New("no transactions") }

func (c shapeConn) Prepare(query string) (driver.Stmt, error) {
	c.s.calls = append(c.s.calls, "Prepare "+query)
	switch c.s.stmt {
	case "converter":
		return struct {
			driver.Stmt
			driver.ColumnConverter
		}{shapeStmt(c), shapeConverter(c)}, nil
	case "checker":
		return struct {
			driver.Stmt
			driver.NamedValueChecker
		}{shapeStmt(c), shapeStmtChecker(c)}, nil
	}
	return shapeStmt(c), nil
}

type shapeChecker struct{ s *optionalDriver }

func (c shapeChecker) CheckNamedValue(nv *driver.NamedValue) error {
	switch v := nv.Value.(type) {
	case int:
		nv.Value = int64(v)
		return nil
	case string:
		return driver.ErrSkip
	}
	return fmt.Errorf("the connection takes no %T", nv.Value)
}

type shapeExec struct{ s *optionalDriver }

func (c shapeExec) Exec(_ string, args []driver.Value) (driver.Result, error) {
	return driver.RowsAffected(1), c.s.called("Exec", args)
}

type shapeExecCtx struct{ s *optionalDriver }

func (c shapeExecCtx) ExecContext(_ context.Context, _ string, args []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(1), c.s.called("ExecContext", args)
}

type shapeQuery struct{ s *optionalDriver }

func (c shapeQuery) Query(_ string, args []driver.Value) (driver.Rows, error) {
	return &fakedb.OneRow{}, c.s.called("Query", args)
}

type shapeQueryCtx struct{ s *optionalDriver }

func (c shapeQueryCtx) QueryContext(_ context.Context, _ string, args []driver.NamedValue) (driver.Rows, error) {
	return &fakedb.OneRow{}, c.s.called("QueryContext", args)
}

type shapeStmt struct{ s *optionalDriver }

func (c shapeStmt) Close() error { return nil }

func (c shapeStmt) NumInput() int { return -1 }

func (c shapeStmt) Exec(args []driver.Value) (driver.Result, error) {
	c.s.calls = append(c.s.calls, fmt.Sprint("Stmt.Exec ", args))
	return driver.RowsAffected(1), nil
}

func (c shapeStmt) Query(args []driver.Value) (driver.Rows, error) {
	c.s.calls = append(c.s.calls, fmt.Sprint("Stmt.Query ", args))
	return &fakedb.OneRow{}, nil
}

type shapeConverter struct{ s *optionalDriver }

func (c shapeConverter) ColumnConverter(int) driver.ValueConverter { return metreConverter{} }

type metreConverter struct{}

func (metreConverter) ConvertValue(v any) (driver.Value, error) {
	if m, ok := v.(convertible); ok {
		return int64(m.n), nil
	}
	return driver.DefaultParameterConverter.ConvertValue(v)
}

type shapeStmtChecker struct{ s *optionalDriver }

func (c shapeStmtChecker) CheckNamedValue(nv *driver.NamedValue) (err error) {
	nv.Value, err = metreConverter{}.ConvertValue(nv.Value)
	return err
}

// Whatever a driver can and cannot do, it is called as by plain database/sql,
// with the same arguments, and its caller gets the same: also where only the
// statement can convert an argument, and the connection has a way to run a
// query at once but none to run an Exec.
func TestDriversOfAllShapesAreCalledAsByDatabaseSQL(t *testing.T) {
	uses := map[string]func(db *sql.DB, args ...any) error{
		"Exec":  func(db *sql.DB, args ...any) error { _, err := db.Exec("x", args...); return err },
		"Query": func(db *sql.DB, args ...any) error { return db.QueryRow("x", args...).Scan(new(int)) },
		"Exec of a statement": func(db *sql.DB, args ...any) error {
			s, err := db.Prepare("x")
			if err != nil {
				return err
			}
			defer s.Close()
			_, err = s.Exec(args...)
			return err
		},
	}
	arguments := map[string][]any{
		"none": nil, "an int": {7}, "a string": {"a"}, "what only the statement converts": {1, convertible{3}},
		"what nobody converts": {make(chan int)}, "named": {sql.Named("a", 1)}, "named, of no type": {sql.Named("a", make(chan int))},
	}
	compared := 0
	for _, exec := range []string{"", "old", "ctx"} {
		for _, query := range []string{"", "old", "ctx"} {
			for _, stmt := range []string{"", "converter", "checker"} {
				for _, flags := range [][2]bool{{}, {true, false}, {false, true}, {true, true}} {
					for use, run := range uses {
						for what, args := range arguments {
							outcome := func(open func(driver.Connector) *sql.DB) string {
								s := &optionalDriver{exec: exec, query: query, stmt: stmt, checker: flags[0], skips: flags[1]}
								db := open(s)
								defer db.Close()
								err := run(db, args...)
								return fmt.Sprintf("%v: %v; again %v", err, slices.Clone(s.calls), run(db, args...))
							}
							plain := outcome(sql.OpenDB)
							live := outcome(func(c driver.Connector) *sql.DB { return labtest.Open(t, c, nil).DB })
							if compared++; live != plain {
								t.Errorf("%s, %s, %v: livepool: %s; plain: %s", use, what, &optionalDriver{exec: exec, query: query, stmt: stmt, checker: flags[0], skips: flags[1]}, live, plain)
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d uses of drivers compared", compared)
}
