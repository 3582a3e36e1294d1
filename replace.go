// replace.go opens connections in the background: one in place of a link whose time
// is nearly up, or was, before a caller has to.

package livepool

import (
	"time"
)

// lead is how long before a connection's time is up another one is opened to
// take its place.
func (m *maintainer) lead() time.Duration {
	return min(m.ctr.cfg.Recycle/100, 250*time.Millisecond)
}

// replace opens another link and puts it, when it is time, in place of the one
// with that serial, if the connection is still idle then. It is called during a
// visit.
func (m *maintainer) replace(c *conn, serial int64, when time.Duration) {
	if m.ctr.outage.isDown() || m.pausing() > 0 {
		return
	}
	c.replacing = m.hand(func() {
		l, err := m.open()
		if err == nil {
			waitFor(m.ctx, nil, when-m.ctr.clock.now())
		}
		old, filled := c.succeed(l, serial, err == nil)
		switch {
		case err != nil:
		case filled && old.inner.Conn != nil:
			m.giveUp(old, byAge, nil)
		case filled:
		case c.isClosed(), m.ctr.isFull():
			l.close()
		default: // in use, and closed when it is returned
			m.ctr.addSpare(l)
		}
	})
	if !c.replacing {
		m.pending = append(m.pending, c)
	}
}

// succeed ends a replacement: if there is another link, it takes the place of
// the one with that serial, or of none, on a connection that is idle.
func (c *conn) succeed(l link, serial int64, good bool) (old link, filled bool) {
	settled := func() { c.replacing, c.vacant = false, false }
	if !c.visitIdle(func() {
		settled()
		if good && (c.shell || c.serial == serial) {
			old, filled = c.detach(), true
			c.fill(l)
		}
	}) {
		c.mu.Lock()
		defer c.mu.Unlock()
		settled()
	}
	return old, filled
}

func (c *conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// openPause is between attempts to open a connection in the background that
// fail.
const openPause = time.Second

// open opens a connection in the background. After a failure none is opened
// there for a while.
func (m *maintainer) open() (link, error) {
	l, err := m.ctr.dialOnce(m.ctx)
	if err != nil {
		m.ctr.outage.inquire(m.ctr)
		m.refused.Store(int64(m.ctr.clock.now() + openPause))
	}
	return l, err
}

// pausing is for how long none is to be opened.
func (m *maintainer) pausing() time.Duration {
	return time.Duration(m.refused.Load()) - m.ctr.clock.now()
}
