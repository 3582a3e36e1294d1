package wire

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// watch is the context under which a connection is read and written. The driver would
// watch it in a goroutine of its own, to which each statement is handed and from which
// it is taken back; a deadline on the socket needs none.
//
// Invariant: while ended is set every read and every write fails, whatever deadline is
// set meanwhile. end sets it before the deadline, and whoever sets another deadline looks
// at it afterwards.
type watch struct {
	mu    sync.Mutex // guards ctx, and that it is the one of which ended tells
	ctx   context.Context
	quiet unwatched // ctx for the driver
	ended atomic.Bool
	stop  func() bool
	onEnd func() // Conn.end, made once
	cut   error  // what a read or a write failed with because ctx had ended; as Conn.IOErr
}

// unwatched is a context that ends without telling: whoever asks learns it by Err, which
// the driver does before it sends anything.
type unwatched struct{ context.Context }

func (*unwatched) Done() <-chan struct{} { return nil }

// Watch has reads and writes fail as soon as ctx has ended, until Unwatch. It must not be
// called twice without one between. It returns the context for the driver, which does not
// keep it.
func (w *Conn) Watch(ctx context.Context) context.Context {
	w.watch.mu.Lock()
	w.watch.ctx, w.watch.quiet.Context, w.watch.cut = ctx, ctx, nil
	w.watch.mu.Unlock()
	w.watch.stop = context.AfterFunc(ctx, w.watch.onEnd)
	return &w.watch.quiet
}

// IsWatched says whether Watch has returned ctx. A nil Conn watches nothing.
func (w *Conn) IsWatched(ctx context.Context) bool {
	return w != nil && ctx == context.Context(&w.watch.quiet)
}

// Watches says whether Watch was called, and Unwatch not yet.
func (w *Conn) Watches() bool { return w.watch.ctx != nil }

// Unwatch ends what Watch began. It returns the error of the context if a read or a write
// failed by its end, and nil if all was read and written before: then the connection is
// as good as any.
func (w *Conn) Unwatch() error {
	w.watch.stop()
	w.watch.mu.Lock()
	defer w.watch.mu.Unlock()
	w.watch.ctx, w.watch.quiet.Context = nil, nil
	if w.watch.ended.Swap(false) && w.watch.cut == nil {
		_ = w.SetDeadline(time.Time{})
	}
	return w.Cut()
}

// Cut is the error of the watched context, if a read or a write has failed by its end.
func (w *Conn) Cut() error { return errors.Unwrap(w.watch.cut) }

// end is called when a watched context has ended: the present one, or one of an earlier
// watch, which comes too late.
func (w *Conn) end() {
	w.watch.mu.Lock()
	defer w.watch.mu.Unlock()
	if w.watch.ctx != nil && w.watch.ctx.Err() != nil {
		w.watch.ended.Store(true)
		_ = w.Conn.SetDeadline(longAgo)
	}
}

var longAgo = time.Unix(1, 0)

// explainEnd turns the error of a read or a write into the context's, if that has ended.
func (w *Conn) explainEnd(err error) error {
	if err == nil || !w.watch.ended.Load() {
		return err
	}
	w.watch.mu.Lock()
	defer w.watch.mu.Unlock()
	w.watch.cut = &cutError{w.watch.ctx.Err()}
	return w.watch.cut
}

// heedEnd follows each change of a deadline.
func (w *Conn) heedEnd(err error) error {
	if w.watch.ended.Load() {
		return w.Conn.SetDeadline(longAgo)
	}
	return err
}

// cutError is the error of a context that had ended while its statement was under way.
type cutError struct{ cause error }

func (e *cutError) Error() string { return e.cause.Error() }
func (e *cutError) Unwrap() error { return e.cause }

// IsCut says whether v is the end of a watched context. The driver gets that as an error of
// the network, and logs it as one.
func IsCut(v any) bool {
	err, ok := v.(error)
	return ok && errors.As(err, new(*cutError))
}
