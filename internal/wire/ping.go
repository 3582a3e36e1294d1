package wire

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/go-sql-driver/mysql"
)

// The driver's Ping cannot be left while it waits: whoever calls it would need a goroutine
// for each ping, to be able to leave. SendPing and ReadPong are its two halves. They need a
// connection whose bytes are the protocol's own (CanPing), on which nothing is under
// way.

// COM_PING is answered by an OK packet, or an error of a server that ends the connection.
// https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_ping.html
var comPing = []byte{1, 0, 0, 0, 0x0e}

const (
	packetOK    = 0x00
	packetError = 0xff
	maxPong     = 1 << 10 // an error's text has at most 512 bytes
)

// CanPing says whether livepool may ping by itself: neither TLS, nor compression, nor a
// wrapper of the user's is between it and the driver.
func (w *Conn) CanPing() bool { return w != nil && w.readable && !w.Wrapped }

// SendPing sends a ping, whose answer ReadPong reads.
func (w *Conn) SendPing() error {
	w.pong = w.pong[:0]
	_, err := w.Write(comPing)
	return err
}

// ReadPong reads the answer to SendPing until the deadline, zero for none, or until the
// watched context ends. If it has not come by then ReadPong may be called again.
func (w *Conn) ReadPong(deadline time.Time) (answered bool, err error) {
	if w.pong == nil {
		w.pong = make([]byte, 0, maxPong)
	}
	_ = w.SetReadDeadline(deadline)
	for !isWhole(w.pong) && err == nil {
		if len(w.pong) == cap(w.pong) {
			return true, errNoPong
		}
		var n int
		w.Reads.Add(1)
		n, err = w.Conn.Read(w.pong[len(w.pong):cap(w.pong)])
		w.pong = w.pong[:len(w.pong)+n]
		if w.Reads.Add(1)&readsAborted != 0 {
			err = w.awaitAbortErr()
		}
	}
	if !deadline.IsZero() {
		_ = w.SetReadDeadline(time.Time{})
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, nil
	case err != nil:
		w.noteIOError(err)
		return true, err
	}
	w.BytesSinceRead.Store(0)
	return true, readPong(w.pong)
}

// isWhole says whether b has a packet, and perhaps more.
func isWhole(b []byte) bool {
	return len(b) >= packetHeader && len(b) >= packetHeader+(int(b[0])|int(b[1])<<8|int(b[2])<<16)
}

var errNoPong = fmt.Errorf("%w: the answer to a ping is no answer to a ping", mysql.ErrMalformPkt)

// readPong is nil for an OK packet, and the server's error for an error packet: its number
// in two bytes, and its text after a '#' and five bytes of SQLSTATE.
func readPong(b []byte) error {
	payload := b[packetHeader:]
	switch {
	case len(payload) != int(b[0])|int(b[1])<<8|int(b[2])<<16, len(payload) == 0:
		return ErrUnsolicited // more than an answer
	case payload[0] == packetOK:
		return nil
	case payload[0] != packetError || len(payload) < 3:
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
