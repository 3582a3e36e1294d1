package wire

import (
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// hasDeadlines says whether nc is a socket, or TLS on one: these obey their deadlines.
func hasDeadlines(nc net.Conn) bool {
	switch nc := nc.(type) {
	case syscall.Conn:
		return true
	case interface{ NetConn() net.Conn }:
		return hasDeadlines(nc.NetConn())
	}
	return false
}

// deadlineConn gives deadlines, and a Close that ends a Read, to a connection of the
// user's that may have neither, such as a channel of an SSH tunnel. It reads and writes
// in two goroutines of its own: a connection that never returns can block these, but
// not the caller. One goroutine at a time calls Read, and one calls Write.
type deadlineConn struct {
	net.Conn
	closeOnce sync.Once
	closed    chan struct{}

	readDeadline, writeDeadline deadlineTimer

	readResults  chan ioResult // from readLoop
	readMore     chan struct{} // the last result was consumed
	unread       ioResult      // the rest of the last result; only Read uses it
	writes       chan []byte   // to writeLoop
	writeResults chan ioResult // from writeLoop
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

// Each chunk must be accepted within writeTimeout: a tunnel has nothing like
// TCP_USER_TIMEOUT.
const (
	writeTimeout  = 30 * time.Second
	maxWriteChunk = 64 << 10
)

// Write counts a chunk as written although it gave up waiting: it may still arrive.
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
	case c.writes <- append([]byte(nil), b...): // a copy: the caller may reuse b when Write returns
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

// Close does not wait for the Close of the connection below.
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

// deadlineTimer is a deadline. Setting it during a wait changes only the next wait.
type deadlineTimer struct {
	mu      sync.Mutex // guards the fields below
	timer   *time.Timer
	expired chan struct{} // closed when the deadline has passed
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
