// usercode.go calls what the user put into the Config. A panic in it is told and
// goes no further: most of it runs below database/sql, where a panic would leave
// a connection locked for ever, or in the background, where it would end the
// program.

package usercode

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
)

// CatchPanic runs code of the user's, and says whether it did not panic.
func CatchPanic(log *slog.Logger, name string, f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("livepool: "+name+" panicked", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
		}
	}()
	f()
	return true
}

// Logger is a logger whose panics go no further. A nil one stands for
// slog.Default(), as that is at the time.
func Logger(logger *slog.Logger) *slog.Logger {
	return slog.New(&panicSafeHandler{logger: logger})
}

// panicSafeHandler hands on to a logger whose handler may panic. A nil one stands
// for slog.Default(), as that is at the time.
type panicSafeHandler struct {
	logger     *slog.Logger
	reportOnce sync.Once // on standard error: where else, if the logger panics
}

func (h *panicSafeHandler) inner() slog.Handler {
	if h.logger == nil {
		return slog.Default().Handler()
	}
	return h.logger.Handler()
}

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

// WithAttrs and WithGroup are not used by livepool, and serve whoever does.
func (h *panicSafeHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &panicSafeHandler{logger: slog.New(h.inner().WithAttrs(attrs))}
}

// WithGroup is like WithAttrs.
func (h *panicSafeHandler) WithGroup(name string) slog.Handler {
	return &panicSafeHandler{logger: slog.New(h.inner().WithGroup(name))}
}
