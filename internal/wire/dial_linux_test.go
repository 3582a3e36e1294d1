package wire

import (
	"context"
	"net"
	"syscall"
	"testing"
)

// The options are also set on a connection that the user's dialer made.
func TestDialerSetsSocketOptions(t *testing.T) {
	t.Run("livepool's own", func(t *testing.T) {
		w, _ := tcpPair(t)
		hasSocketOptions(t, w)
	})
	t.Run("the user's", func(t *testing.T) {
		_, server := tcpPair(t)
		nc, err := WrapDialer(func(context.Context, string, string) (net.Conn, error) { return server, nil })(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		hasSocketOptions(t, nc.(*Conn))
	})
}

func hasSocketOptions(t *testing.T, w *Conn) {
	t.Helper()
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []struct {
		name               string
		level, number, set int
	}{
		{"SO_KEEPALIVE", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE, s", syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, int(keepAliveIdle.Seconds())},
		{"TCP_KEEPINTVL, s", syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, int(keepAliveInterval.Seconds())},
		{"TCP_KEEPCNT", syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, keepAliveCount},
		{"TCP_USER_TIMEOUT, ms", syscall.IPPROTO_TCP, tcpUserTimeoutOption, int(UserTimeout.Milliseconds())},
	} {
		err := raw.Control(func(fd uintptr) {
			if got, err := syscall.GetsockoptInt(int(fd), option.level, option.number); err != nil || got != option.set {
				t.Errorf("%s is %d, %v, want %d", option.name, got, err, option.set)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWithoutUserTimeoutLiftsTheLimitForAWhile(t *testing.T) {
	w, _ := tcpPair(t)
	limit := func() (ms int) {
		w.Raw.Control(func(fd uintptr) {
			ms, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeoutOption)
		})
		return ms
	}
	restore := w.WithoutUserTimeout()
	if got := limit(); got != 0 {
		t.Errorf("TCP_USER_TIMEOUT is %d ms meanwhile, want none", got)
	}
	restore()
	if got := limit(); int64(got) != UserTimeout.Milliseconds() {
		t.Errorf("TCP_USER_TIMEOUT is %d ms afterwards, want %s", got, UserTimeout)
	}
}
