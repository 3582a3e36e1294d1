package livepool

import (
	"strings"
	"syscall"
)

// tcpUserTimeoutOption is TCP_USER_TIMEOUT of tcp(7), which package syscall
// does not name on every architecture.
const tcpUserTimeoutOption = 18

// setUserTimeout makes the kernel give up data, or a keep-alive probe, that
// stays unacknowledged for tcpUserTimeout.
func setUserTimeout(network string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var set error
	err := c.Control(func(fd uintptr) {
		set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeoutOption, int(tcpUserTimeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return set
}
