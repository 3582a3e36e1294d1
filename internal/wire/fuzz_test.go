package wire

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// cutConn returns what a server sent in pieces.
type cutConn struct {
	net.Conn
	rest  []byte
	sizes []byte // of the pieces, repeated
	reads int
}

func (c *cutConn) Read(b []byte) (int, error) {
	c.reads++
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := len(c.rest)
	if len(c.sizes) > 0 {
		n = int(c.sizes[c.reads%len(c.sizes)])
	}
	n = copy(b[:min(n, len(b))], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// threadIDOf reads the thread id from a whole packet.
func threadIDOf(b []byte) (id uint32) {
	if len(b) < 5 || b[4] != 10 {
		return 0
	}
	version, rest, ended := bytes.Cut(b[5:], []byte{0})
	if !ended || 4+1+len(version)+1 > maxServerVersion || len(rest) < 4 {
		return 0
	}
	return uint32(rest[0]) | uint32(rest[1])<<8 | uint32(rest[2])<<16 | uint32(rest[3])<<24
}

func FuzzHandshake(f *testing.F) {
	f.Add(greetingPacket("9.7.0", 42), uint32(42), []byte{3})
	f.Add(greetingPacket("5.5.5-10.11.6-MariaDB-0+deb12u1", 1<<31), uint32(1<<31), []byte{4, 1, 200})
	f.Add(append([]byte{23, 0, 0, 0, 0xff, 0x10, 0x04}, "Too many connections"...), uint32(0), []byte{0, 1})
	f.Add([]byte("SSH-2.0-OpenSSH_9.2\r\n"), uint32(0), []byte{})
	f.Add(greetingPacket("9.7.0", 0x01020304)[:13], uint32(0), []byte{})
	f.Add(append([]byte{0, 0, 0, 0, 10}, strings.Repeat("9", 1100)...), uint32(1), []byte{255})
	f.Fuzz(func(t *testing.T, sent []byte, id uint32, sizes []byte) {
		if !slices.ContainsFunc(sizes, func(n byte) bool { return n > 0 }) {
			sizes = nil
		}
		// passes has the driver read everything, and returns the Conn below it.
		passes := func(sent, sizes []byte) *Conn {
			c := &cutConn{rest: sent, sizes: sizes}
			w := Wrap(c)
			var got []byte
			b := make([]byte, 300)
			for reads := 1; ; reads++ {
				for i := range b {
					b[i] = 0xa5
				}
				n, err := w.Read(b)
				got = append(got, b[:n]...)
				if c.reads != reads {
					t.Fatalf("%q: %d reads of the socket for %d of the driver's", sent, c.reads, reads)
				}
				if rest := b[n:]; len(rest) != bytes.Count(rest, []byte{0xa5}) {
					t.Fatalf("%q: written beyond what was read", sent)
				}
				if err != nil {
					if err != io.EOF {
						t.Fatalf("%q: %v", sent, err)
					}
					break
				}
			}
			if !bytes.Equal(got, sent) {
				t.Errorf("the server sent %q, the driver reads %q", sent, got)
			}
			return w
		}

		cut, whole := passes(sent, sizes), passes(sent, nil)
		if cut.Handshake != whole.Handshake {
			t.Errorf("%q: in pieces %+v, otherwise %+v", sent, cut.Handshake, whole.Handshake)
		}
		// An endless or another packet has no thread id, and half of an id is none.
		if want := threadIDOf(sent); cut.Handshake.ThreadID != want {
			t.Errorf("%q: thread id %d, want %d", sent, cut.Handshake.ThreadID, want)
		}
		if h := cut.Handshake; !h.done && (h.ThreadID != 0 || len(sent) > 1100) {
			t.Errorf("%q: %+v", sent, h)
		}

		// A greeting always gives its id, whatever the version says.
		version := strings.ReplaceAll(string(sent[:min(len(sent), 1000)]), "\x00", "")
		if h := passes(greetingPacket(version, id), sizes).Handshake; !h.done || h.ThreadID != id {
			t.Errorf("%q: thread id %d, want %d, done %v", version, h.ThreadID, id, h.done)
		}
	})
}
