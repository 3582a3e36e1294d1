// Package usercode calls the functions that the user put into the Config. A panic in one
// of them is logged and goes no further: most run below database/sql, where a panic
// would leave a connection locked forever, or in the background, where it would end the
// program. It does not decide what a call that panicked means; its callers do.
package usercode

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
)

// CatchPanic runs f, which calls code of the user's, and logs a panic under name. ok
// means that there was none.
func CatchPanic(log *slog.Logger, name string, f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("livepool: "+name+" panicked", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
		}
	}()
	f()
	return true
}

// Logger returns logger with a handler whose panics go no further. A nil logger stands
// for slog.Default() at the time of each record.
func Logger(logger *slog.Logger) *slog.Logger {
	return slog.New(&panicSafeHandler{logger: logger})
}

// panicSafeHandler passes records to a logger whose handler may panic. A nil logger
// stands for slog.Default() at the time of each record.
type panicSafeHandler struct {
	logger     *slog.Logger
	reportOnce sync.Once // the first panic is reported on standard error, because the logger does not work
}

func (h *panicSafeHandler) inner() slog.Handler {
	if h.logger == nil {
		return slog.Default().Handler()
	}
	return h.logger.Handler()
}

// recovered is deferred around each call of the handler.
func (h *panicSafeHandler) recovered() {
	if p := recover(); p != nil {
		h.reportOnce.Do(func() {
			fmt.Fprintf(os.Stderr, "livepool: Config.Logger panicked, and what it was to log is lost: %v\n%s", p, debug.Stack())
		})
	}
}

func (h *panicSafeHandler) Enabled(ctx context.Context, level slog.Level) bool {
	defer h.recovered()
	return h.inner().Enabled(ctx, level)
}

func (h *panicSafeHandler) Handle(ctx context.Context, r slog.Record) error {
	defer h.recovered()
	return h.inner().Handle(ctx, r)
}

// WithAttrs is not used by livepool, but the interface asks for it.
func (h *panicSafeHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &panicSafeHandler{logger: slog.New(h.inner().WithAttrs(attrs))}
}

// WithGroup is like WithAttrs.
func (h *panicSafeHandler) WithGroup(name string) slog.Handler {
	return &panicSafeHandler{logger: slog.New(h.inner().WithGroup(name))}
}
