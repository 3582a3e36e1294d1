// Package dns is a DNS server for the tests of one process.
package dns

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
)

// Server is a DNS server, whose zero value has no names. Use makes it that of the
// process.
type Server struct {
	Asked atomic.Int64 // how often it was asked for addresses of IPv4

	mu    sync.Mutex
	ips   map[string][]netip.Addr
	hangs bool
}

// Default is that of the packages whose TestMain calls its Use.
var Default Server

// Set gives a name these addresses from now on; none: there is no such name.
func (s *Server) Set(name string, ips ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ips == nil {
		s.ips = map[string][]netip.Addr{}
	}
	s.ips[name] = nil
	for _, ip := range ips {
		s.ips[name] = append(s.ips[name], netip.MustParseAddr(ip))
	}
}

// Hang has it say nothing to what it is asked from now on.
func (s *Server) Hang(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangs = on
}

// Use has all names of the process looked up here, but for those in /etc/hosts. Call it before
// anything looks one up. The first lookup is made here, outside of all bubbles of synctest, which
// share what it leaves in the package net.
func (s *Server) Use() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go s.serve(server)
		return client, nil
	}}
	_, _ = net.DefaultResolver.LookupHost(context.Background(), "first.test")
}

// serve answers the questions of one connection, each of which follows its length (RFC 1035, 4.2.2).
func (s *Server) serve(c net.Conn) {
	defer c.Close()
	for {
		var length uint16
		if binary.Read(c, binary.BigEndian, &length) != nil {
			return
		}
		question := make([]byte, length)
		if _, err := io.ReadFull(c, question); err != nil {
			return
		}
		reply := s.reply(question)
		if reply == nil {
			continue
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

const (
	dnsHeader = 12
	typeA     = 1
	typeAAAA  = 28
	noName    = 3 // NXDOMAIN
)

// reply is the reply to a question (RFC 1035, 4.1), nil for none.
func (s *Server) reply(question []byte) []byte {
	var labels []string
	at := dnsHeader
	for question[at] != 0 {
		end := at + 1 + int(question[at])
		labels = append(labels, string(question[at+1:end]))
		at = end
	}
	kind := binary.BigEndian.Uint16(question[at+1:])
	asked := question[dnsHeader : at+5]
	if kind == typeA {
		s.Asked.Add(1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hangs {
		return nil
	}
	ips := s.ips[strings.Join(labels, ".")]
	var answers []byte
	count := 0
	for _, ip := range ips {
		if ip.Is4() != (kind == typeA) || !ip.Is4() != (kind == typeAAAA) {
			continue
		}
		count++
		answers = append(answers, 0xc0, dnsHeader) // the name that was asked for
		answers = binary.BigEndian.AppendUint16(answers, kind)
		answers = append(answers, 0, 1, 0, 0, 0, 0) // of the internet, not to be kept
		answers = binary.BigEndian.AppendUint16(answers, uint16(len(ip.AsSlice())))
		answers = append(answers, ip.AsSlice()...)
	}
	flags := uint16(0x8180)
	if len(ips) == 0 {
		flags |= noName
	}
	reply := append([]byte{}, question[:2]...)
	for _, v := range []uint16{flags, 1, uint16(count), 0, 0} {
		reply = binary.BigEndian.AppendUint16(reply, v)
	}
	return append(append(reply, asked...), answers...)
}
