package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

func soon() time.Time { return time.Now().Add(10 * time.Second) }

var (
	okPong   = []byte{7, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0}
	killed   = append([]byte{28, 0, 0, 1, 0xff, 0x87, 0x07, '#', '7', '0', '1', '0', '0'}, "Connection was kill"...)
	idledOut = append([]byte{12, 0, 0, 0, 0xff, 0xbf, 0x0f, '#', 'H', 'Y', '0', '0', '0'}, "bye"...)
)

func TestPong(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer []byte
		want   error
	}{
		{"OK", okPong, nil},
		{"a server's error", killed, &mysql.MySQLError{Number: 1927}},
		{"OK, and an error that the server sent unsolicited", append(bytes.Clone(okPong), idledOut...), ErrUnsolicited},
		{"something else", []byte{1, 0, 0, 1, 0x42}, mysql.ErrMalformPkt},
		{"a short error", []byte{2, 0, 0, 1, 0xff, 1}, mysql.ErrMalformPkt},
		{"an empty packet", []byte{0, 0, 0, 1}, mysql.ErrMalformPkt},
		{"a packet that is far too large, and not whole", bytes.Repeat([]byte{0xee}, 2*maxPong), mysql.ErrMalformPkt},
	} {
		for _, size := range []int{1, 2, 3, 5, 8, len(tt.answer)} { // however it is cut
			w, server := tcpPair(t)
			if err := w.SendPing(soon()); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(server, make([]byte, len(comPing))); err != nil {
				t.Fatal(err)
			}
			go func() {
				for rest := tt.answer; len(rest) > 0; {
					n := min(size, len(rest))
					server.Write(rest[:n])
					rest = rest[n:]
					if size, ok := packetSize(tt.answer); len(rest) > 0 && (!ok || len(tt.answer)-len(rest) < packetHeader+size) {
						time.Sleep(time.Millisecond)
					}
				}
			}()
			answered, err := w.ReadPong(t.Context(), soon())
			isWant := errors.Is(err, tt.want)
			if number := new(mysql.MySQLError); errors.As(tt.want, &number) {
				got := new(mysql.MySQLError)
				isWant = errors.As(err, &got) && got.Number == number.Number && string(got.SQLState[:]) == "70100" && got.Message == "Connection was kill"
			}
			if tt.want == ErrUnsolicited && size < len(tt.answer) {
				isWant = isWant || err == nil // what comes later is found by the next check of the socket
			}
			if !answered || !isWant {
				t.Errorf("%s in pieces of %d: answered %v, %v, want %v", tt.name, size, answered, err, tt.want)
			}
		}
	}
}

// An answer that comes after the deadline, or in part before it, is not lost.
func TestPongAfterItsDeadline(t *testing.T) {
	w, server := tcpPair(t)
	if err := w.SendPing(soon()); err != nil {
		t.Fatal(err)
	}
	for _, piece := range [][]byte{nil, okPong[:2], okPong[2:6]} {
		if _, err := server.Write(piece); err != nil {
			t.Fatal(err)
		}
		if answered, err := w.ReadPong(t.Context(), time.Now().Add(20*time.Millisecond)); answered || err != nil {
			t.Fatalf("answered %v, %v before the answer had come", answered, err)
		}
	}
	if _, err := server.Write(okPong[6:]); err != nil {
		t.Fatal(err)
	}
	if answered, err := w.ReadPong(context.Background(), time.Time{}); !answered || err != nil || w.IOErr != nil {
		t.Errorf("answered %v, %v, %v", answered, err, w.IOErr)
	}
}

func TestPongWhoseCallerGivesUp(t *testing.T) {
	w, server := tcpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	if err := w.SendPing(soon()); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if answered, err := w.ReadPong(ctx, soon()); answered || err != nil {
		t.Errorf("answered %v, %v, want neither", answered, err)
	}
	w.interruptPong() // late
	if _, err := server.Write(okPong); err != nil {
		t.Fatal(err)
	}
	if answered, err := w.ReadPong(context.Background(), time.Time{}); !answered || err != nil {
		t.Errorf("for the next: answered %v, %v", answered, err)
	}
}

func TestPongOfAConnectionThatIsClosed(t *testing.T) {
	w, server := tcpPair(t)
	if err := w.SendPing(soon()); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if answered, err := w.ReadPong(t.Context(), soon()); !answered || err == nil || w.IOErr == nil {
		t.Errorf("answered %v, %v, want the loss", answered, err)
	}
}

// The driver sets a deadline before it writes, and leaves it on the connection.
func TestPingAfterTheDriversWriteTimeout(t *testing.T) {
	w, server := tcpPair(t)
	w.SetDeadline(time.Now().Add(-time.Hour))
	if err := w.SendPing(soon()); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write(okPong); err != nil {
		t.Fatal(err)
	}
	if answered, err := w.ReadPong(t.Context(), soon()); !answered || err != nil {
		t.Errorf("answered %v, %v", answered, err)
	}
	time.AfterFunc(20*time.Millisecond, func() { server.Write([]byte("x")) })
	if err := <-read(w); err != nil {
		t.Errorf("a deadline of the ping's is left: %v", err)
	}
}
