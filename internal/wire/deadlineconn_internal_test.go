package wire

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

type wedgedConn struct {
	net.Conn
	end chan struct{}
}

func (c *wedgedConn) Read([]byte) (int, error)  { <-c.end; return 0, net.ErrClosed }
func (c *wedgedConn) Write([]byte) (int, error) { <-c.end; return 0, net.ErrClosed }
func (c *wedgedConn) Close() error              { return nil }

// A chunk may still arrive: a COMMIT in it must not count as never sent.
func TestAPieceThatWasGivenUpCountsAsWritten(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	c := newDeadlineConn(&wedgedConn{end: end})
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := c.Write(make([]byte, 100)); n != 100 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes written, %v, want 100 and the deadline", n, err)
	}
}
