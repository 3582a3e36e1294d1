// deadlineconn.go makes a network connection of the user's obey its deadlines and its
// Close, whether it does by itself or not: a channel of an SSH tunnel has no
// deadlines, and its Close may not end a Read.

package wire

import (
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// hasDeadlines says whether nc is a socket, or TLS on one, which need no help.
func hasDeadlines(nc net.Conn) bool {
	switch nc := nc.(type) {
	case syscall.Conn:
		return true
	case interface{ NetConn() net.Conn }:
		return hasDeadlines(nc.NetConn())
	}
	return false
}

// deadlineConn reads and writes a connection in goroutines of its own, which a
// connection that never returns may keep for ever; its user it does not. Read is
// called by one goroutine at a time, and so is Write.
type deadlineConn struct {
	net.Conn
	closeOnce sync.Once
	closed    chan struct{}

	readDeadline, writeDeadline deadlineTimer

	readResults  chan ioResult // what was read
	readMore     chan struct{}
	unread       ioResult // of it; the reader's
	writes       chan []byte
	writeResults chan ioResult
}

type ioResult struct {
	b   []byte
	err error
}

func newDeadlineConn(nc net.Conn) *deadlineConn {
	c := &deadlineConn{
		Conn: nc, closed: make(chan struct{}),
		readResults: make(chan ioResult, 1), readMore: make(chan struct{}, 1),
		writes: make(chan []byte, 1), writeResults: make(chan ioResult, 1),
	}
	c.readDeadline.init()
	c.writeDeadline.init()
	c.readMore <- struct{}{}
	go c.readLoop()
	go c.writeLoop()
	return c
}

func (c *deadlineConn) readLoop() {
	buf := make([]byte, 16<<10)
	for {
		select {
		case <-c.readMore:
		case <-c.closed:
			return
		}
		n, err := c.Conn.Read(buf)
		c.readResults <- ioResult{b: buf[:n], err: err}
	}
}

func (c *deadlineConn) writeLoop() {
	for {
		select {
		case b := <-c.writes:
			_, err := c.Conn.Write(b)
			c.writeResults <- ioResult{err: err}
		case <-c.closed:
			return
		}
	}
}

func (c *deadlineConn) Read(b []byte) (int, error) {
	if len(c.unread.b) == 0 && c.unread.err == nil {
		select {
		case <-c.closed:
			return 0, net.ErrClosed
		default:
		}
		select {
		case c.unread = <-c.readResults:
		case <-c.readDeadline.done():
			return 0, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(b, c.unread.b)
	c.unread.b = c.unread.b[n:]
	if len(c.unread.b) > 0 {
		return n, nil
	}
	if c.unread.err == nil {
		c.readMore <- struct{}{}
	}
	return n, c.unread.err
}

// Of what is written a piece has to be taken within writePatience: a tunnel has
// nothing like TCP_USER_TIMEOUT.
const (
	writeTimeout  = 30 * time.Second
	maxWriteChunk = 64 << 10
)

// Write counts a piece that it has given up as written: it may still arrive.
func (c *deadlineConn) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		piece := b[:min(len(b), maxWriteChunk)]
		if err := c.writeChunk(piece); err != nil {
			return n + len(piece), err
		}
		n, b = n+len(piece), b[len(piece):]
	}
	return n, nil
}

func (c *deadlineConn) writeChunk(b []byte) error {
	timer := time.NewTimer(writeTimeout)
	defer timer.Stop()
	select {
	case <-c.closed:
		return net.ErrClosed
	case <-c.writeDeadline.done():
		return os.ErrDeadlineExceeded
	case <-timer.C:
		return os.ErrDeadlineExceeded
	case c.writes <- append([]byte(nil), b...): // b is the caller's again when this returns
	}
	select {
	case r := <-c.writeResults:
		return r.err
	case <-c.writeDeadline.done():
		return os.ErrDeadlineExceeded
	case <-timer.C:
		return os.ErrDeadlineExceeded
	case <-c.closed:
		return net.ErrClosed
	}
}

// Close does not wait for the connection's own.
func (c *deadlineConn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		go c.Conn.Close()
	})
	return nil
}

func (c *deadlineConn) SetReadDeadline(t time.Time) error  { c.readDeadline.set(t); return nil }
func (c *deadlineConn) SetWriteDeadline(t time.Time) error { c.writeDeadline.set(t); return nil }
func (c *deadlineConn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}

// deadlineTimer is one that may be set while it is waited for, but then ends only the
// next wait.
type deadlineTimer struct {
	mu      sync.Mutex // guards what follows
	timer   *time.Timer
	expired chan struct{} // closed when it has passed
}

func (d *deadlineTimer) init() { d.expired = make(chan struct{}) }

func (d *deadlineTimer) done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}

func (d *deadlineTimer) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	expired := make(chan struct{})
	d.expired, d.timer = expired, nil
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() { close(expired) })
	}
}
