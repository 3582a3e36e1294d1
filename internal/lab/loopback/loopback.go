// Package loopback hands out TCP listeners on 127.0.0.1. It chooses the port; what is served
// on it, or whether the port is only borrowed for a child process, is the caller's affair.
package loopback

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
)

// Ports are taken from below the range from which the kernel picks the source ports of
// outgoing connections (32768 and up on Linux). From inside it, a port whose server is down
// could be handed to somebody's outgoing connection before the server is back; and a client
// that redials the dead port could even be connected to itself.
//
// Servers have ports of their own: a proxy that took the port of a server that is down for a
// moment would lead its clients to another server, and they would work there.
const firstPort, firstServerPort, lastPort = 16384, 24576, 32767

// Listen listens on a free port of 127.0.0.1.
func Listen() (*net.TCPListener, error) { return listen(firstPort, firstServerPort-1) }

// ListenForServer is Listen on a port that is meant for a server.
func ListenForServer() (*net.TCPListener, error) { return listen(firstServerPort, lastPort) }

func listen(first, last int) (*net.TCPListener, error) {
	for {
		l, err := ListenAt(fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(last-first+1)))
		if !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
	}
}

// ListenAt listens on a host:port.
func ListenAt(addr string) (*net.TCPListener, error) {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// Port returns the port a listener listens on.
func Port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
