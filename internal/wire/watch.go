package wire

import (
	"context"
	"sync"
)

// watch is the context under which a statement runs: when it ends the connection is closed,
// which ends the statement. The driver does the same, but in a goroutine of its own, to
// which each statement is handed and from which it is taken back; that takes longer than
// the rest of a short statement.
type watch struct {
	mu    sync.Mutex // guards quiet.Context and ended
	quiet quietContext
	ended error // of the context, if that has ended before Unwatch
	stop  func() bool
	onEnd func() // Conn.end, made once
}

// quietContext is a context that ends without telling: whoever asks learns it by Err, which
// the driver does before it sends anything.
type quietContext struct{ context.Context }

func (*quietContext) Done() <-chan struct{} { return nil }

// Watch has the connection closed as soon as ctx has ended, until Unwatch, which comes
// before the next Watch. It returns the context for the driver, which does not keep it.
func (w *Conn) Watch(ctx context.Context) context.Context {
	w.watch.mu.Lock()
	w.watch.quiet, w.watch.ended = quietContext{ctx}, nil
	w.watch.mu.Unlock()
	w.watch.stop = context.AfterFunc(ctx, w.watch.onEnd)
	return &w.watch.quiet
}

// Watched says whether Watch has returned ctx. A nil Conn has no context.
func (w *Conn) Watched(ctx context.Context) bool {
	return w != nil && ctx == context.Context(&w.watch.quiet)
}

// IsWatching says whether Watch was called, and Unwatch not yet.
func (w *Conn) IsWatching() bool { return w != nil && w.watch.quiet.Context != nil }

// Unwatch ends what Watch began. It returns the context's error if that has ended: then the
// connection is closed, or about to be, and Cut.
func (w *Conn) Unwatch() error {
	w.watch.stop()
	w.watch.mu.Lock()
	defer w.watch.mu.Unlock()
	w.watch.stop, w.watch.quiet = nil, quietContext{}
	w.Cut = w.Cut || w.watch.ended != nil
	return w.watch.ended
}

// Ended is the error of the watched context, nil if it has not ended.
func (w *Conn) Ended() error {
	w.watch.mu.Lock()
	defer w.watch.mu.Unlock()
	return w.watch.ended
}

// end is called when a watched context has ended: the present one, or one of an earlier
// watch, which comes too late.
func (w *Conn) end() {
	w.watch.mu.Lock()
	ctx := w.watch.quiet.Context
	isEnd := ctx != nil && ctx.Err() != nil && w.watch.ended == nil
	if isEnd {
		w.watch.ended = ctx.Err()
	}
	w.watch.mu.Unlock()
	if isEnd { // outside of the lock: a user's connection may take long to close
		_ = w.Close()
	}
}
