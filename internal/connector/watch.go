// watch.go has a statement end when its context does. The driver would need a goroutine
// for that, which costs more than the rest of a short statement: so livepool's own
// connection below it watches the context, and the driver gets one that it need not watch.

package connector

import (
	"context"

	"github.com/livepool/livepool/internal/boundctx"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// watch returns the context for the driver. Where the statement leaves no result, unwatch
// is called with it afterwards. With the result of a watched query still open on the
// connection the driver would close it; livepool refuses the statement.
func (l *link) watch(ctx context.Context) context.Context {
	switch {
	case l.wire == nil, l.wire.Wrapped, ctx.Done() == nil:
		return ctx
	case l.wire.Watches():
		return boundctx.Ended(ctx, errResultOpen)
	}
	return l.wire.Watch(ctx)
}

// unwatch ends what watch began, and returns the driver's error, or the context's if the
// statement failed by its end.
func (l *link) unwatch(watched context.Context, err error) error {
	if !l.wire.IsWatched(watched) {
		return err
	}
	return cutOr(l.wire.Unwatch(), err)
}

// cutOr is the error of a context that has ended a statement, unless the server had
// answered that by then.
func cutOr(cut, err error) error {
	if cut == nil || mysqlerr.Number(err) != 0 {
		return err
	}
	return cut
}
