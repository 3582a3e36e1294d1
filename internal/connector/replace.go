// replace.go opens a new link in the background, in place of one that is about to expire
// or has expired, so that no caller has to wait for it.

package connector

import (
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// renewAhead is how long before a link expires its replacement is opened.
func (m *maintainer) renewAhead() time.Duration {
	return min(m.ctr.Cfg.Recycle/100, 250*time.Millisecond)
}

// replace opens a link in the background and, at the given time, puts it in place of the
// link with that serial (0 for none), if the connection is idle then. It is called under
// a reservation.
func (m *maintainer) replace(c *conn, serial int64, at time.Duration) {
	if m.ctr.Outage.IsDown() || m.openPauseLeft() > 0 {
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
		default: // in use: the old link is closed when it is returned
			m.ctr.addSpare(l)
		}
	})
	if !c.replacing {
		m.pending = append(m.pending, c)
	}
}

// swapLink ends a replacement. If one was opened and the connection is idle, it takes
// the place of the link with that serial, or of a link that is missing.
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

// openRetryPause is the pause after a failure to open a connection in the background.
const openRetryPause = time.Second

// open opens a connection in the background. After a failure none is opened in the
// background for openRetryPause.
func (m *maintainer) open() (link, error) {
	l, err := m.ctr.dialOnce(m.ctx)
	if err != nil {
		m.ctr.Outage.RequestProbe()
		m.openPausedUntil.Store(int64(m.ctr.clock.Now() + openRetryPause))
	}
	return l, err
}

// openPauseLeft is what is left of that pause.
func (m *maintainer) openPauseLeft() time.Duration {
	return time.Duration(m.openPausedUntil.Load()) - m.ctr.clock.Now()
}
