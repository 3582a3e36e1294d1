// dial.go opens the network connection below the driver and wraps it, so that
// livepool can look at the socket, read the thread id off the handshake, and
// know whether a statement was written and what ended the connection. It knows
// nothing of SQL and nothing of the pool.

package wire

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/livepool/livepool/internal/mysqlerr"
)

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// How soon the kernel gives up a peer that has vanished while nothing, or
// nothing that is answered, is in flight. MySQL sends nothing while a statement
// runs, so without keep-alive probes the client of a vanished server waits
// for ever; with them it waits about as long as this and sets no limit on how
// long a statement may run (tcp(7), TCP_USER_TIMEOUT).
const (
	keepAliveIdle     = 5 * time.Second
	keepAliveInterval = 2 * time.Second
	keepAliveCount    = 3
	TcpUserTimeout    = 11 * time.Second
)

var keepAliveConfig = net.KeepAliveConfig{
	Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
}

// dialNetwork is livepool's own dialer.
var dialNetwork dialFunc = (&net.Dialer{
	KeepAliveConfig: keepAliveConfig,
	Control: func(network, _ string, c syscall.RawConn) error {
		_ = setUserTimeout(network, c, TcpUserTimeout) // a kernel without it has keep-alive
		return nil
	},
}).DialContext

// WireKey is under what a dial in progress finds where to leave its wire.
type WireKey struct{}

// WrapDialer returns dial, or livepool's own dialer for nil, with the connection
// it makes wrapped in a *wire, which it also leaves where the context says. A TCP
// connection gets livepool's socket options, whoever has dialled it.
func WrapDialer(dial dialFunc) dialFunc {
	own := dial == nil
	if own {
		dial = dialNetwork
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if !hasDeadlines(nc) {
			nc = newDeadlineConn(nc)
		}
		w := Wrap(nc)
		if tcp, ok := nc.(*net.TCPConn); ok {
			w.HasUserTimeout = w.Raw != nil
			if !own {
				if err := tcp.SetKeepAliveConfig(keepAliveConfig); err != nil {
					nc.Close()
					return nil, err
				}
				if w.Raw != nil {
					_ = setUserTimeout("tcp", w.Raw, TcpUserTimeout)
				}
			}
		}
		if at, ok := ctx.Value(WireKey{}).(*atomic.Pointer[Conn]); ok {
			at.Store(w)
		}
		return w, nil
	}
}

// Conn is the net.Conn below the driver. The driver reads and writes it from
// one goroutine at a time; it may be closed from any.
type Conn struct {
	net.Conn
	Raw      syscall.RawConn // nil: the socket cannot be looked at
	peekFunc func(fd uintptr)
	peekErr  error // what look found

	HasUserTimeout bool // the kernel gives up its peer after tcpUserTimeout
	Handshake      handshake
	// greetingState is how much of hello has come, for those who do not read it.
	greetingState atomic.Int32
	dialedAt      time.Time
	loginSentAt   time.Time // when the client began to log in, until that is answered
	// FastestReply is the shorter of what its greeting and the first answer of the
	// login took: either may be slow for reasons of its own.
	FastestReply    time.Duration
	MultiStatements bool // the client may send several statements at a time

	Reads          atomic.Uint64         // twice the number of reads, and one more while one is waiting
	BytesSinceRead atomic.Uint64         // bytes written since the last read
	AbortErr       atomic.Pointer[error] // why its reply will not come

	Written     uint64 // bytes, ever
	packetSize  int    // bytes of the packet that is being written in pieces, so far; 0 for none
	MaxPacket   int    // bytes of the largest packet that the server reads, 0 if it is not known
	Oversized   int    // bytes of the last packet that was larger than that
	OversizedAt uint64 // and what written was after it
	IoErr       error  // the first I/O error: what ended the connection
	Closed      atomic.Bool
	maxDeadline time.Time     // no deadline is later, unless it is zero
	limitPeriod time.Duration // from which that was counted
	// IsWorking says, when that has come, whether the server is seen to work on what it
	// was sent. nil where it cannot be asked. getAcquainted sets it.
	IsWorking func() bool
}

func Wrap(nc net.Conn) *Conn {
	w := &Conn{Conn: nc, dialedAt: time.Now()}
	if sc, ok := nc.(syscall.Conn); ok && canPeek {
		if raw, err := sc.SyscallConn(); err == nil {
			w.Raw = raw
			// Made once, so that a look allocates nothing.
			w.peekFunc = func(fd uintptr) { w.peekErr = peekSocket(fd) }
		}
	}
	return w
}

// WithoutUserTimeout lets the peer of a limited wire take as long as it likes, until the function that it
// returns is called. The kernel counts a peer that is there but takes no more
// bytes as silent too, which is what a server does that waits for a lock in the
// middle of LOAD DATA LOCAL.
func (w *Conn) WithoutUserTimeout() (restore func()) {
	_ = setUserTimeout("tcp", w.Raw, 0)
	return func() { _ = setUserTimeout("tcp", w.Raw, TcpUserTimeout) }
}

// SyscallConn forwards the socket; without it whoever else looks at the
// connection would silently see nothing.
func (w *Conn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := w.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

func (w *Conn) Read(b []byte) (int, error) {
	w.Reads.Add(1)
	n, err := w.Conn.Read(b)
	if err != nil && w.isLimitError(err) {
		n, err = w.readWhileWorking(b)
	}
	if w.Reads.Add(1)&readsAborted != 0 {
		n, err = 0, w.awaitAbortErr()
	}
	w.BytesSinceRead.Store(0)
	if !w.Handshake.done || !w.loginSentAt.IsZero() {
		w.noteReply(b[:n])
	}
	if err != nil {
		w.noteIOError(err)
	}
	return n, err
}

// What of the server's greeting has come.
const (
	greetingNone int32 = iota
	greetingPartial
	greetingComplete
)

// noteReply reads the beginning of what the server says, and how quick it is.
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

func (w *Conn) Write(b []byte) (int, error) {
	if w.Written == 0 {
		w.MultiStatements, w.loginSentAt = setsMultiStatements(b), time.Now()
	}
	n, err := w.Conn.Write(b)
	w.Written += uint64(n)
	w.BytesSinceRead.Add(uint64(n))
	if w.MaxPacket > 0 && (len(b) > w.MaxPacket || w.packetSize > 0 || len(b) >= maxPacketPiece) {
		w.notePacketSize(b)
	}
	if err != nil {
		w.noteIOError(err)
	}
	return n, err
}

// maxPacketPiece is what one header counts: a larger packet has several.
const maxPacketPiece = 1<<24 - 1

// notePacketSize notes a packet that is larger than the server takes. The driver writes
// each piece at once, with its header. What is encrypted or compressed looks
// otherwise, and is not counted.
func (w *Conn) notePacketSize(b []byte) {
	size := -1
	if len(b) >= packetHeader {
		size = int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	}
	if size != len(b)-packetHeader {
		w.packetSize = 0
		return
	}
	w.packetSize += size
	if w.packetSize > w.MaxPacket {
		w.Oversized, w.OversizedAt = w.packetSize, w.Written
	}
	if size < maxPacketPiece {
		w.packetSize = 0
	}
}

// setsMultiStatements says whether a client's first packet, which begins with its
// capabilities, has the server take several statements at a time (MySQL source
// documentation, Protocol::HandshakeResponse41, Protocol::SSLRequest).
func setsMultiStatements(login []byte) bool {
	const header, multiStatements = 4, 1 << 16
	return len(login) >= header+4 && binary.LittleEndian.Uint32(login[header:])&multiStatements != 0
}

// readsAborted marks the count of reads of a connection that is condemned.
const readsAborted = 1 << 63

// Abort ends a connection under the reader who waits for its reply, if it
// still waits in that read. before is called before it learns of it.
func (w *Conn) Abort(read uint64, reason error, before func()) bool {
	if !w.Reads.CompareAndSwap(read, read|readsAborted) {
		return false
	}
	before()
	w.AbortErr.Store(&reason)
	w.Conn.Close()
	return true
}

// awaitAbortErr is why the connection is condemned. It comes an instant after the
// mark.
func (w *Conn) awaitAbortErr() error {
	for {
		if why := w.AbortErr.Load(); why != nil {
			return *why
		}
		runtime.Gosched()
	}
}

// Close closes the connection. The driver does so from a goroutine of its own
// when a context ends. A server that has not even accepted it yet is not to find
// it later, and count it against this host: it is told by a reset.
func (w *Conn) Close() error {
	w.Closed.Store(true)
	if w.AbortErr.Load() != nil {
		return nil // it is closed
	}
	if tcp, ok := w.Conn.(*net.TCPConn); ok && w.greetingState.Load() == greetingNone {
		_ = tcp.SetLinger(0)
	}
	return w.Conn.Close()
}

// isLimitError says whether an error is the end of the limit, and not of another
// deadline, and the server can be asked what it does.
func (w *Conn) isLimitError(err error) bool {
	return w.IsWorking != nil && !w.maxDeadline.IsZero() && errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(w.maxDeadline)
}

// lastReadWait is for what has come while the server was asked.
const lastReadWait = 10 * time.Millisecond

// readWhileWorking goes on with a read whose limit is reached, as long as the server is seen
// to work on what it was sent: it may be kept from finishing a COMMIT by a backup,
// or by a replica that does not acknowledge.
func (w *Conn) readWhileWorking(b []byte) (n int, err error) {
	for working := true; working; {
		period := lastReadWait
		if working = w.IsWorking(); working {
			period = w.limitPeriod
		}
		w.maxDeadline = time.Now().Add(period)
		_ = w.Conn.SetReadDeadline(w.maxDeadline)
		if n, err = w.Conn.Read(b); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return n, err
}

// SetLimit bounds all that is read and written until unlimit, whatever deadlines
// the driver sets meanwhile.
func (w *Conn) SetLimit(d time.Duration) {
	if w == nil {
		return
	}
	w.maxDeadline, w.limitPeriod = time.Now().Add(d), d
	_ = w.Conn.SetDeadline(w.maxDeadline)
}

func (w *Conn) ClearLimit() {
	if w == nil {
		return
	}
	w.maxDeadline = time.Time{}
	_ = w.Conn.SetDeadline(time.Time{})
}

// SetReadDeadline sets the deadline within the limit; a zero t is none.
func (w *Conn) SetReadDeadline(t time.Time) error { return w.Conn.SetReadDeadline(w.clampDeadline(t)) }

// SetWriteDeadline sets the deadline within the limit; a zero t is none.
func (w *Conn) SetWriteDeadline(t time.Time) error {
	return w.Conn.SetWriteDeadline(w.clampDeadline(t))
}

// SetDeadline sets both.
func (w *Conn) SetDeadline(t time.Time) error { return w.Conn.SetDeadline(w.clampDeadline(t)) }

func (w *Conn) clampDeadline(t time.Time) time.Time {
	if w.maxDeadline.IsZero() || !t.IsZero() && t.Before(w.maxDeadline) {
		return t
	}
	return w.maxDeadline
}

func (w *Conn) noteIOError(err error) {
	if w.IoErr == nil && !w.Closed.Load() { // what follows this side's own close says nothing
		w.IoErr = err
	}
}

// ErrUnsolicited is bytes on an idle connection: a server's last words, most often.
var ErrUnsolicited error = unsolicitedBytes{}

type unsolicitedBytes struct{}

func (unsolicitedBytes) Error() string {
	return "the server sent something unasked, as it does before it closes a connection"
}
func (unsolicitedBytes) Class() mysqlerr.Class { return mysqlerr.NotSent }

// Peek looks at the idle socket without a round trip: io.EOF for a FIN, the
// socket's error for an RST, errUnasked for bytes that nobody asked for. It
// takes no byte away, and it minds no deadline: an old read deadline says
// nothing of a connection's health.
func (w *Conn) Peek() error {
	if w.Raw == nil {
		return nil
	}
	if err := w.Raw.Control(w.peekFunc); err != nil {
		return err
	}
	return w.peekErr
}

// handshake reads the server's first packet as it passes by, however it is cut
// into reads, for the thread id, which MySQL and MariaDB put there: length (3),
// sequence (1), protocol version (1), server version up to a NUL, thread id (4).
// https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase_packets_protocol_handshake_v10.html
type handshake struct {
	done     bool
	pos      int // bytes seen
	idAt     int // where the thread id begins, 0 while unknown
	id       uint32
	ThreadID uint32 // id, once all of it has come; a part of an id is another's
}

const (
	packetHeader     = 4
	protocolVersion  = 10
	maxServerVersion = 1 << 10 // far above any; an endless one is no handshake
)

func (h *handshake) read(b []byte) {
	for _, c := range b {
		h.pos++
		switch {
		case h.pos <= packetHeader:
		case h.pos == packetHeader+1:
			h.done = c != protocolVersion // an error packet, or no MySQL at all
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

// Loss is how the other end was lost.
type Loss int

const (
	notLost    Loss = iota // closed by this side
	HungUp                 // FIN, RST, or a deadline of the caller's own
	WentSilent             // nothing came back in time
)

// LossOf says what an error of the socket means for the other connections. A
// deadline is not silence here: the driver's ReadTimeout ends statements that
// are only slow.
func LossOf(err error) Loss {
	switch {
	case err == nil, errors.Is(err, net.ErrClosed), errors.Is(err, driver.ErrBadConn),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return notLost
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return WentSilent // of an established connection a kernel that gave it up says any of these
	default:
		return HungUp
	}
}

// Progress says how far the opening of a connection has come.
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
