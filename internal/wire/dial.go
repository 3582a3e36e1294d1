package wire

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// DialFunc opens a network connection, as net.Dialer.DialContext does.
type DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// How soon the kernel gives up a peer that has vanished. MySQL sends nothing while a
// statement runs, so without keep-alive probes the client of a vanished server waits
// forever. With them it waits about this long, and a statement may still run for as
// long as it needs (tcp(7), TCP_USER_TIMEOUT).
const (
	keepAliveIdle     = 5 * time.Second
	keepAliveInterval = 2 * time.Second
	keepAliveCount    = 3
	UserTimeout       = 11 * time.Second
)

var keepAliveConfig = net.KeepAliveConfig{
	Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
}

// dialNetwork is livepool's own dialer.
var dialNetwork DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
	if at, _ := ctx.Value(AddressKey{}).(string); at != "" {
		addr = at
	}
	return dialer.DialContext(ctx, network, addr)
}

var dialer = net.Dialer{
	KeepAliveConfig: keepAliveConfig,
	Control: func(network, _ string, c syscall.RawConn) error {
		_ = setUserTimeout(network, c, UserTimeout) // where the kernel has no such option, keep-alive remains
		return nil
	},
}

// ContextKey is the context key of an *atomic.Pointer[Conn], in which a dial stores the
// Conn that it makes.
type ContextKey struct{}

// AddressKey is the context key of the address that livepool's own dialer dials, in place of the
// name that leads to it; "" for none.
type AddressKey struct{}

// WrapDialer returns dial (livepool's own dialer for nil) with each connection wrapped
// in a *Conn, which it also stores under ContextKey. A TCP connection gets livepool's
// socket options, whichever dialer made it.
func WrapDialer(dial DialFunc) DialFunc {
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
					_ = setUserTimeout("tcp", w.Raw, UserTimeout)
				}
			}
		}
		if at, ok := ctx.Value(ContextKey{}).(*atomic.Pointer[Conn]); ok {
			at.Store(w)
		}
		return w, nil
	}
}

// Conn is the net.Conn below the driver. The driver reads and writes it from one
// goroutine at a time, which is the one that uses the connection: it writes all fields
// that are not atomic. Any goroutine may close it.
type Conn struct {
	net.Conn
	Raw      syscall.RawConn // nil: the socket cannot be peeked at
	peekFunc func(fd uintptr)
	peekErr  error // what peekFunc found

	HasUserTimeout bool // the kernel gives up the peer after UserTimeout
	// Wrapped: a wrapper of the user's is around the driver, which sees each ping and the
	// callers' own contexts. It is set once, after the login.
	Wrapped   bool
	Handshake handshake
	// greetingState is how much of the handshake has come, for other goroutines; only
	// the reader writes it.
	greetingState atomic.Int32
	dialedAt      time.Time
	loginSentAt   time.Time // when the client sent its login; zero again once that was answered
	// FastestReply is how long the greeting or the first answer to the login took,
	// whichever was shorter: each of them may be slow for reasons of its own.
	FastestReply    time.Duration
	MultiStatements bool // the client may send several statements in one request
	readable        bool // neither TLS nor compression is between this and the driver

	Reads          atomic.Uint64         // twice the number of reads, plus one while a read waits; Abort sets aborted
	Replies        atomic.Uint64         // the number of reads that brought anything
	largeWrites    atomic.Uint64         // as Reads, of large writes, which may wait for the peer to take them
	BytesSinceRead atomic.Uint64         // bytes written since the last read returned
	AbortErr       atomic.Pointer[error] // why the connection was aborted: its reply will not come. Abort writes it, once

	Written     uint64 // all bytes so far
	sizeSoFar   int    // bytes so far of a packet that is written in pieces; 0 for none
	MaxPacket   int    // the largest packet that the server accepts, in bytes; 0 if it is not known
	Oversized   int    // the last packet that was larger than MaxPacket, in bytes
	OversizedAt uint64 // the value of Written after that packet
	IOErr       error  // the first I/O error: it ended the connection
	Closed      atomic.Bool
	Cut         bool          // closed by the end of a watched context
	maxDeadline time.Time     // no deadline may be later; zero: no limit
	limitPeriod time.Duration // the period that SetLimit was given
	// IsWorking asks, when the limit is reached, whether the server works on what it was
	// sent. It is nil where the server cannot be asked. It is set once, after the login.
	IsWorking func() bool

	watch watch
	pong  pong
}

// Wrap wraps nc, which is not in use yet.
func Wrap(nc net.Conn) *Conn {
	w := &Conn{Conn: nc, dialedAt: time.Now()}
	w.watch.onEnd, w.pong.interrupt = w.end, w.interruptPong
	if sc, ok := nc.(syscall.Conn); ok && canPeek {
		if raw, err := sc.SyscallConn(); err == nil {
			w.Raw = raw
			// Made once, so that Peek does not allocate.
			w.peekFunc = func(fd uintptr) { w.peekErr = peekSocket(fd) }
		}
	}
	return w
}

// WithoutUserTimeout lifts TCP_USER_TIMEOUT until the function that it returns is
// called. It needs HasUserTimeout. For the kernel a peer that accepts no more bytes is
// silent, although it is alive: a server that waits for a lock in the middle of LOAD
// DATA LOCAL accepts none.
func (w *Conn) WithoutUserTimeout() (restore func()) {
	_ = setUserTimeout("tcp", w.Raw, 0)
	return func() { _ = setUserTimeout("tcp", w.Raw, UserTimeout) }
}

// SyscallConn gives access to the socket. Without it the driver's own check of an idle
// connection would silently find every connection alive.
func (w *Conn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := w.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// readOnce reads, and counts it for the stall check, which may abort it.
func (w *Conn) readOnce(b []byte) (int, error) {
	w.Reads.Add(1)
	n, err := w.Conn.Read(b)
	if err != nil && w.isLimitError(err) {
		n, err = w.readWhileWorking(b)
	}
	if w.Reads.Add(1)&aborted != 0 {
		return 0, w.awaitAbortErr()
	}
	if n > 0 {
		w.Replies.Add(1)
	}
	return n, err
}

func (w *Conn) Read(b []byte) (int, error) {
	n, err := w.readOnce(b)
	w.BytesSinceRead.Store(0)
	if !w.Handshake.done || !w.loginSentAt.IsZero() {
		w.noteReply(b[:n])
	}
	if err != nil {
		w.noteIOError(err)
	}
	return n, err
}

func (w *Conn) Write(b []byte) (int, error) {
	if w.Written == 0 {
		w.loginSentAt = time.Now()
		w.noteLogin(b)
	}
	n, err := w.writeOnce(b)
	w.Written += uint64(n)
	w.BytesSinceRead.Add(uint64(n))
	if w.MaxPacket > 0 && (len(b) > w.MaxPacket || w.sizeSoFar > 0 || len(b) >= maxPacketPiece) {
		w.notePacketSize(b)
	}
	if err != nil {
		w.noteIOError(err)
	}
	return n, err
}

// largeWrite is a size from which on a write may fill the kernel's buffer, in bytes. A record of
// TLS is larger.
const largeWrite = 8 << 10

// writeOnce writes, and counts a large write, which may be aborted.
func (w *Conn) writeOnce(b []byte) (int, error) {
	if len(b) < largeWrite {
		return w.Conn.Write(b)
	}
	w.largeWrites.Add(1)
	n, err := w.Conn.Write(b)
	if w.largeWrites.Add(1)&aborted != 0 {
		err = w.awaitAbortErr()
	}
	return n, err
}

// maxPacketPiece is the most that one packet header can count: a larger packet is
// written in several pieces, each with a header.
const maxPacketPiece = 1<<24 - 1

// notePacketSize records a packet that is larger than the server accepts. The driver
// writes each piece, with its header, in one call. Encrypted or compressed bytes do not
// match their header, and are not counted.
func (w *Conn) notePacketSize(b []byte) {
	size, ok := packetSize(b)
	if !ok || size != len(b)-packetHeader {
		w.sizeSoFar = 0
		return
	}
	w.sizeSoFar += size
	if w.sizeSoFar > w.MaxPacket {
		w.Oversized, w.OversizedAt = w.sizeSoFar, w.Written
	}
	if size < maxPacketPiece {
		w.sizeSoFar = 0
	}
}

// aborted is the bit of Reads and largeWrites that marks an aborted connection.
const aborted = 1 << 63

// Waits is the number of reads and large writes so far, twice, plus one while one of them
// waits: they follow each other.
func (w *Conn) Waits() uint64 { return w.Reads.Load() + w.largeWrites.Load() }

// Abort closes the connection if the read with this count still waits, and says whether
// it did. before is called before that read returns.
func (w *Conn) Abort(read uint64, reason error, before func()) bool {
	return w.abort(&w.Reads, read, reason, before)
}

// AbortWait is Abort for the read or the large write that waits now, if one does.
func (w *Conn) AbortWait(reason error, before func()) bool {
	for _, counter := range []*atomic.Uint64{&w.Reads, &w.largeWrites} {
		if n := counter.Load(); n%2 == 1 && n&aborted == 0 && w.abort(counter, n, reason, before) {
			return true
		}
	}
	return false
}

func (w *Conn) abort(counter *atomic.Uint64, n uint64, reason error, before func()) bool {
	if !counter.CompareAndSwap(n, n|aborted) {
		return false
	}
	before()
	w.AbortErr.Store(&reason)
	w.Conn.Close()
	return true
}

// awaitAbortErr returns why the connection was aborted. Abort stores the error right
// after the bit, so the wait is short.
func (w *Conn) awaitAbortErr() error {
	for {
		if why := w.AbortErr.Load(); why != nil {
			return *why
		}
		runtime.Gosched()
	}
}

// Close closes the connection. It may be called by the end of a context, in a goroutine of
// its own. Before the greeting it closes by a reset: a server that accepts the
// connection only later must not count it against this host (max_connect_errors).
func (w *Conn) Close() error {
	w.Closed.Store(true)
	if w.AbortErr.Load() != nil {
		return nil // Abort has closed it
	}
	if tcp, ok := w.Conn.(*net.TCPConn); ok && w.greetingState.Load() == greetingNone {
		_ = tcp.SetLinger(0)
	}
	return w.Conn.Close()
}

// isLimitError says whether err is the end of the limit, and not of an earlier deadline,
// and the server can be asked what it does.
func (w *Conn) isLimitError(err error) bool {
	return w.IsWorking != nil && !w.maxDeadline.IsZero() && errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(w.maxDeadline)
}

// lastReadWait is the time for a last read after the server was found not to work: its
// reply may have come while it was asked.
const lastReadWait = 10 * time.Millisecond

// readWhileWorking continues a read whose limit is reached, as long as the server works
// on what it was sent: a COMMIT may have to wait for a backup, or for a replica that
// does not acknowledge.
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

// SetLimit bounds all reads and writes until ClearLimit, whatever deadlines the driver
// sets meanwhile. Without a Conn (nil) it does nothing.
func (w *Conn) SetLimit(d time.Duration) {
	if w == nil {
		return
	}
	w.maxDeadline, w.limitPeriod = time.Now().Add(d), d
	_ = w.Conn.SetDeadline(w.maxDeadline)
}

// ClearLimit ends what SetLimit began.
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

// SetDeadline sets both, within the limit; a zero t is none.
func (w *Conn) SetDeadline(t time.Time) error { return w.Conn.SetDeadline(w.clampDeadline(t)) }

// clampDeadline returns t, or the limit if that is earlier.
func (w *Conn) clampDeadline(t time.Time) time.Time {
	if w.maxDeadline.IsZero() || !t.IsZero() && t.Before(w.maxDeadline) {
		return t
	}
	return w.maxDeadline
}

// noteIOError keeps the first error of the connection. One that follows this side's own
// Close says nothing.
func (w *Conn) noteIOError(err error) {
	if w.IOErr == nil && !w.Closed.Load() {
		w.IOErr = err
	}
}

// ErrUnsolicited means that there are bytes on an idle connection: usually an error that
// the server sent before it closed the connection.
var ErrUnsolicited error = unsolicitedError{}

type unsolicitedError struct{}

func (unsolicitedError) Error() string {
	return "the server sent something unsolicited, as it does before it closes a connection"
}
func (unsolicitedError) Class() mysqlerr.Class { return mysqlerr.NotSent }

// Peek looks at the idle socket without a round trip: it returns io.EOF after a FIN, the
// socket's error after an RST, and ErrUnsolicited if there are bytes. It consumes
// nothing. It ignores deadlines: an old read deadline says nothing about the
// connection's health.
func (w *Conn) Peek() error {
	if w.Raw == nil {
		return nil
	}
	if err := w.Raw.Control(w.peekFunc); err != nil {
		return err
	}
	return w.peekErr
}

// Loss says how the other end was lost.
type Loss int

const (
	notLost    Loss = iota // closed by this side
	HungUp                 // FIN, RST, or a deadline of the caller's own
	WentSilent             // nothing came back in time
)

// LossOf says what an error of the socket means for the other connections. A deadline
// is not silence: the driver's readTimeout also ends statements that are only slow.
func LossOf(err error) Loss {
	switch {
	case err == nil, errors.Is(err, net.ErrClosed), errors.Is(err, driver.ErrBadConn), mysqlerr.CallerGaveUp(err):
		return notLost
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return WentSilent // any of these may be the error of an established connection that the kernel gave up
	default:
		return HungUp
	}
}
