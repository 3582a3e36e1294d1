//go:build unix && !aix

package wire

import (
	"io"
	"syscall"
)

// canPeek: a socket can be peeked at.
const canPeek = true

// peekSocket looks at the next byte without waiting for it and without consuming it.
func peekSocket(fd uintptr) error {
	var b [1]byte
	for {
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN || err == syscall.EWOULDBLOCK:
			return nil
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			return ErrUnsolicited
		}
	}
}
