package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// tcpPair returns both ends of a TCP connection, the client's wrapped as the driver gets it.
func tcpPair(t *testing.T) (w *Conn, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	var at atomic.Pointer[Conn]
	ctx := context.WithValue(t.Context(), ContextKey{}, &at)
	nc, err := WrapDialer(nil)(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w = at.Load()
	if nc != net.Conn(w) {
		t.Fatalf("the dial stored %v and returned %v", w, nc)
	}
	server = (<-accepted).(*net.TCPConn)
	t.Cleanup(func() { nc.Close(); server.Close() })
	return w, server
}

func TestPeekSeesWhatTheServerDid(t *testing.T) {
	if !canPeek {
		t.Skip("a socket cannot be peeked at on this system")
	}
	for _, tt := range []struct {
		name string
		do   func(server *net.TCPConn) error
		want error
	}{
		{"nothing", func(*net.TCPConn) error { return nil }, nil},
		{"FIN", (*net.TCPConn).Close, io.EOF},
		{"RST", func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) }, syscall.ECONNRESET},
		{"an unsolicited error", func(c *net.TCPConn) error { _, err := c.Write([]byte("bye")); return err }, ErrUnsolicited},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, server := tcpPair(t)
			// The deadline of an earlier statement must not matter.
			w.SetDeadline(time.Now().Add(-time.Hour))
			if err := tt.do(server); err != nil {
				t.Fatal(err)
			}
			var err error
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && err == nil && tt.want != nil; {
				err = w.Peek()
			}
			if again := w.Peek(); !errors.Is(err, tt.want) && !errors.Is(again, tt.want) {
				t.Errorf("got %v, then %v, want %v", err, again, tt.want)
			}
		})
	}
}

func TestPeekTakesNothingAway(t *testing.T) {
	w, server := tcpPair(t)
	if _, err := server.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && w.Peek() == nil; {
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(w, b); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v after Peek", b, err)
	}
}

func TestPeekAllocatesNothing(t *testing.T) {
	w, _ := tcpPair(t)
	if n := testing.AllocsPerRun(100, func() {
		if err := w.Peek(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestPeekOfAClosedConnection(t *testing.T) {
	w, _ := tcpPair(t)
	w.Close()
	if err := w.Peek(); canPeek && err == nil {
		t.Error("a closed connection looks alive")
	}
}

func TestWireWithoutASocketSaysSo(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	w := Wrap(a)
	defer w.Close()
	if w.Raw != nil {
		t.Error("a pipe has a socket?")
	}
	if _, err := w.SyscallConn(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SyscallConn: %v", err)
	}
	if err := w.Peek(); err != nil {
		t.Errorf("Peek without a socket: %v, want nil", err)
	}
}

// greetingPacket is a server's first packet.
func greetingPacket(version string, id uint32) []byte {
	b := []byte{0, 0, 0, 0, protocolVersion}
	b = append(append(b, version...), 0)
	b = append(b, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	return append(b, "salt and the rest"...)
}

func TestHandshakeGivesTheThreadID(t *testing.T) {
	const id = 0x81020304
	for _, version := range []string{"9.7.0", "5.5.5-10.11.6-MariaDB-0+deb12u1", ""} {
		b := greetingPacket(version, id)
		for size := 1; size <= len(b); size++ { // however it is cut
			var h handshake
			for rest := b; len(rest) > 0 && !h.done; {
				n := min(size, len(rest))
				h.read(rest[:n])
				rest = rest[n:]
			}
			if !h.done || h.ThreadID != id {
				t.Errorf("%q in pieces of %d: thread id %#x, done %v", version, size, h.ThreadID, h.done)
			}
		}
	}
}

func TestHandshakeThatIsNoneGivesNothing(t *testing.T) {
	for name, b := range map[string][]byte{
		"an error packet (too many connections)": append([]byte{23, 0, 0, 0, 0xff, 0x10, 0x04}, "Too many connections"...),
		"another protocol":                       []byte("SSH-2.0-OpenSSH_9.2\r\n"),
		"a version without end":                  append([]byte{0, 0, 0, 0, protocolVersion}, strings.Repeat("9", 1<<12)...),
	} {
		var h handshake
		h.read(b)
		if !h.done || h.ThreadID != 0 {
			t.Errorf("%s: thread id %d, done %v", name, h.ThreadID, h.done)
		}
	}
}

// A part of an id is the id of another thread.
func TestHandshakeThatBreaksOffGivesNothing(t *testing.T) {
	b := greetingPacket("9.7.0", 0x01020304)
	for n := range bytes.IndexByte(b[packetHeader:], 0) + packetHeader + 5 {
		var h handshake
		h.read(b[:n])
		if h.done || h.ThreadID != 0 {
			t.Errorf("after %d bytes: thread id %#x, done %v", n, h.ThreadID, h.done)
		}
	}
}

func TestWhatEndedAConnection(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Loss
	}{
		{io.EOF, HungUp},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, HungUp},
		{&net.OpError{Op: "read", Err: syscall.ETIMEDOUT}, WentSilent},
		{&net.OpError{Op: "read", Err: syscall.EHOSTUNREACH}, WentSilent},
		{syscall.ETIMEDOUT, WentSilent},
		{&net.OpError{Op: "read", Err: net.ErrClosed}, notLost},
	} {
		if got := LossOf(tt.err); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
	}
}

// What waits is aborted, a read as well as a large write that the peer does not take, and nothing
// else is.
func TestAbortWait(t *testing.T) {
	why := errors.New("the host was left")
	for _, tt := range []struct {
		name  string
		begin func(w *Conn) error // nil: nothing is under way
	}{
		{"a read", func(w *Conn) error { _, err := w.Read(make([]byte, 1)); return err }},
		{"a large write", func(w *Conn) error {
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		}},
		{"nothing", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _ := tcpPair(t)
			before := w.Waits()
			if tt.begin == nil {
				if w.AbortWait(why, func() {}) || w.Closed.Load() {
					t.Error("it was aborted")
				}
				return
			}
			done := make(chan error, 1)
			go func() { done <- tt.begin(w) }()
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if n := w.Waits(); n%2 == 1 && n > before && w.AbortWait(why, func() {}) {
					break
				}
				if time.Now().After(end) {
					t.Fatal("nothing waits")
				}
			}
			if w.AbortWait(why, func() { t.Error("it is aborted twice") }) {
				t.Error("it is aborted twice")
			}
			select {
			case err := <-done:
				if !errors.Is(err, why) {
					t.Errorf("%v, want %v", err, why)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it waits on")
			}
		})
	}
}
