// rows.go notes the errors that arrive while a result is read inside a transaction, and
// the end of a result, until which its connection is in use. Where neither matters, and
// the socket is not checked, a result is the driver's own.

package connector

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"

	"github.com/livepool/livepool/internal/wire"
)

// wrappedRows wraps an open result. Inside a transaction an error may arrive while rows
// are read: a streamed SELECT ... FOR UPDATE may get its deadlock after some of the
// rows. It has every optional interface of driver.Rows, and answers as database/sql does
// where the driver lacks one. Only the owner of the connection uses it.
type wrappedRows struct {
	driver.Rows
	c         *conn
	query     string
	bound     releaser   // the context under which it is read, nil if it needs no release
	watched   *wire.Conn // which watches the context until the result is closed, nil if none does
	delivered bool       // the program has received a row of it; Next sets it
}

// releaser is a context that holds on to others until it is released.
type releaser interface {
	context.Context
	Release()
}

// wrapRows uses inlineRows for the first open result, since a connection has one at a
// time and database/sql does not use a result after closing it. It is counted wherever
// peekAfterPause may run, which would take unread rows for an unsolicited error of the
// server.
func (c *conn) wrapRows(ctx, watched context.Context, rows driver.Rows, query string) driver.Rows {
	isWatched := c.wire.Watched(watched)
	if !isWatched && !c.transaction.open && !c.ctr.keepParkedAlive && (c.wire == nil || !c.ctr.peekSockets) {
		return rows
	}
	wrapped := &c.inlineRows
	if wrapped.Rows != nil {
		wrapped = new(wrappedRows)
	}
	bound, _ := ctx.(releaser)
	*wrapped = wrappedRows{Rows: rows, c: c, query: query, bound: bound}
	if isWatched {
		wrapped.watched = c.wire
	}
	c.openResults++
	return wrapped.forSQL()
}

func (r *wrappedRows) noteError(err error) error {
	if err != nil && err != io.EOF {
		if r.watched != nil {
			err = cutOr(r.watched.Ended(), err)
		}
		ran := ranInPart // as far as the program knows
		if !r.delivered {
			ran = r.c.extentOf(r.query, statementRequest, true)
		}
		r.c.noteTxError(err, r.query, ran)
	}
	return err
}

func (r *wrappedRows) Next(dest []driver.Value) error {
	err := r.noteError(r.Rows.Next(dest))
	r.delivered = r.delivered || err == nil
	return err
}

func (r *wrappedRows) Close() error {
	if r.Rows == nil {
		return nil
	}
	err := r.noteError(r.Rows.Close())
	r.Rows = nil
	if r.watched != nil {
		_ = r.watched.Unwatch()
	}
	r.c.openResults--
	if r.bound != nil {
		r.bound.Release()
	}
	if r.c.transaction.sentinel.query != "" {
		ctx, cancel := context.WithTimeout(context.Background(), r.c.ctr.Cfg.CommitTimeout)
		defer cancel()
		err = r.c.afterStatement(ctx, err)
	}
	return r.c.parkWith(err)
}

func (r *wrappedRows) HasNextResultSet() bool {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	return ok && next.HasNextResultSet()
}

func (r *wrappedRows) NextResultSet() error {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	if !ok {
		return io.EOF
	}
	return r.noteError(next.NextResultSet())
}

func (r *wrappedRows) ColumnTypeScanType(i int) reflect.Type {
	if typed, ok := r.Rows.(driver.RowsColumnTypeScanType); ok {
		return typed.ColumnTypeScanType(i)
	}
	return reflect.TypeFor[any]()
}

func (r *wrappedRows) ColumnTypeDatabaseTypeName(i int) string {
	if typed, ok := r.Rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return typed.ColumnTypeDatabaseTypeName(i)
	}
	return ""
}

func (r *wrappedRows) ColumnTypeLength(i int) (length int64, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypeLength); has {
		return typed.ColumnTypeLength(i)
	}
	return 0, false
}

func (r *wrappedRows) ColumnTypeNullable(i int) (nullable, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypeNullable); has {
		return typed.ColumnTypeNullable(i)
	}
	return false, false
}

func (r *wrappedRows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	if typed, has := r.Rows.(driver.RowsColumnTypePrecisionScale); has {
		return typed.ColumnTypePrecisionScale(i)
	}
	return 0, 0, false
}
