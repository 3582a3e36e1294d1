package wire

import (
	"encoding/binary"
	"fmt"
	"time"
)

// handshake reads the thread id from the server's first packet while the driver reads
// it, in whatever pieces. MySQL and MariaDB send: length (3), sequence (1), protocol
// version (1), server version up to a NUL, thread id (4).
// https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase_packets_protocol_handshake_v10.html
type handshake struct {
	done     bool
	pos      int // bytes read
	idAt     int // where the thread id begins, 0 while unknown
	id       uint32
	ThreadID uint32 // id, once all of it has come: a part of it is the id of another thread
}

const (
	packetHeader     = 4
	protocolVersion  = 10
	maxServerVersion = 1 << 10 // far longer than any; what is longer is no handshake
)

func (h *handshake) read(b []byte) {
	for _, c := range b {
		h.pos++
		switch {
		case h.pos <= packetHeader:
		case h.pos == packetHeader+1:
			h.done = c != protocolVersion // an error packet, or another protocol
		case h.idAt == 0:
			if c == 0 {
				h.idAt = h.pos
			}
			h.done = h.pos > maxServerVersion
		default:
			h.id |= uint32(c) << (8 * (h.pos - h.idAt - 1))
			if h.done = h.pos == h.idAt+4; h.done {
				h.ThreadID = h.id
			}
		}
		if h.done {
			return
		}
	}
}

// How much of the server's greeting has come.
const (
	greetingNone int32 = iota
	greetingPartial
	greetingComplete
)

// noteReply reads the greeting, and measures how fast the server replies to it and to
// the login.
func (w *Conn) noteReply(b []byte) {
	if w.Handshake.done {
		w.FastestReply = min(w.FastestReply, time.Since(w.loginSentAt))
		w.loginSentAt = time.Time{}
		return
	}
	w.Handshake.read(b)
	w.FastestReply = time.Since(w.dialedAt)
	switch {
	case w.Handshake.done:
		w.greetingState.Store(greetingComplete)
	case len(b) > 0:
		w.greetingState.Store(greetingPartial)
	}
}

// noteLogin reads the client's first packet, which begins with its capabilities: whether it
// may send several statements in one request, and what comes between it and the wire.
// https://dev.mysql.com/doc/dev/mysql-server/latest/group__group__cs__capabilities__flags.html
func (w *Conn) noteLogin(b []byte) {
	const compress, tls, multiStatements, zstd = 1 << 5, 1 << 11, 1 << 16, 1 << 26
	if len(b) < packetHeader+4 {
		return
	}
	capabilities := binary.LittleEndian.Uint32(b[packetHeader:])
	w.MultiStatements = capabilities&multiStatements != 0
	w.readable = capabilities&(compress|tls|zstd) == 0
}

// HasSpoken says whether the other end has sent anything. Any goroutine may ask.
func (w *Conn) HasSpoken() bool { return w != nil && w.greetingState.Load() != greetingNone }

// Progress says how far the opening of a connection has come, for an error.
func (w *Conn) Progress() string {
	switch {
	case w == nil:
		return "before the network connection was made"
	case w.greetingState.Load() < greetingComplete:
		return "after the network connection was accepted but before the server said anything"
	default:
		return fmt.Sprintf("during the login of thread %d", w.Handshake.ThreadID)
	}
}
