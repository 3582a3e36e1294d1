// dial.go opens the network connection below the driver and wraps it, so that
// livepool can look at the socket, read the thread id off the handshake, and
// know whether a statement was written and what ended the connection. It knows
// nothing of SQL and nothing of the pool.

package livepool

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
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
	tcpUserTimeout    = 11 * time.Second
)

var keepAlive = net.KeepAliveConfig{
	Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
}

// dialNetwork is livepool's own dialer.
var dialNetwork dialFunc = (&net.Dialer{
	KeepAliveConfig: keepAlive,
	Control: func(network, _ string, c syscall.RawConn) error {
		_ = setUserTimeout(network, c, tcpUserTimeout) // a kernel without it has keep-alive
		return nil
	},
}).DialContext

// dialedKey is under what a dial in progress finds where to leave its wire.
type dialedKey struct{}

// wiretap returns dial, or livepool's own dialer for nil, with the connection
// it makes wrapped in a *wire, which it also leaves where the context says. A TCP
// connection gets livepool's socket options, whoever has dialled it.
func wiretap(dial dialFunc) dialFunc {
	own := dial == nil
	if own {
		dial = dialNetwork
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if !keepsDeadlines(nc) {
			nc = newBounded(nc)
		}
		w := newWire(nc)
		if tcp, ok := nc.(*net.TCPConn); ok {
			w.limited = w.raw != nil
			if !own {
				if err := tcp.SetKeepAliveConfig(keepAlive); err != nil {
					nc.Close()
					return nil, err
				}
				if w.raw != nil {
					_ = setUserTimeout("tcp", w.raw, tcpUserTimeout)
				}
			}
		}
		if at, ok := ctx.Value(dialedKey{}).(*atomic.Pointer[wire]); ok {
			at.Store(w)
		}
		return w, nil
	}
}

// wire is the net.Conn below the driver. The driver reads and writes it from
// one goroutine at a time; it may be closed from any.
type wire struct {
	net.Conn
	raw  syscall.RawConn // nil: the socket cannot be looked at
	look func(fd uintptr)
	seen error // what look found

	limited bool // the kernel gives up its peer after tcpUserTimeout
	hello   handshake
	// greeting is how much of hello has come, for those who do not read it.
	greeting atomic.Int32
	made     time.Time
	login    time.Time // when the client began to log in, until that is answered
	// quickest is the shorter of what its greeting and the first answer of the
	// login took: either may be slow for reasons of its own.
	quickest time.Duration
	several  bool // the client may send several statements at a time

	reads     atomic.Uint64         // twice the number of reads, and one more while one is waiting
	asked     atomic.Uint64         // bytes written since the last read
	condemned atomic.Pointer[error] // why its reply will not come

	written uint64 // bytes, ever
	packet  int    // bytes of the packet that is being written in pieces, so far; 0 for none
	largest int    // bytes of the largest packet that the server reads, 0 if it is not known
	over    int    // bytes of the last packet that was larger than that
	overAt  uint64 // and what written was after it
	broken  error  // the first I/O error: what ended the connection
	closed  atomic.Bool
	until   time.Time     // no deadline is later, unless it is zero
	bound   time.Duration // from which that was counted
	// worksOn says, when that has come, whether the server is seen to work on what it
	// was sent. nil where it cannot be asked. getAcquainted sets it.
	worksOn func() bool
}

func newWire(nc net.Conn) *wire {
	w := &wire{Conn: nc, made: time.Now()}
	if sc, ok := nc.(syscall.Conn); ok && canPeek {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw = raw
			// Made once, so that a look allocates nothing.
			w.look = func(fd uintptr) { w.seen = peekSocket(fd) }
		}
	}
	return w
}

// unhurried lets the peer of a limited wire take as long as it likes, until the function that it
// returns is called. The kernel counts a peer that is there but takes no more
// bytes as silent too, which is what a server does that waits for a lock in the
// middle of LOAD DATA LOCAL.
func (w *wire) unhurried() (hurry func()) {
	_ = setUserTimeout("tcp", w.raw, 0)
	return func() { _ = setUserTimeout("tcp", w.raw, tcpUserTimeout) }
}

// SyscallConn forwards the socket; without it whoever else looks at the
// connection would silently see nothing.
func (w *wire) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := w.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

func (w *wire) Read(b []byte) (int, error) {
	w.reads.Add(1)
	n, err := w.Conn.Read(b)
	if err != nil && w.limitReached(err) {
		n, err = w.readOn(b)
	}
	if w.reads.Add(1)&isCondemned != 0 {
		n, err = 0, w.sentence()
	}
	w.asked.Store(0)
	if !w.hello.done || !w.login.IsZero() {
		w.hears(b[:n])
	}
	if err != nil {
		w.breaks(err)
	}
	return n, err
}

// What of the server's greeting has come.
const (
	unheard int32 = iota
	heard
	greeted
)

// hears reads the beginning of what the server says, and how quick it is.
func (w *wire) hears(b []byte) {
	if w.hello.done {
		w.quickest = min(w.quickest, time.Since(w.login))
		w.login = time.Time{}
		return
	}
	w.hello.read(b)
	w.quickest = time.Since(w.made)
	switch {
	case w.hello.done:
		w.greeting.Store(greeted)
	case len(b) > 0:
		w.greeting.Store(heard)
	}
}

func (w *wire) Write(b []byte) (int, error) {
	if w.written == 0 {
		w.several, w.login = asksForSeveral(b), time.Now()
	}
	n, err := w.Conn.Write(b)
	w.written += uint64(n)
	w.asked.Add(uint64(n))
	if w.largest > 0 && (len(b) > w.largest || w.packet > 0 || len(b) >= largestPiece) {
		w.weigh(b)
	}
	if err != nil {
		w.breaks(err)
	}
	return n, err
}

// largestPiece is what one header counts: a larger packet has several.
const largestPiece = 1<<24 - 1

// weigh notes a packet that is larger than the server takes. The driver writes
// each piece at once, with its header. What is encrypted or compressed looks
// otherwise, and is not counted.
func (w *wire) weigh(b []byte) {
	size := -1
	if len(b) >= packetHeader {
		size = int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	}
	if size != len(b)-packetHeader {
		w.packet = 0
		return
	}
	w.packet += size
	if w.packet > w.largest {
		w.over, w.overAt = w.packet, w.written
	}
	if size < largestPiece {
		w.packet = 0
	}
}

// asksForSeveral says whether a client's first packet, which begins with its
// capabilities, has the server take several statements at a time (MySQL source
// documentation, Protocol::HandshakeResponse41, Protocol::SSLRequest).
func asksForSeveral(login []byte) bool {
	const header, multiStatements = 4, 1 << 16
	return len(login) >= header+4 && binary.LittleEndian.Uint32(login[header:])&multiStatements != 0
}

// isCondemned marks the count of reads of a connection that is condemned.
const isCondemned = 1 << 63

// condemn ends a connection under the reader who waits for its reply, if it
// still waits in that read. before is called before it learns of it.
func (w *wire) condemn(read uint64, why error, before func()) bool {
	if !w.reads.CompareAndSwap(read, read|isCondemned) {
		return false
	}
	before()
	w.condemned.Store(&why)
	w.Conn.Close()
	return true
}

// sentence is why the connection is condemned. It comes an instant after the
// mark.
func (w *wire) sentence() error {
	for {
		if why := w.condemned.Load(); why != nil {
			return *why
		}
		runtime.Gosched()
	}
}

// Close closes the connection. The driver does so from a goroutine of its own
// when a context ends. A server that has not even accepted it yet is not to find
// it later, and count it against this host: it is told by a reset.
func (w *wire) Close() error {
	w.closed.Store(true)
	if w.condemned.Load() != nil {
		return nil // it is closed
	}
	if tcp, ok := w.Conn.(*net.TCPConn); ok && w.greeting.Load() == unheard {
		_ = tcp.SetLinger(0)
	}
	return w.Conn.Close()
}

// limitReached says whether an error is the end of the limit, and not of another
// deadline, and the server can be asked what it does.
func (w *wire) limitReached(err error) bool {
	return w.worksOn != nil && !w.until.IsZero() && errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(w.until)
}

// lastChance is for what has come while the server was asked.
const lastChance = 10 * time.Millisecond

// readOn goes on with a read whose limit is reached, as long as the server is seen
// to work on what it was sent: it may be kept from finishing a COMMIT by a backup,
// or by a replica that does not acknowledge.
func (w *wire) readOn(b []byte) (n int, err error) {
	for works := true; works; {
		more := lastChance
		if works = w.worksOn(); works {
			more = w.bound
		}
		w.until = time.Now().Add(more)
		_ = w.Conn.SetReadDeadline(w.until)
		if n, err = w.Conn.Read(b); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return n, err
}

// limit bounds all that is read and written until unlimit, whatever deadlines
// the driver sets meanwhile.
func (w *wire) limit(d time.Duration) {
	if w == nil {
		return
	}
	w.until, w.bound = time.Now().Add(d), d
	_ = w.Conn.SetDeadline(w.until)
}

func (w *wire) unlimit() {
	if w == nil {
		return
	}
	w.until = time.Time{}
	_ = w.Conn.SetDeadline(time.Time{})
}

// SetReadDeadline sets the deadline within the limit; a zero t is none.
func (w *wire) SetReadDeadline(t time.Time) error { return w.Conn.SetReadDeadline(w.within(t)) }

// SetWriteDeadline sets the deadline within the limit; a zero t is none.
func (w *wire) SetWriteDeadline(t time.Time) error { return w.Conn.SetWriteDeadline(w.within(t)) }

// SetDeadline sets both.
func (w *wire) SetDeadline(t time.Time) error { return w.Conn.SetDeadline(w.within(t)) }

func (w *wire) within(t time.Time) time.Time {
	if w.until.IsZero() || !t.IsZero() && t.Before(w.until) {
		return t
	}
	return w.until
}

func (w *wire) breaks(err error) {
	if w.broken == nil && !w.closed.Load() { // what follows this side's own close says nothing
		w.broken = err
	}
}

// errUnasked is bytes on an idle connection: a server's last words, most often.
var errUnasked error = unaskedBytes{}

type unaskedBytes struct{}

func (unaskedBytes) Error() string {
	return "the server sent something unasked, as it does before it closes a connection"
}
func (unaskedBytes) class() Class { return notSent }

// peek looks at the idle socket without a round trip: io.EOF for a FIN, the
// socket's error for an RST, errUnasked for bytes that nobody asked for. It
// takes no byte away, and it minds no deadline: an old read deadline says
// nothing of a connection's health.
func (w *wire) peek() error {
	if w.raw == nil {
		return nil
	}
	if err := w.raw.Control(w.look); err != nil {
		return err
	}
	return w.seen
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
	threadID uint32 // id, once all of it has come; a part of an id is another's
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
				h.threadID = h.id
			}
		}
		if h.done {
			return
		}
	}
}

// loss is how the other end was lost.
type loss int

const (
	notLost    loss = iota // closed by this side
	hungUp                 // FIN, RST, or a deadline of the caller's own
	wentSilent             // nothing came back in time
)

// howLost says what an error of the socket means for the other connections. A
// deadline is not silence here: the driver's ReadTimeout ends statements that
// are only slow.
func howLost(err error) loss {
	switch {
	case err == nil, errors.Is(err, net.ErrClosed), errors.Is(err, driver.ErrBadConn),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return notLost
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return wentSilent // of an established connection a kernel that gave it up says any of these
	default:
		return hungUp
	}
}
