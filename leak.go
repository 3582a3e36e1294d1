// leak.go reports connections that are held for longer than LeakAfter, with the
// stack of who took them.

package livepool

import (
	"context"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// holding is one borrower's time with a connection.
type holding struct {
	since time.Duration
	unit  atomic.Pointer[string] // the name of the unit of work, if it is one
	stack []uintptr
	told  bool // the maintainer's own
}

// holds notes who takes the connection, or what he is called.
func (c *conn) holds(unit string) {
	if c.ctr.cfg.LeakAfter == 0 {
		return
	}
	h := c.held.Load()
	if h == nil {
		var pcs [64]uintptr
		h = &holding{since: c.ctr.clock.now(), stack: append([]uintptr(nil), pcs[:runtime.Callers(3, pcs[:])]...)}
		c.held.Store(h)
	}
	if unit != "" {
		name := unit // so that only this costs an allocation
		h.unit.Store(&name)
	}
}

// lets notes that it is returned.
func (c *conn) lets() {
	if c.ctr.cfg.LeakAfter > 0 {
		c.held.Store(nil)
	}
}

// lookForLeaks reports each connection once that is held for too long, and
// returns when to look again.
func (m *maintainer) lookForLeaks(all []*conn) time.Duration {
	after := m.ctr.cfg.LeakAfter
	if after == 0 {
		return never
	}
	now, wait := m.ctr.clock.now(), after
	for _, c := range all {
		h := c.held.Load()
		switch {
		case h == nil || h.told:
		case now-h.since < after:
			wait = min(wait, after-(now-h.since))
		default:
			h.told = true
			m.reportLeak(c, h, now-h.since)
		}
	}
	return wait
}

func (m *maintainer) reportLeak(c *conn, h *holding, age time.Duration) {
	m.ctr.stats.leaks.Add(1)
	var thread uint32
	if w := c.watched.Load(); w != nil {
		thread = w.hello.threadID
	}
	unit := "a statement, sql.Conn, sql.Tx or sql.Rows outside of a session"
	if name := h.unit.Load(); name != nil {
		unit = *name
	}
	m.ctr.cfg.Log.LogAttrs(context.Background(), slog.LevelWarn,
		"livepool: a connection is held for longer than LeakAfter (pool_leak_after): it is leaked, or its holder takes long",
		slog.String("addr", m.ctr.addr), slog.Uint64("thread_id", uint64(thread)), slog.String("unit", unit),
		slog.Duration("held", age), slog.String("stack", stackOf(h.stack)))
}

// stackOf prints a stack, less what is the runtime's.
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
