// replace.go opens connections in the background: one in place of a link whose time
// is nearly up, or was, before a caller has to.

package connector

import (
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// renewAhead is how long before a connection's time is up another one is opened to
// take its place.
func (m *maintainer) renewAhead() time.Duration {
	return min(m.ctr.Cfg.Recycle/100, 250*time.Millisecond)
}

// replace opens another link and puts it, when it is time, in place of the one
// with that serial, if the connection is still idle then. It is called during a
// visit.
func (m *maintainer) replace(c *conn, serial int64, at time.Duration) {
	if m.ctr.Outage.isDown() || m.openPauseLeft() > 0 {
		return
	}
	c.replacing = m.startTask(func() {
		l, err := m.open()
		if err == nil {
			clock.Wait(m.ctx, nil, at-m.ctr.clock.Now())
		}
		old, attached := c.swapLink(l, serial, err == nil)
		switch {
		case err != nil:
		case attached && old.driverConn.Conn != nil:
			m.discard(old, ByAge, nil)
		case attached:
		case c.isClosed(), m.ctr.isAtLimit():
			l.close()
		default: // in use, and closed when it is returned
			m.ctr.addSpare(l)
		}
	})
	if !c.replacing {
		m.pending = append(m.pending, c)
	}
}

// swapLink ends a replacement: if there is another link, it takes the place of
// the one with that serial, or of none, on a connection that is idle.
func (c *conn) swapLink(l link, serial int64, opened bool) (old link, attached bool) {
	endReplacement := func() { c.replacing, c.needsLink = false, false }
	if !c.reserveIdle(func() {
		endReplacement()
		if opened && (c.unconnected || c.serial == serial) {
			old, attached = c.detach(), true
			c.attach(l)
		}
	}) {
		c.mu.Lock()
		defer c.mu.Unlock()
		endReplacement()
	}
	return old, attached
}

func (c *conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// openRetryPause is between attempts to open a connection in the background that
// fail.
const openRetryPause = time.Second

// open opens a connection in the background. After a failure none is opened
// there for a while.
func (m *maintainer) open() (link, error) {
	l, err := m.ctr.dialOnce(m.ctx)
	if err != nil {
		m.ctr.Outage.requestProbe(m.ctr)
		m.openPausedUntil.Store(int64(m.ctr.clock.Now() + openRetryPause))
	}
	return l, err
}

// openPauseLeft is for how long none is to be opened.
func (m *maintainer) openPauseLeft() time.Duration {
	return time.Duration(m.openPausedUntil.Load()) - m.ctr.clock.Now()
}
