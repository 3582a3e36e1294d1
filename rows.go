// rows.go sees the errors that arrive while a result is read inside a
// transaction. Outside of one a result is the driver's own.

package livepool

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
)

// txRows wraps an open result inside a transaction, because an error may arrive
// while rows are read: a streamed SELECT ... FOR UPDATE meets its deadlock after
// some of its rows. It has every optional interface of driver.Rows, and answers
// for a driver that lacks one as database/sql does.
type txRows struct {
	driver.Rows
	c         *conn
	query     string
	bound     *boundContext // under which it is read, nil where it needs no release
	delivered bool          // the program has got a row of it
}

// wrapRows uses the transaction's own slot for the first open result: a
// connection has one at a time. database/sql does not touch a result after it
// has closed it.
func (c *conn) wrapRows(ctx context.Context, rows driver.Rows, query string) driver.Rows {
	if !c.transaction.open {
		return rows
	}
	wrapped := &c.transaction.rows
	if wrapped.Rows != nil {
		wrapped = new(txRows)
	}
	bound, _ := ctx.(*boundContext)
	*wrapped = txRows{Rows: rows, c: c, query: query, bound: bound}
	return wrapped
}

func (r *txRows) saw(err error) error {
	if err != nil && err != io.EOF {
		ran := ranInPart // as far as the program has seen
		if !r.delivered {
			ran = r.c.ran(r.query, effectUnknown, true)
		}
		r.c.suffers(err, r.query, ran)
	}
	return err
}

func (r *txRows) Next(dest []driver.Value) error {
	err := r.saw(r.Rows.Next(dest))
	r.delivered = r.delivered || err == nil
	return err
}

func (r *txRows) Close() error {
	err := r.saw(r.Rows.Close())
	r.Rows = nil
	if r.bound != nil {
		r.bound.release()
	}
	if r.c.transaction.marked.query != "" {
		ctx, cancel := context.WithTimeout(context.Background(), r.c.ctr.cfg.CommitTimeout)
		defer cancel()
		err = r.c.answeredMarked(ctx, err)
	}
	return err
}

func (r *txRows) HasNextResultSet() bool {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	return ok && next.HasNextResultSet()
}

func (r *txRows) NextResultSet() error {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	if !ok {
		return io.EOF
	}
	return r.saw(next.NextResultSet())
}

func (r *txRows) ColumnTypeScanType(i int) reflect.Type {
	if typed, ok := r.Rows.(driver.RowsColumnTypeScanType); ok {
		return typed.ColumnTypeScanType(i)
	}
	return reflect.TypeFor[any]()
}

func (r *txRows) ColumnTypeDatabaseTypeName(i int) string {
	if typed, ok := r.Rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return typed.ColumnTypeDatabaseTypeName(i)
	}
	return ""
}

func (r *txRows) ColumnTypeLength(i int) (length int64, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypeLength); has {
		return typed.ColumnTypeLength(i)
	}
	return 0, false
}

func (r *txRows) ColumnTypeNullable(i int) (nullable, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypeNullable); has {
		return typed.ColumnTypeNullable(i)
	}
	return false, false
}

func (r *txRows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypePrecisionScale); has {
		return typed.ColumnTypePrecisionScale(i)
	}
	return 0, 0, false
}
