package wire

import (
	"strings"
	"syscall"
	"time"
)

// tcpUserTimeoutOption is TCP_USER_TIMEOUT of tcp(7), which package syscall
// does not name on every architecture.
const tcpUserTimeoutOption = 18

// setUserTimeout has the kernel give up the connection when data, or a keep-alive
// probe, stays unacknowledged for d; 0 means the kernel's default.
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
