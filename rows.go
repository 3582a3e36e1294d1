// rows.go sees the errors that arrive while a result is read inside a
// transaction, and the end of any result, until which its connection is busy.
// Where neither matters, and nothing looks at the socket, a result is the
// driver's own.

package livepool

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
)

// watchedRows wraps an open result. Inside a transaction an error may arrive while
// rows are read: a streamed SELECT ... FOR UPDATE meets its deadlock after some of
// its rows. It has every optional interface of driver.Rows, and answers for a
// driver that lacks one as database/sql does.
type watchedRows struct {
	driver.Rows
	c         *conn
	query     string
	bound     releaser // the context under which it is read, nil where it needs no release
	delivered bool     // the program has got a row of it
}

// releaser is a context that holds on to others until it is released.
type releaser interface {
	context.Context
	release()
}

// wrapRows uses the conn's own slot for the first open result: a connection has
// one at a time. database/sql does not touch a result after it has closed it. It is
// counted wherever lookBack may run, to which its unread rows look like a goodbye.
func (c *conn) wrapRows(ctx context.Context, rows driver.Rows, query string) driver.Rows {
	if !c.transaction.open && !c.ctr.keepsHeld && (c.wire == nil || !c.ctr.peeks) {
		return rows
	}
	wrapped := &c.result
	if wrapped.Rows != nil {
		wrapped = new(watchedRows)
	}
	bound, _ := ctx.(releaser)
	*wrapped = watchedRows{Rows: rows, c: c, query: query, bound: bound}
	c.results++
	return wrapped
}

func (r *watchedRows) saw(err error) error {
	if err != nil && err != io.EOF {
		ran := ranInPart // as far as the program has seen
		if !r.delivered {
			ran = r.c.ran(r.query, effectUnknown, true)
		}
		r.c.suffers(err, r.query, ran)
	}
	return err
}

func (r *watchedRows) Next(dest []driver.Value) error {
	err := r.saw(r.Rows.Next(dest))
	r.delivered = r.delivered || err == nil
	return err
}

func (r *watchedRows) Close() error {
	if r.Rows == nil {
		return nil
	}
	err := r.saw(r.Rows.Close())
	r.Rows = nil
	r.c.results--
	if r.bound != nil {
		r.bound.release()
	}
	if r.c.transaction.marked.query != "" {
		ctx, cancel := context.WithTimeout(context.Background(), r.c.ctr.cfg.CommitTimeout)
		defer cancel()
		err = r.c.answeredMarked(ctx, err)
	}
	return r.c.restWith(err)
}

func (r *watchedRows) HasNextResultSet() bool {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	return ok && next.HasNextResultSet()
}

func (r *watchedRows) NextResultSet() error {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	if !ok {
		return io.EOF
	}
	return r.saw(next.NextResultSet())
}

func (r *watchedRows) ColumnTypeScanType(i int) reflect.Type {
	if typed, ok := r.Rows.(driver.RowsColumnTypeScanType); ok {
		return typed.ColumnTypeScanType(i)
	}
	return reflect.TypeFor[any]()
}

func (r *watchedRows) ColumnTypeDatabaseTypeName(i int) string {
	if typed, ok := r.Rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return typed.ColumnTypeDatabaseTypeName(i)
	}
	return ""
}

func (r *watchedRows) ColumnTypeLength(i int) (length int64, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypeLength); has {
		return typed.ColumnTypeLength(i)
	}
	return 0, false
}

func (r *watchedRows) ColumnTypeNullable(i int) (nullable, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypeNullable); has {
		return typed.ColumnTypeNullable(i)
	}
	return false, false
}

func (r *watchedRows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypePrecisionScale); has {
		return typed.ColumnTypePrecisionScale(i)
	}
	return 0, 0, false
}
