// usercode.go calls what the user put into the Config. A panic in it is told and
// goes no further: most of it runs below database/sql, where a panic would leave
// a connection locked for ever, or in the background, where it would end the
// program.

package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
)

// contain runs code of the user's, and says whether it did not panic.
func contain(log *slog.Logger, what string, f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("livepool: "+what+" panicked", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
		}
	}()
	f()
	return true
}

// classify is Classify with the user's override.
func (ctr *connector) classify(err error) Class {
	if class, decided := ctr.override(err); decided {
		return class
	}
	return Classify(err)
}

// override is what the user's Classify says, if it decides.
func (ctr *connector) override(err error) (class Class, decided bool) {
	if override := ctr.cfg.Classify; override != nil {
		ctr.cfg.contain("Config.Classify", func() { class, decided = override(err) })
	}
	return class, decided
}

// errConnectPanicked is a connection that could not be opened because the user's
// code panicked. It is a fault of the program, and no outage.
var errConnectPanicked = errors.New("the driver, or the DialFunc or BeforeConnect of its Config, panicked; the stack is in the log")

// connectDriver has the driver open a connection, by the user's dialer and with
// the user's BeforeConnect if there are such.
func (ctr *connector) connectDriver(ctx context.Context, by driver.Connector) (dc driver.Conn, err error) {
	if !ctr.cfg.contain("opening a connection (DialFunc, BeforeConnect or the driver)", func() { dc, err = by.Connect(ctx) }) {
		return nil, errConnectPanicked
	}
	return dc, err
}

// carefulLogger is a logger whose panics go no further. A nil one stands for
// slog.Default(), as that is at the time.
func carefulLogger(logger *slog.Logger) *slog.Logger {
	return slog.New(&carefulHandler{logger: logger})
}

// carefulHandler hands on to a logger whose handler may panic. A nil one stands
// for slog.Default(), as that is at the time.
type carefulHandler struct {
	logger *slog.Logger
	told   sync.Once // on standard error: where else, if the logger panics
}

func (h *carefulHandler) inner() slog.Handler {
	if h.logger == nil {
		return slog.Default().Handler()
	}
	return h.logger.Handler()
}

func (h *carefulHandler) recovered() {
	if p := recover(); p != nil {
		h.told.Do(func() {
			fmt.Fprintf(os.Stderr, "livepool: Config.Logger panicked, and what it was to log is lost: %v\n%s", p, debug.Stack())
		})
	}
}

func (h *carefulHandler) Enabled(ctx context.Context, level slog.Level) bool {
	defer h.recovered()
	return h.inner().Enabled(ctx, level)
}

func (h *carefulHandler) Handle(ctx context.Context, r slog.Record) error {
	defer h.recovered()
	return h.inner().Handle(ctx, r)
}

// WithAttrs and WithGroup are not used by livepool, and serve whoever does.
func (h *carefulHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &carefulHandler{logger: slog.New(h.inner().WithAttrs(attrs))}
}

// WithGroup is like WithAttrs.
func (h *carefulHandler) WithGroup(name string) slog.Handler {
	return &carefulHandler{logger: slog.New(h.inner().WithGroup(name))}
}
