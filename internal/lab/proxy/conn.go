package proxy

// This file is one connection: two pumps that read packets from one side and write them to
// the other, and the faults that hit it. Which fault and when, is decided elsewhere.

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
)

type conn struct {
	p      *Proxy
	client *net.TCPConn
	turn   int       // among the upstreams
	life   *Lifetime // guarded by p.mu
	// loggedIn: its login is over, or it is; guarded by p.mu.
	loggedIn bool

	mu      sync.Mutex
	gate    *sync.Cond // waited on while stalled; told of every change below
	server  net.Conn   // nil until dialled
	stalled bool
	ended   bool
	severed bool // the server's side is closed and the client must not know
	login   login
	raw     bool // no longer MySQL's packets: TLS or compression
	reply   *Cut // waits for the server's next packet
}

// login is how far the connection phase has come. Commands begin when it is over.
type login struct{ answered, compressed, over bool }

func (c *conn) stall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalled = true
}

func (c *conn) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalled = false
	c.gate.Broadcast()
}

// end applies a fault that closes something.
func (c *conn) end(how Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	if how == KillServerSide {
		c.severed = true
		c.server.Close()
		return
	}
	c.ended = true
	c.gate.Broadcast()
	closeAs(c.client, how)
	if c.server != nil {
		closeAs(c.server, how)
	}
}

// closeAs closes a connection so that its other end sees an end of file or a reset.
func closeAs(nc net.Conn, how Fault) {
	if tcp, ok := nc.(*net.TCPConn); ok && how == RST {
		tcp.SetLinger(0)
	} else if ok {
		tcp.CloseWrite() // Close alone would send a reset instead if bytes are unread
	}
	nc.Close()
}

// open waits while the connection is stalled and reports whether it is still to be used.
func (c *conn) open() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.stalled && !c.ended {
		c.gate.Wait()
	}
	return !c.ended
}

// serve is the connection's life.
func (c *conn) serve() {
	defer c.p.forget(c)
	defer c.end(FIN)
	if !c.open() { // a hanging connection waits here
		return
	}
	server, err := c.dial()
	if err != nil {
		c.end(RST) // the nearest to a refusal that is left to us
		return
	}
	c.mu.Lock()
	c.server = server
	ended := c.ended
	c.mu.Unlock()
	if ended {
		server.Close()
		return
	}
	var down sync.WaitGroup
	down.Go(func() { c.pump(server, c.client, false) })
	c.pump(c.client, server, true)
	down.Wait()
}

func (c *conn) dial() (net.Conn, error) {
	c.p.mu.Lock()
	var upstream string // and stays empty, which is an error, if there is none
	if n := len(c.p.upstreams); n > 0 {
		upstream = c.p.upstreams[c.turn%n]
	}
	c.p.counts.Dials++
	c.p.mu.Unlock()
	network := "tcp"
	if strings.HasPrefix(upstream, "/") {
		network = "unix"
	}
	server, err := new(net.Dialer).DialContext(c.p.ctx, network, upstream)
	if err != nil || !c.p.header {
		return server, err
	}
	from, to := c.client.RemoteAddr().(*net.TCPAddr), c.client.LocalAddr().(*net.TCPAddr)
	_, err = fmt.Fprintf(server, "PROXY TCP4 %s %s %d %d\r\n", from.IP, to.IP, from.Port, to.Port)
	return server, err
}

// pump passes one direction on until it ends, and then ends the connection the way that this
// direction ended.
func (c *conn) pump(from, to net.Conn, toServer bool) {
	r, w := bufio.NewReader(from), bufio.NewWriter(to)
	err := c.pass(r, w, toServer)
	if !c.open() { // what ended behind a stall is not seen before Heal
		return
	}
	w.Flush()
	c.mu.Lock()
	severed := c.severed
	c.mu.Unlock()
	if severed {
		if toServer {
			io.Copy(io.Discard, r) // until the client gives up
			c.end(FIN)
		}
		return
	}
	if errors.Is(err, syscall.ECONNRESET) {
		c.end(RST)
	} else {
		c.end(FIN)
	}
}

// pass passes packets on until there is an error.
func (c *conn) pass(r *bufio.Reader, w *bufio.Writer, toServer bool) error {
	for greeting := !toServer; ; greeting = false {
		packet, err := c.read(r)
		if greeting && c.p.threadID != nil {
			renumber(packet, c.p.threadID)
		}
		if err == nil && c.watch(packet, toServer) {
			return errCut
		}
		if !c.open() {
			return net.ErrClosed
		}
		if !c.dropped(toServer) {
			w.Write(packet) // an error comes back with Flush
		}
		if err != nil {
			return err
		}
		if r.Buffered() == 0 {
			c.p.delay(toServer)
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
}

// errCut ends a pump whose connection a Cut has ended.
var errCut = errors.New("cut")

// read returns the next packet with its header; when an error comes in between, what there is
// of it; of a raw connection, what has come.
func (c *conn) read(r *bufio.Reader) ([]byte, error) {
	// Wait for a first byte before asking what it is the first byte of: the server's side waits
	// here while the client's turns the connection raw.
	if b, err := r.Peek(1); err != nil {
		return b, err
	}
	c.mu.Lock()
	raw := c.raw
	c.mu.Unlock()
	size := r.Buffered()
	if !raw {
		header, err := r.Peek(headerSize)
		if err != nil {
			return header, err
		}
		size = headerSize + int(header[0]) + int(header[1])<<8 + int(header[2])<<16
	}
	packet := make([]byte, size)
	n, err := io.ReadFull(r, packet)
	return packet[:n], err
}

// A packet begins with the length of its payload in three bytes and a sequence number. One of
// 16 MB or more goes on in another packet with the next number.
const headerSize = 4

// watch looks at a packet before it is passed on. It reports whether a cut has ended the
// connection instead.
func (c *conn) watch(packet []byte, toServer bool) bool {
	cut := c.meet(packet, toServer)
	if cut == nil {
		return false
	}
	if cut.how == Stall {
		c.stall() // and this packet is the first to wait
		close(cut.fired)
		return false
	}
	close(cut.fired) // first, so that it is known before the client can notice
	c.end(cut.how)
	return true
}

// meet follows the connection's state and returns the cut that is to happen now, or nil.
func (c *conn) meet(packet []byte, toServer bool) (now *Cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.raw || len(packet) <= headerSize {
		return nil
	}
	payload := packet[headerSize:]
	switch {
	case !c.login.over:
		c.followLogin(payload, toServer)
	case !toServer:
		now, c.reply = c.reply, nil
	case packet[3] == 0: // otherwise it is more of a command that we have seen
		now = c.p.command(payload[0], payload[1:])
		if now != nil && now.after {
			now, c.reply = nil, now
		}
	}
	return now
}

// followLogin looks for the end of the connection phase: the first OK of the server after the
// client's answer to its greeting. Between the two are rounds of authentication.
func (c *conn) followLogin(payload []byte, toServer bool) {
	const (
		compress   = 1 << 5
		ssl        = 1 << 11
		zstd       = 1 << 26
		sslRequest = 32 // its length: the answer up to the user's name, which then comes encrypted
	)
	switch {
	case toServer && !c.login.answered && len(payload) >= 4:
		flags := binary.LittleEndian.Uint32(payload)
		c.login.answered = true
		c.login.compressed = flags&(compress|zstd) != 0
		c.raw = flags&ssl != 0 && len(payload) == sslRequest
	case !toServer && c.login.answered && payload[0] == 0:
		c.login.over = true
		c.raw = c.login.compressed
		c.p.mu.Lock()
		c.p.loginEnds(c)
		c.p.mu.Unlock()
	}
}

// renumber changes the thread id in the server's greeting: protocol version 10, the server's
// version up to a NUL, the id. Where a server greets with an error there is none.
func renumber(packet []byte, id func(uint32) uint32) {
	if len(packet) <= headerSize || packet[headerSize] != 10 {
		return
	}
	_, rest, _ := bytes.Cut(packet[headerSize+1:], []byte{0})
	if len(rest) >= 4 {
		binary.LittleEndian.PutUint32(rest, id(binary.LittleEndian.Uint32(rest)))
	}
}

// dropped reports whether bytes in that direction are discarded now.
func (c *conn) dropped(toServer bool) bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return toServer && c.p.toServer || !toServer && c.p.toClient
}
