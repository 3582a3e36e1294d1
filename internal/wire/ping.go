package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
)

// The driver's Ping cannot be left while it waits: whoever wants to be able to leave needs a
// goroutine for each. SendPing and ReadPong are its two halves. They need a connection that
// CanPing, on which nothing is under way.

// comPing is answered by an OK packet, or an error of a server that ends the connection.
// https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_ping.html
var comPing = []byte{1, 0, 0, 0, 0x0e}

const (
	packetOK    = 0x00
	packetError = 0xff
	maxPong     = 1 << 10 // an error's text has at most 512 bytes
)

// pong is the answer to a ping.
type pong struct {
	came      []byte     // of it so far
	mu        sync.Mutex // guards waiting
	waiting   bool       // ReadPong waits under a context
	interrupt func()     // Conn.interruptPong, made once
}

// CanPing says whether livepool may ping by itself: a socket of the system's, which obeys
// its deadlines, and neither TLS, nor compression, nor a wrapper of the user's above it.
func (w *Conn) CanPing() bool {
	if w == nil || !w.readable || w.Wrapped {
		return false
	}
	switch w.Conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// SendPing sends a ping, whose answer ReadPong reads. The driver leaves its own deadlines
// on the connection.
func (w *Conn) SendPing(deadline time.Time) error {
	w.pong.came = w.pong.came[:0]
	_ = w.SetWriteDeadline(deadline)
	_, err := w.Write(comPing)
	return err
}

// ReadPong reads the answer to SendPing until the deadline, zero for none, or until ctx
// ends. If it has not come by then ReadPong may be called again.
func (w *Conn) ReadPong(ctx context.Context, deadline time.Time) (answered bool, err error) {
	_ = w.SetReadDeadline(deadline)
	if ctx.Done() == nil {
		err = w.readPong()
	} else {
		w.setPongWaiting(true)
		stop := context.AfterFunc(ctx, w.pong.interrupt)
		err = w.readPong()
		stop()
		w.setPongWaiting(false)
	}
	_ = w.SetDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, nil
	case err != nil:
		w.noteIOError(err)
		return true, err
	}
	w.BytesSinceRead.Store(0)
	return true, parsePong(w.pong.came)
}

// interruptPong ends the wait of ReadPong. One that comes late, for a context of an earlier
// ping, ends nothing, or has the ping continue in the background.
func (w *Conn) interruptPong() {
	w.pong.mu.Lock()
	defer w.pong.mu.Unlock()
	if w.pong.waiting {
		_ = w.SetReadDeadline(longAgo)
	}
}

var longAgo = time.Unix(1, 0)

func (w *Conn) setPongWaiting(on bool) {
	w.pong.mu.Lock()
	defer w.pong.mu.Unlock()
	w.pong.waiting = on
}

// readPong reads until a whole packet has come.
func (w *Conn) readPong() error {
	if w.pong.came == nil {
		w.pong.came = make([]byte, 0, maxPong)
	}
	for {
		b := w.pong.came
		if size, ok := packetSize(b); ok && len(b) >= packetHeader+size {
			return nil
		}
		if len(b) == cap(b) {
			return errNoPong
		}
		n, err := w.readOnce(b[len(b):cap(b)])
		w.pong.came = b[:len(b)+n]
		if err != nil {
			return err
		}
	}
}

// packetSize is the size that the header of a packet tells, without the header.
func packetSize(b []byte) (size int, ok bool) {
	if len(b) < packetHeader {
		return 0, false
	}
	return int(b[0]) | int(b[1])<<8 | int(b[2])<<16, true
}

var errNoPong = fmt.Errorf("%w: the server answers a ping with something else", mysql.ErrMalformPkt)

// parsePong is nil for an OK packet, and the server's error for an error packet: its number
// in two bytes, and its text after a '#' and five bytes of SQLSTATE.
func parsePong(b []byte) error {
	size, _ := packetSize(b)
	payload := b[packetHeader:]
	switch {
	case len(payload) > size:
		return ErrUnsolicited // more than an answer
	case size > 0 && payload[0] == packetOK:
		return nil
	case size < 3 || payload[0] != packetError:
		return errNoPong
	}
	e := &mysql.MySQLError{Number: uint16(payload[1]) | uint16(payload[2])<<8}
	text := payload[3:]
	if len(text) >= 6 && text[0] == '#' {
		copy(e.SQLState[:], text[1:6])
		text = text[6:]
	}
	e.Message = string(text)
	return e
}
