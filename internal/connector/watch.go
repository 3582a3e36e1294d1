// watch.go has a statement end when its context does. livepool's own connection below the
// driver watches the context (wire.Watch), and the driver gets one that it need not watch.

package connector

import (
	"context"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/boundctx"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// watch returns the context for the driver. unwatch is called with it afterwards, or, where
// the statement leaves a result, when that is closed. A context that is watched still was
// left by a panic, of a program's reader for LOAD DATA.
func (l *link) watch(ctx context.Context) context.Context {
	switch {
	case l.wire.IsWatching():
		return boundctx.Ended(ctx, mysql.ErrInvalidConn)
	case l.wire == nil, l.wire.Wrapped, ctx.Done() == nil:
		return ctx
	}
	return l.wire.Watch(ctx)
}

// unwatch ends what watch began, and returns the driver's error, or the context's if the
// statement failed by its end.
func (l *link) unwatch(watched context.Context, err error) error {
	if !l.wire.Watched(watched) {
		return err
	}
	return cutOr(l.wire.Unwatch(), err)
}

// cutOr is ended, the error of a context, where a statement has failed by its end: unless
// that was answered before.
func cutOr(ended, err error) error {
	if ended == nil || err == nil || mysqlerr.Number(err) != 0 {
		return err
	}
	return ended
}
