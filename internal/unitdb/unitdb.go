// Package unitdb is a unit of work as a *sql.DB, for libraries that take nothing else:
// what is run on it runs in the unit's transaction, and a transaction begun on it is a
// savepoint. It knows no pool and no server; the root gives it the unit.
package unitdb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
)

// Unit is what it needs of a unit of work.
type Unit interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	EndedErr() error // why nothing more may run, nil as long as it may
}

// Env is what a DB needs besides.
type Env struct {
	Unit   Unit
	Driver driver.Driver               // what sql.DB.Driver returns
	Tx     *sql.TxOptions              // of the unit's own transaction
	Prefix string                      // of the savepoints' names, which no other DB of the transaction has
	Begin  func(context.Context) error // begins the unit's transaction, if nothing has
	Exec   func(string) error          // runs SAVEPOINT and its like for as long as the unit may
	// Inner is how many units inside this one have ended well: they were told that their work
	// is the unit's, and wait for its commit.
	Inner func() int64
	// Broken is told of a savepoint that was neither released nor undone: the unit must
	// not be committed, for nobody knows what of it would be.
	Broken func(error)
}

// DB is the unit as a *sql.DB. It is safe for concurrent use, as the unit is.
type DB struct {
	env   Env
	begun atomic.Int64

	mu     sync.Mutex // guards what follows
	handle *sql.DB    // nil before SQL is called, and after somebody has closed it
	open   []*tx      // the transactions that have not ended, outermost first
}

// New makes it. It is to be closed with the unit.
func New(env Env) *DB { return &DB{env: env} }

// SQL is the *sql.DB: a new one if a library has closed the last, as ent's clients do when
// they are closed, and xorm's engines when they are garbage.
func (db *DB) SQL() *sql.DB {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.handle == nil {
		db.handle = sql.OpenDB(connector{db})
	}
	return db.handle
}

// Close closes the *sql.DB, if there is one.
func (db *DB) Close() {
	db.mu.Lock()
	handle := db.handle
	db.mu.Unlock()
	if handle != nil {
		handle.Close()
	}
}

// HasOpenTx says whether a transaction that was begun on it has not ended.
func (db *DB) HasOpenTx() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return len(db.open) > 0
}

type connector struct{ db *DB }

func (c connector) Driver() driver.Driver { return c.db.env.Driver }

// Close is a part of the *sql.DB's.
func (c connector) Close() error {
	c.db.mu.Lock()
	defer c.db.mu.Unlock()
	c.db.handle = nil
	return nil
}

// Connect opens nothing: all its connections are the unit's one.
func (c connector) Connect(context.Context) (driver.Conn, error) {
	if err := c.db.env.Unit.EndedErr(); err != nil {
		return nil, err
	}
	return &conn{c.db}, nil
}

// conn is the unit as database/sql sees it.
type conn struct{ db *DB }

func (c *conn) Close() error { return nil }

func (c *conn) Ping(context.Context) error { return c.db.env.Unit.EndedErr() }

// CheckNamedValue leaves the arguments to the unit's own connection.
func (c *conn) CheckNamedValue(*driver.NamedValue) error { return nil }

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.db.env.Unit.ExecContext(ctx, query, values(args)...)
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return wrapRows(c.db.env.Unit.QueryContext(ctx, query, values(args)...))
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	s, err := c.db.env.Unit.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &stmt{s}, nil
}

func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx sets a savepoint.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	db, unit := c.db, c.db.env.Tx
	if level := sql.IsolationLevel(opts.Isolation); level != 0 && level != unit.Isolation || opts.ReadOnly && !unit.ReadOnly {
		return nil, errors.New("livepool: a transaction on Session.DB is a savepoint of the unit: it cannot change the isolation or be read-only; give these options to WithSession")
	}
	if err := db.env.Begin(ctx); err != nil {
		return nil, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	t := &tx{db: db, ctx: ctx, inner: db.env.Inner(), savepoint: fmt.Sprint(db.env.Prefix, db.begun.Add(1))}
	if err := db.env.Exec("SAVEPOINT " + t.savepoint); err != nil {
		return nil, err
	}
	db.open = append(db.open, t)
	return t, nil
}

// tx is a savepoint as a transaction.
type tx struct {
	db        *DB
	ctx       context.Context // when it ends database/sql rolls back, some time later
	inner     int64           // Env.Inner when it began
	savepoint string
}

func (t *tx) Commit() error { return t.end(false) }

func (t *tx) Rollback() error { return t.end(true) }

// end releases the savepoint, undone or not. Savepoints only nest: one that ends before a
// later one has taken that with it, which then cannot be ended as its owner wants. One that
// is undone because its context has ended takes with it what the unit did since then.
func (t *tx) end(undo bool) (err error) {
	db := t.db
	db.mu.Lock()
	defer db.mu.Unlock()
	at := slices.Index(db.open, t)
	switch {
	case db.env.Unit.EndedErr() != nil:
		return db.env.Unit.EndedErr()
	case at < 0:
		return errNotNested
	case at < len(db.open)-1:
		err = errNotNested
	case t.ctx.Err() != nil:
		err = fmt.Errorf("livepool: the context of a transaction on Session.DB ended before the transaction did: %w", t.ctx.Err())
	case undo && t.inner != db.env.Inner():
		err = errors.New("livepool: a transaction on Session.DB was rolled back in which a unit inside had ended well")
	case undo:
		err = db.env.Exec("ROLLBACK TO SAVEPOINT " + t.savepoint)
	}
	if err == nil {
		err = db.env.Exec("RELEASE SAVEPOINT " + t.savepoint)
	}
	db.open = db.open[:at]
	if err != nil {
		db.env.Broken(err)
	}
	return err
}

var errNotNested = errors.New("livepool: a transaction on Session.DB is a savepoint, and did not end before an earlier one: savepoints only nest")

// stmt is a statement that was prepared in the unit's transaction.
type stmt struct{ *sql.Stmt }

func (s *stmt) NumInput() int                            { return -1 } // the unit's own counts them
func (s *stmt) CheckNamedValue(*driver.NamedValue) error { return nil }

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.Stmt.ExecContext(ctx, values(args)...)
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return wrapRows(s.Stmt.QueryContext(ctx, values(args)...))
}

func (s *stmt) Exec(args []driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }
func (s *stmt) Query(args []driver.Value) (driver.Rows, error)  { return nil, driver.ErrSkip }

// values are the arguments as the caller gave them.
func values(args []driver.NamedValue) []any {
	all := make([]any, len(args))
	for i, a := range args {
		if all[i] = a.Value; a.Name != "" {
			all[i] = sql.Named(a.Name, a.Value)
		}
	}
	return all
}

// rows are a result of the unit's.
type rows struct {
	*sql.Rows
	columns []string
	types   []*sql.ColumnType
	// advanced: the next result was asked for, and hasNext says whether there is one.
	advanced, hasNext bool
}

func wrapRows(inner *sql.Rows, err error) (driver.Rows, error) {
	if err != nil {
		return nil, err
	}
	r := &rows{Rows: inner}
	if err := r.describe(); err != nil {
		inner.Close()
		return nil, err
	}
	return r, nil
}

// describe reads what the columns are.
func (r *rows) describe() (err error) {
	if r.columns, err = r.Rows.Columns(); err == nil {
		r.types, err = r.Rows.ColumnTypes()
	}
	return err
}

func (r *rows) Columns() []string { return r.columns }

func (r *rows) Next(dest []driver.Value) error {
	if r.advanced || !r.Rows.Next() {
		if err := r.Rows.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	pointers := make([]any, len(dest))
	for i := range dest {
		pointers[i] = (*any)(&dest[i])
	}
	return r.Rows.Scan(pointers...)
}

// Close tells of a next result that failed, and that nobody asked for.
func (r *rows) Close() error {
	err := r.Rows.Close()
	if err == nil && r.advanced {
		err = r.Rows.Err()
	}
	return err
}

// HasNextResultSet moves to the next result: sql.Rows has no other way to tell.
func (r *rows) HasNextResultSet() bool {
	if !r.advanced {
		r.advanced, r.hasNext = true, r.Rows.NextResultSet()
	}
	return r.hasNext || r.Rows.Err() != nil
}

func (r *rows) NextResultSet() error {
	switch r.HasNextResultSet(); {
	case r.Rows.Err() != nil:
		return r.Rows.Err()
	case !r.hasNext:
		return io.EOF
	}
	r.advanced = false
	return r.describe()
}

// What the driver says of the columns of a result.

func (r *rows) ColumnTypeScanType(i int) reflect.Type   { return r.types[i].ScanType() }
func (r *rows) ColumnTypeDatabaseTypeName(i int) string { return r.types[i].DatabaseTypeName() }
func (r *rows) ColumnTypeLength(i int) (int64, bool)    { return r.types[i].Length() }
func (r *rows) ColumnTypeNullable(i int) (bool, bool)   { return r.types[i].Nullable() }
func (r *rows) ColumnTypePrecisionScale(i int) (int64, int64, bool) {
	return r.types[i].DecimalSize()
}
