package livepooltest

// This file is one connection through the proxy: two pumps that pass packets on.
//
// The protocol is half duplex: a client waits for the answer to its command before it sends
// the next. So a fault needs no more than to replace the command, by one of which it is
// known that it has an answer of one packet, and then that answer.

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
)

// What the proxy must know of the protocol (MySQL internals, Client/Server Protocol). A
// packet is the length of its payload in three bytes, a sequence number, which is 0 for a
// command, and the payload, which begins with the command.
const (
	comQuery, comPing, comPrepare, comExecute = 0x03, 0x0e, 0x16, 0x17 // commands
	isOK, isError                             = 0x00, 0xff             // answers

	headerSize = 4
	maxPayload = 1<<24 - 1 // one of that length goes on in another packet

	clientCompress, clientTLS, clientZstd = 1 << 5, 1 << 11, 1 << 26 // capabilities that the client asks for
)

type connection struct {
	f      *Faults
	client net.Conn
	once   sync.Once     // closes ended
	ended  chan struct{} // closed once it is lost

	mu         sync.Mutex // guards what follows
	server     net.Conn   // nil until dialled
	hit        *fault     // that replaces the next answer
	preparing  string     // whose number is in the next answer
	statements map[uint32]string
}

// serve is the connection's life.
func (c *connection) serve(upstream string) {
	defer c.lose()
	dialer := net.Dialer{Timeout: 10 * time.Second}
	server, err := dialer.DialContext(context.Background(), "tcp", upstream)
	if err != nil {
		c.f.t.Logf("livepooltest: the proxy cannot reach the server: %v", err)
		return
	}
	c.mu.Lock()
	c.server = server
	c.mu.Unlock()
	var down sync.WaitGroup
	down.Go(func() { c.pump(server, c.client, c.fromServer) })
	c.pump(c.client, server, c.fromClient)
	down.Wait()
}

// lose closes both sides. It is called by each pump at its end, too, so that a server that
// was dialled meanwhile is not left.
func (c *connection) lose() {
	c.once.Do(func() { close(c.ended); c.f.forget(c) })
	_ = c.client.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		_ = c.server.Close()
	}
}

// pump passes on what look returns for each packet, until that is nothing.
func (c *connection) pump(from io.Reader, to io.Writer, look func(packet []byte) []byte) {
	defer c.lose()
	r := bufio.NewReader(from)
	for {
		packet, err := readPacket(r)
		if err != nil {
			return
		}
		if packet = look(packet); packet == nil {
			return
		}
		if _, err := to.Write(packet); err != nil {
			return
		}
	}
}

// readPacket returns a packet with its header, and with those that it goes on in.
func readPacket(r io.Reader) (packet []byte, err error) {
	for {
		var header [headerSize]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return nil, err
		}
		size := int(header[0]) | int(header[1])<<8 | int(header[2])<<16
		packet = append(packet, header[:]...)
		packet = append(packet, make([]byte, size)...)
		if _, err := io.ReadFull(r, packet[len(packet)-size:]); err != nil {
			return nil, err
		}
		if size < maxPayload {
			return packet, nil
		}
	}
}

// newPacket is a packet with that payload, which is short.
func newPacket(sequence byte, payload ...byte) []byte {
	return append([]byte{byte(len(payload)), byte(len(payload) >> 8), 0, sequence}, payload...)
}

func (c *connection) fromClient(packet []byte) []byte {
	sequence, payload := packet[3], packet[headerSize:]
	isCommand := sequence == 0 && len(payload) > 0
	if !c.f.pass(isCommand && (payload[0] == comQuery || payload[0] == comExecute || payload[0] == comPing), c.ended, nil) {
		return nil
	}
	if sequence == 1 && !c.isPlain(payload) {
		return nil
	}
	if !isCommand {
		return packet // of a login, or of a file that the server has asked for
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	query := ""
	switch payload[0] {
	case comQuery:
		query = string(payload[1:])
	case comPrepare:
		c.preparing = string(payload[1:])
	case comExecute:
		query = c.statements[binary.LittleEndian.Uint32(payload[1:])]
	}
	if query == "" {
		return packet
	}
	c.hit = c.f.meet(query)
	switch {
	case c.hit == nil, c.hit.applies:
		return packet
	case c.hit.rollsBack:
		return newPacket(0, append([]byte{comQuery}, "ROLLBACK"...)...)
	}
	return newPacket(0, comPing)
}

// isPlain says whether the client's answer to the greeting asks for packets that can be
// read.
func (c *connection) isPlain(payload []byte) bool {
	if len(payload) < 4 || binary.LittleEndian.Uint32(payload)&(clientCompress|clientTLS|clientZstd) == 0 {
		return true
	}
	c.f.t.Errorf("livepooltest: a client asks for TLS or compression, which the proxy cannot look into: leave tls and compress out of the test's settings")
	return false
}

func (c *connection) fromServer(packet []byte) []byte {
	if !c.f.pass(false, c.ended, nil) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	hit, preparing := c.hit, c.preparing
	c.hit, c.preparing = nil, ""
	switch payload := packet[headerSize:]; {
	case hit == nil:
		if preparing != "" && len(payload) >= 5 && payload[0] == isOK {
			c.statements[binary.LittleEndian.Uint32(payload[1:])] = preparing
		}
		return packet
	case hit.answer == nil:
		return nil
	}
	return errorPacket(packet[3], hit.answer)
}

func errorPacket(sequence byte, err *mysql.MySQLError) []byte {
	state := err.SQLState
	if state == [5]byte{} {
		state = [5]byte([]byte("HY000"))
	}
	payload := binary.LittleEndian.AppendUint16([]byte{isError}, err.Number)
	payload = append(payload, '#')
	payload = append(payload, state[:]...)
	return newPacket(sequence, append(payload, err.Message...)...)
}
