package wire

import (
	"strings"
	"syscall"
	"time"
)

// tcpUserTimeoutOption is TCP_USER_TIMEOUT of tcp(7), which package syscall
// does not name on every architecture.
const tcpUserTimeoutOption = 18

// setUserTimeout makes the kernel give up data, or a keep-alive probe, that
// stays unacknowledged for so long; 0 leaves it to the kernel's own patience.
func setUserTimeout(network string, c syscall.RawConn, d time.Duration) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var set error
	err := c.Control(func(fd uintptr) {
		set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeoutOption, int(d.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return set
}
