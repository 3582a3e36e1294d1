// leak.go reports connections that are checked out for longer than LeakAfter, with the
// stack of the caller that took them.

package connector

import (
	"context"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// checkout is who took a connection, and when. Its owner makes it.
type checkout struct {
	since    time.Duration
	unit     atomic.Pointer[string] // the name of the unit of work, if it is one; the owner writes it
	stack    []uintptr
	reported bool // only the maintainer uses it
}

// trackCheckout records who takes the connection, or later the name of its unit.
func (c *conn) trackCheckout(unit string) {
	if c.ctr.Cfg.LeakAfter == 0 {
		return
	}
	h := c.checkout.Load()
	if h == nil {
		var pcs [64]uintptr
		h = &checkout{since: c.ctr.clock.Now(), stack: append([]uintptr(nil), pcs[:runtime.Callers(3, pcs[:])]...)}
		c.checkout.Store(h)
	}
	if unit != "" {
		name := unit // so that only this costs an allocation
		h.unit.Store(&name)
	}
}

// untrackCheckout records that it is returned.
func (c *conn) untrackCheckout() {
	if c.ctr.Cfg.LeakAfter > 0 {
		c.checkout.Store(nil)
	}
}

// findLeaks reports, once each, the connections that are checked out for too long, and
// returns when to look again.
func (m *maintainer) findLeaks(all []*conn) time.Duration {
	after := m.ctr.Cfg.LeakAfter
	if after == 0 {
		return clock.Never
	}
	now, wait := m.ctr.clock.Now(), after
	for _, c := range all {
		h := c.checkout.Load()
		switch {
		case h == nil || h.reported:
		case now-h.since < after:
			wait = min(wait, after-(now-h.since))
		default:
			h.reported = true
			m.reportLeak(c, h, now-h.since)
		}
	}
	return wait
}

func (m *maintainer) reportLeak(c *conn, h *checkout, age time.Duration) {
	m.ctr.Stats.Leaks.Add(1)
	var thread uint32
	if w := c.currentThread.Load(); w != nil {
		thread = w.Handshake.ThreadID
	}
	unit := "a statement, sql.Conn, sql.Tx or sql.Rows outside of a session"
	if name := h.unit.Load(); name != nil {
		unit = *name
	}
	m.ctr.Cfg.Log.LogAttrs(context.Background(), slog.LevelWarn,
		"livepool: a connection is held for longer than LeakAfter (pool_leak_after): it is leaked, or its holder takes long",
		slog.String("addr", m.ctr.addr), slog.Uint64("thread_id", uint64(thread)), slog.String("unit", unit),
		slog.Duration("held", age), slog.String("stack", stackOf(h.stack)))
}

// stackOf prints a stack without the functions of the runtime.
func stackOf(pcs []uintptr) string {
	var b strings.Builder
	frames := runtime.CallersFrames(pcs)
	for {
		f, more := frames.Next()
		if f.Function != "" && !strings.HasPrefix(f.Function, "runtime.") {
			b.WriteString(f.Function + "\n\t" + f.File + ":" + strconv.Itoa(f.Line) + "\n")
		}
		if !more {
			return b.String()
		}
	}
}
