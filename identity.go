// identity.go tells who is who on the server: whether it sees this pool's
// connections as they see themselves, and which of its threads serves one of
// them. Whatever is done to a thread, kill.go and stall.go do it, and only with
// the proof from here.

package livepool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// seen is how a server sees a connection, as other connections of the user see it.
type seen struct {
	user      string // "" if the processlist does not show it
	host      string // where it comes from, less the port
	port      string
	inCluster bool // the server says that it is a node of a Galera cluster
}

// The processlist is a scan of all threads, and on MySQL may hold them up: this
// is asked once a server, and by each connection beside the pool. wsrepOn is a
// column that only MariaDB sees, and NULL where it was built without Galera.
const (
	lookAtMe = "SELECT p.USER, p.HOST" + wsrepOn +
		" FROM (SELECT 1) AS me LEFT JOIN information_schema.PROCESSLIST AS p ON p.ID = CONNECTION_ID()"
	wsrepOn = " /*M!100101 , (SELECT GLOBAL_VALUE FROM information_schema.SYSTEM_VARIABLES WHERE VARIABLE_NAME = 'WSREP_ON') */"
)

// look asks how the server sees a connection. A server may hide a connection from
// itself: MySQL one of a proxy user or of an anonymous account.
func look(ctx context.Context, in *inner) (s seen, err error) {
	row, err := in.askRow(ctx, lookAtMe)
	if err != nil {
		return s, err
	}
	if len(row) != 2 && len(row) != 3 {
		return s, fmt.Errorf("livepool: the server shows %d columns where 2 were asked for, or 3 of MariaDB", len(row))
	}
	s = seen{user: row[0], host: row[1], inCluster: len(row) == 3 && row[2] == "ON"}
	if i := strings.LastIndexByte(s.host, ':'); i >= 0 {
		s.host, s.port = s.host[:i], s.host[i+1:]
	}
	return s, nil
}

// isSelf says whether the server sees the connection come from its own port.
// Behind a proxy or NAT it does not, and neither does a unix socket, which has no
// port.
func (s *seen) isSelf(w *wire) bool { return w != nil && s.port != "" && s.port == port(w) }

// port is the connection's own, "" if it has none.
func port(w *wire) string {
	if tcp, ok := w.LocalAddr().(*net.TCPAddr); ok {
		return strconv.Itoa(tcp.Port)
	}
	return ""
}

// samePath says whether two connections lead from the same address to the same
// address. Between two such a port belongs to one connection at a time.
func samePath(a, b *wire) bool {
	from, ok := a.LocalAddr().(*net.TCPAddr)
	to, ok2 := b.LocalAddr().(*net.TCPAddr)
	return ok && ok2 && from.IP.Equal(to.IP) && a.RemoteAddr().String() == b.RemoteAddr().String()
}

// side is a connection beside those of the pool, to ask the server about them.
type side struct {
	ctr    *connector
	l      link
	facts  *serverFacts
	seen   seen
	direct bool
	uptime time.Duration // of the server, below 0 if it does not say
}

// openSide opens one, within ConnectTimeout. In an outage it does not.
func (ctr *connector) openSide(ctx context.Context) (*side, error) {
	s := &side{ctr: ctr, uptime: -1}
	l, err := ctr.openInTurn(ctx, true)
	if err != nil {
		switch {
		case errors.As(err, new(*heldError)):
			ctr.outage.inquire(ctr)
		case errors.Is(err, os.ErrDeadlineExceeded): // a server that is silent may only be busy
		default:
			ctr.failedToConnect(err)
		}
		return nil, err
	}
	ctr.connected()
	s.l = l
	ctx, cancel := context.WithTimeout(ctx, ctr.cfg.ConnectTimeout)
	defer cancel()
	if err := s.ask(ctx); err != nil && !isAnswer(err) {
		s.l.close()
		return nil, err
	}
	s.direct = s.seen.isSelf(s.l.wire) && s.facts.isOwnID(s.l.wire)
	return s, nil
}

// ask asks the server who it is. One that does not say serves as far as it goes:
// then only a beacon proves anything.
func (s *side) ask(ctx context.Context) (err error) {
	if s.facts, _, err = getFacts(ctx, &s.l.inner, ""); err != nil {
		return err
	}
	if s.seen, err = look(ctx, &s.l.inner); err != nil {
		return err
	}
	row, err := s.l.inner.askRow(ctx, "SHOW GLOBAL STATUS LIKE 'Uptime'")
	if err != nil {
		return err
	}
	if seconds, err := strconv.Atoi(row[len(row)-1]); err == nil {
		s.uptime = time.Duration(seconds) * time.Second
	}
	return nil
}

// finding is what the server says of a connection's thread.
type finding int

const (
	unproved  finding = iota // there is no telling whose a thread is, or whether there is one
	elsewhere                // another server has it
	gone                     // there is none any more
	unseen                   // it is there; what it does is not shown
	resting                  // it waits for the client
	working
)

// find looks for the thread that serves w. The id is an expression for the
// server's own.
func (s *side) find(ctx context.Context, w *wire) (id string, _ finding, _ error) {
	ctx, cancel := context.WithTimeout(ctx, s.ctr.cfg.PingTimeout)
	defer cancel()
	if w.beacon != "" {
		return s.findByBeacon(ctx, w)
	}
	return s.findByPort(ctx, w)
}

// findByBeacon asks who holds the beacon. Where nobody does, the connection is
// gone, or has only put it out (RELEASE_ALL_LOCKS).
func (s *side) findByBeacon(ctx context.Context, w *wire) (id string, _ finding, _ error) {
	id = "IS_USED_LOCK('" + w.beacon + "')"
	row, err := s.l.inner.askRow(ctx, "SELECT "+id)
	if err != nil {
		return "", unproved, err
	}
	if row[0] != "" {
		f, err := s.command(ctx, "ID = "+row[0])
		if f == gone { // but for the one that holds it, which this user is not shown
			f = unseen
		}
		return id, f, err
	}
	if f, settled := s.beforeLooking(w); settled {
		return "", f, nil
	}
	f, err := s.command(ctx, fmt.Sprintf("ID = %s AND USER = x'%x'", w.facts.connectionID, w.facts.user))
	if f != gone || !s.isShown(w.facts.user) {
		f = unproved
	}
	return "", f, err
}

// findByPort looks for the id of the handshake, for its user and from our port,
// on a server that sees this connection as it sees itself: then it sees that one
// so too.
func (s *side) findByPort(ctx context.Context, w *wire) (id string, _ finding, _ error) {
	if f, settled := s.beforeLooking(w); settled {
		return "", f, nil
	}
	if !s.direct || !samePath(s.l.wire, w) || !w.facts.isOwnID(w) {
		return "", unproved, nil
	}
	id = w.facts.connectionID
	f, err := s.command(ctx, fmt.Sprintf("ID = %s AND USER = x'%x' AND HOST = x'%x'", id, w.facts.user, s.seen.host+":"+port(w)))
	if f == gone && !s.isShown(w.facts.user) {
		f = unproved
	}
	return id, f, err
}

// beforeLooking is what can be said of a connection's thread without looking for
// it. What was born before the server has started is not there.
func (s *side) beforeLooking(w *wire) (_ finding, settled bool) {
	switch {
	case s.facts == nil, w.facts == nil:
		return unproved, true
	case s.facts.server != w.facts.server:
		return elsewhere, true
	case s.uptime >= 0 && s.uptime+2*time.Second < s.ctr.clock.now()-w.born: // it counts in whole seconds
		return gone, true
	}
	return unproved, false
}

// isShown says whether the processlist shows this connection the threads of a
// user: it shows it its own, and those of the same user are shown to it as that
// one is. Of others there is no telling, and what is not shown may be there: the
// threads of a proxy user, of an anonymous account, of a user whose name has
// changed since.
func (s *side) isShown(user string) bool { return s.seen.user != "" && s.seen.user == user }

// command looks at one thread in the processlist. One that waits for its client is
// shown as Killed where something has ended its transaction, such as a Galera
// node in favour of another node's.
func (s *side) command(ctx context.Context, where string) (finding, error) {
	row, err := s.l.inner.askRow(ctx, "SELECT IF(COMMAND = 'Killed' AND INFO IS NULL, 'Sleep', COMMAND)"+
		" FROM information_schema.PROCESSLIST WHERE "+where)
	switch {
	case errors.Is(err, io.EOF):
		return gone, nil
	case err != nil:
		return unproved, err
	case row[0] == "Sleep":
		return resting, nil
	}
	return working, nil
}
