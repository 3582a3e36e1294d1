package proxy

// This file says which command of a client meets which fault, and counts commands. The fault
// itself is carried out in conn.go.

import "strings"

// The commands of the protocol that a client of database/sql sends.
const (
	ComQuit            byte = 0x01
	ComQuery           byte = 0x03
	ComPing            byte = 0x0e
	ComStmtPrepare     byte = 0x16
	ComStmtExecute     byte = 0x17
	ComStmtLongData    byte = 0x18
	ComStmtClose       byte = 0x19
	ComResetConnection byte = 0x1f
)

// A Fault is what a Cut does to a connection.
type Fault int

const (
	// FIN closes both sides in an orderly way.
	FIN Fault = iota
	// RST resets both sides.
	RST
	// Stall stops all bytes on the connection until Heal, and loses none: after it, a command
	// held up by CutBefore is executed late, a reply held up by CutAfter comes late.
	Stall
	// KillServerSide closes the server's side; the client is told nothing, ever.
	KillServerSide
)

// A Match tells whether a command is meant. The payload is what follows the command byte.
type Match func(cmd byte, payload []byte) bool

// Command matches any command of that sort.
func Command(cmd byte) Match { return func(c byte, _ []byte) bool { return c == cmd } }

// QueryPrefix matches a query that begins like this, in upper or lower case. It does not match
// prepared statements, whose text is not in their execution.
func QueryPrefix(prefix string) Match {
	return func(cmd byte, payload []byte) bool {
		return cmd == ComQuery && len(payload) >= len(prefix) && strings.EqualFold(string(payload[:len(prefix)]), prefix)
	}
}

// A Cut is a fault that waits for its command. It hits once.
type Cut struct {
	p     *Proxy
	match Match
	how   Fault
	after bool
	fired chan struct{}
}

// CutBefore applies a fault to the connection on which the next matching command comes: the
// server never sees the command.
func (p *Proxy) CutBefore(match Match, how Fault) *Cut { return p.cut(match, how, false) }

// CutAfter lets the next matching command through and applies a fault to its connection when
// the server has begun to reply: the server has executed the command, the client does not
// know. (Of a query with rows it may have sent the first and be at work on the others.)
func (p *Proxy) CutAfter(match Match, how Fault) *Cut { return p.cut(match, how, true) }

func (p *Proxy) cut(match Match, how Fault, after bool) *Cut {
	c := &Cut{p: p, match: match, how: how, after: after, fired: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts = append(p.cuts, c)
	return c
}

// Done is closed when the fault is applied: by the time the client notices, it is.
func (c *Cut) Done() <-chan struct{} { return c.fired }

// Fired tells whether Done is closed.
func (c *Cut) Fired() bool {
	select {
	case <-c.fired:
		return true
	default:
		return false
	}
}

// Cancel withdraws a cut that has met no command yet.
func (c *Cut) Cancel() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.take(func(other *Cut) bool { return other == c })
}

// take removes and returns the first cut waiting for which ok holds, or nil. The caller holds
// the lock.
func (p *Proxy) take(ok func(*Cut) bool) *Cut {
	for i, c := range p.cuts {
		if ok(c) {
			p.cuts = append(p.cuts[:i:i], p.cuts[i+1:]...)
			return c
		}
	}
	return nil
}

// command books a client's command and returns the cut that it meets, or nil.
func (p *Proxy) command(cmd byte, payload []byte) *Cut {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := &p.counts
	switch cmd {
	case ComQuit:
		n.Quit++
	case ComPing:
		n.Ping++
	case ComQuery:
		n.Query++
		if p.queries {
			p.texts = append(p.texts, string(payload))
		}
	case ComStmtPrepare:
		n.Prepare++
	case ComStmtExecute:
		n.Execute++
	case ComStmtLongData:
		n.LongData++
	case ComStmtClose:
		n.StmtClose++
	case ComResetConnection:
		n.ResetConnection++
	default:
		n.Other++
	}
	return p.take(func(c *Cut) bool { return c.match(cmd, payload) })
}
