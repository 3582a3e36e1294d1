// bounded.go makes a network connection of the user's obey its deadlines and its
// Close, whether it does by itself or not: a channel of an SSH tunnel has no
// deadlines, and its Close may not end a Read.

package livepool

import (
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// keepsDeadlines says whether nc is a socket, or TLS on one, which need no help.
func keepsDeadlines(nc net.Conn) bool {
	switch nc := nc.(type) {
	case syscall.Conn:
		return true
	case interface{ NetConn() net.Conn }:
		return keepsDeadlines(nc.NetConn())
	}
	return false
}

// bounded reads and writes a connection in goroutines of its own, which a
// connection that never returns may keep for ever; its user it does not. Read is
// called by one goroutine at a time, and so is Write.
type bounded struct {
	net.Conn
	closing sync.Once
	closed  chan struct{}

	read, write deadline

	in   chan result // what was read
	more chan struct{}
	rest result // of it; the reader's
	out  chan []byte
	sent chan result
}

type result struct {
	b   []byte
	err error
}

func newBounded(nc net.Conn) *bounded {
	c := &bounded{
		Conn: nc, closed: make(chan struct{}),
		in: make(chan result, 1), more: make(chan struct{}, 1),
		out: make(chan []byte, 1), sent: make(chan result, 1),
	}
	c.read.init()
	c.write.init()
	c.more <- struct{}{}
	go c.reads()
	go c.writes()
	return c
}

func (c *bounded) reads() {
	buf := make([]byte, 16<<10)
	for {
		select {
		case <-c.more:
		case <-c.closed:
			return
		}
		n, err := c.Conn.Read(buf)
		c.in <- result{b: buf[:n], err: err}
	}
}

func (c *bounded) writes() {
	for {
		select {
		case b := <-c.out:
			_, err := c.Conn.Write(b)
			c.sent <- result{err: err}
		case <-c.closed:
			return
		}
	}
}

func (c *bounded) Read(b []byte) (int, error) {
	if len(c.rest.b) == 0 && c.rest.err == nil {
		select {
		case <-c.closed:
			return 0, net.ErrClosed
		default:
		}
		select {
		case c.rest = <-c.in:
		case <-c.read.passed():
			return 0, os.ErrDeadlineExceeded
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(b, c.rest.b)
	c.rest.b = c.rest.b[n:]
	if len(c.rest.b) > 0 {
		return n, nil
	}
	if c.rest.err == nil {
		c.more <- struct{}{}
	}
	return n, c.rest.err
}

// Of what is written a piece has to be taken within writePatience: a tunnel has
// nothing like TCP_USER_TIMEOUT.
const (
	writePatience = 30 * time.Second
	writePiece    = 64 << 10
)

// Write counts a piece that it has given up as written: it may still arrive.
func (c *bounded) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		piece := b[:min(len(b), writePiece)]
		if err := c.writePiece(piece); err != nil {
			return n + len(piece), err
		}
		n, b = n+len(piece), b[len(piece):]
	}
	return n, nil
}

func (c *bounded) writePiece(b []byte) error {
	patience := time.NewTimer(writePatience)
	defer patience.Stop()
	select {
	case <-c.closed:
		return net.ErrClosed
	case <-c.write.passed():
		return os.ErrDeadlineExceeded
	case <-patience.C:
		return os.ErrDeadlineExceeded
	case c.out <- append([]byte(nil), b...): // b is the caller's again when this returns
	}
	select {
	case r := <-c.sent:
		return r.err
	case <-c.write.passed():
		return os.ErrDeadlineExceeded
	case <-patience.C:
		return os.ErrDeadlineExceeded
	case <-c.closed:
		return net.ErrClosed
	}
}

// Close does not wait for the connection's own.
func (c *bounded) Close() error {
	c.closing.Do(func() {
		close(c.closed)
		go c.Conn.Close()
	})
	return nil
}

func (c *bounded) SetReadDeadline(t time.Time) error  { c.read.set(t); return nil }
func (c *bounded) SetWriteDeadline(t time.Time) error { c.write.set(t); return nil }
func (c *bounded) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}

// deadline is one that may be set while it is waited for, but then ends only the
// next wait.
type deadline struct {
	mu    sync.Mutex // guards what follows
	timer *time.Timer
	over  chan struct{} // closed when it has passed
}

func (d *deadline) init() { d.over = make(chan struct{}) }

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	over := make(chan struct{})
	d.over, d.timer = over, nil
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() { close(over) })
	}
}
