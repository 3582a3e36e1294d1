// identity.go tells who is who on the server: whether it sees this pool's
// connections as they see themselves, and which of its threads serves one of
// them. Whatever is done to a thread, kill.go and stall.go do it, and only with
// the proof from here.

package livepool

import (
	"context"
	"crypto/rand"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// introduction is what a server says of a connection, and of itself.
type introduction struct {
	thread      string // its id for the connection
	waitTimeout time.Duration
	server      string // itself; the same after a restart
	user        string
	host        string // where it sees the connection come from, less the port
	port        string
	inCluster   bool // it says that it is a node of a Galera cluster
}

const (
	serverName  = "CONCAT_WS('/', @@hostname, @@port, @@server_id, @@datadir)"
	introduceMe = "SELECT CONNECTION_ID(), @@wait_timeout, " + serverName + ", USER, HOST" + wsrepOn +
		" FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID()"
	// wsrepOn is a column that only MariaDB sees, and NULL where it was built without Galera.
	wsrepOn = " /*M!100101 , (SELECT GLOBAL_VALUE FROM information_schema.SYSTEM_VARIABLES WHERE VARIABLE_NAME = 'WSREP_ON') */"
)

func introduce(ctx context.Context, in *inner) (who introduction, err error) {
	row, err := in.askRow(ctx, introduceMe)
	if err != nil {
		return who, err
	}
	if len(row) != 5 && len(row) != 6 {
		return who, fmt.Errorf("livepool: the server shows %d columns where 5 were asked for, or 6 of MariaDB", len(row))
	}
	seconds, err := strconv.Atoi(row[1])
	who = introduction{thread: row[0], waitTimeout: time.Duration(seconds) * time.Second, server: row[2], user: row[3], host: row[4]}
	who.inCluster = len(row) > 5 && row[5] == "ON"
	if i := strings.LastIndexByte(who.host, ':'); i >= 0 {
		who.host, who.port = who.host[:i], who.host[i+1:]
	}
	return who, err
}

// askRow asks the server for one row, past all bookkeeping. NULL is "".
func (in *inner) askRow(ctx context.Context, query string) ([]string, error) {
	rows, err := in.QueryContext(ctx, query, nil)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	values := make([]driver.Value, len(rows.Columns()))
	if err := rows.Next(values); err != nil {
		return nil, err
	}
	row := make([]string, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case nil:
		case []byte:
			row[i] = string(v)
		default:
			row[i] = fmt.Sprint(v)
		}
	}
	return row, nil
}

// isAnswer says whether an error is the server's answer to a question: a refusal,
// or no row.
func isAnswer(err error) bool { return errorNumber(err) != 0 || err == io.EOF }

// isSeenAs says whether the server sees the connection as it sees itself: with
// the id of its handshake and from its own port. Behind a proxy or NAT it does
// not, and neither does a unix socket, which has no port.
func (who *introduction) isSeenAs(w *wire) bool {
	return who.port != "" && who.port == port(w) && who.thread == strconv.FormatUint(uint64(w.hello.threadID), 10)
}

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

// home is what the pool knows of where its connections lead.
type home struct {
	known  atomic.Bool
	asking chan struct{} // full while the first connection asks
	mu     sync.Mutex    // guards what follows

	server   string
	direct   bool // the server sees the connections as they see themselves
	lastID   uint32
	lastSeen time.Duration

	// scattered: the address leads, or may lead, to several servers.
	scattered atomic.Bool
}

// getAcquainted follows the login: the pool's first connection asks what all of
// them need to know, and each takes its beacon, if it needs one.
func (ctr *connector) getAcquainted(ctx context.Context, l *link, began time.Duration) error {
	if !ctr.mysql {
		return nil
	}
	if !ctr.home.known.Load() {
		if err := ctr.ask(ctx, l); err != nil {
			return err
		}
	}
	w := l.wire
	if w == nil {
		return nil
	}
	w.born = ctr.clock.now()
	ctr.sees(w, began)
	if !ctr.needsBeacon() {
		return nil
	}
	return lightBeacon(ctx, l)
}

// ask asks what all connections need to know. Those that are opened at the same
// time wait for the answer.
func (ctr *connector) ask(ctx context.Context, l *link) error {
	who, first, err := ctr.home.ask(ctx, l)
	switch {
	case !first:
	case isAnswer(err):
		ctr.cfg.logger().Debug("livepool: the server does not say who it is: no setting is fitted to its wait_timeout, "+
			"and what is abandoned there is killed only by a beacon", slog.String("addr", ctr.addr), slog.Any("cause", err))
	case err != nil:
		return err
	default:
		ctr.tune(who.waitTimeout)
		if who.inCluster {
			ctr.inCluster.Store(true)
		}
	}
	return nil
}

// ask is false for first if another connection has asked meanwhile. An error
// that is the server's is an answer too.
func (h *home) ask(ctx context.Context, l *link) (who introduction, first bool, err error) {
	leave, err := pass(ctx, h.asking)
	if err != nil {
		return who, true, err
	}
	defer leave()
	if h.known.Load() {
		return who, false, nil
	}
	who, err = introduce(ctx, &l.inner)
	if err != nil && !isAnswer(err) {
		return who, true, err
	}
	if err == nil {
		h.mu.Lock()
		h.server, h.direct = who.server, l.wire != nil && who.isSeenAs(l.wire)
		h.mu.Unlock()
	}
	h.known.Store(true)
	return who, true, err
}

// sees notes a thread id. A server counts upwards: an id below that of a
// connection opened before is another server's, unless one was found closed
// since, as by a restart, after which the ids begin again.
func (ctr *connector) sees(w *wire, began time.Duration) {
	h, id, hungUp := &ctr.home, w.hello.threadID, time.Duration(ctr.news.hungUp.Load())
	h.mu.Lock()
	defer h.mu.Unlock()
	if began >= h.lastSeen && id < h.lastID && hungUp < h.lastSeen {
		h.scattered.Store(true)
	}
	h.lastID, h.lastSeen = id, ctr.clock.now()
}

// needsBeacon says whether the connection could not be told from others later.
func (ctr *connector) needsBeacon() bool {
	if !ctr.cfg.KillAbandoned && ctr.cfg.StallAfter == 0 {
		return false
	}
	switch ctr.cfg.Beacon {
	case BeaconOn:
		return true
	case BeaconAuto:
		return !ctr.home.direct || ctr.home.scattered.Load()
	}
	return false
}

// lightBeacon takes a named lock that nobody else can have, by which another
// connection finds the server's own id of this one. A server that refuses it
// leaves the connection without.
func lightBeacon(ctx context.Context, l *link) error {
	name := "livepool:" + rand.Text()
	row, err := l.inner.askRow(ctx, "SELECT GET_LOCK('"+name+"', 0), CONNECTION_ID(), "+serverName)
	switch {
	case errorNumber(err) != 0:
		return nil
	case err != nil:
		return err
	case len(row) == 3 && row[0] == "1":
		l.wire.beacon, l.wire.thread, l.wire.server = name, row[1], row[2]
	}
	return nil
}

// side is a connection beside those of the pool, to ask the server about them.
type side struct {
	ctr    *connector
	l      link
	who    introduction
	direct bool
	uptime time.Duration
}

// openSide opens one.
func (ctr *connector) openSide(ctx context.Context) (*side, error) {
	s := &side{ctr: ctr}
	began, caller := ctr.clock.now(), ctx
	ctx, cancel := context.WithTimeout(ctx, ctr.cfg.ConnectTimeout)
	defer cancel()
	dc, err := ctr.connectDriver(context.WithValue(ctx, dialedKey{}, &s.l.wire))
	if err != nil {
		err = ctr.connectError(caller, ctx, err, s.l.wire, ctr.clock.now()-began)
		ctr.failedToConnect(err, began)
		return nil, err
	}
	s.l.inner = newInner(dc)
	if err := s.ask(ctx); err != nil && !isAnswer(err) {
		s.l.close()
		return nil, err
	}
	s.direct = s.l.wire != nil && s.who.isSeenAs(s.l.wire)
	if s.l.wire != nil {
		ctr.sees(s.l.wire, began)
	}
	if s.who.server != "" && ctr.home.isElsewhere(s.who.server) {
		ctr.home.scattered.Store(true)
	}
	return s, nil
}

// ask asks the server who it is. One that does not say serves as far as it goes:
// then only a beacon proves anything.
func (s *side) ask(ctx context.Context) (err error) {
	if s.who, err = introduce(ctx, &s.l.inner); err != nil {
		s.who = introduction{}
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

func (h *home) isElsewhere(server string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.server != server
}

// finding is what the server says of a connection's thread.
type finding int

const (
	unproved  finding = iota // there is no telling whose a thread is
	elsewhere                // another server has it
	absent                   // it is not here; another server may have it
	gone                     // there is none any more
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

// findByBeacon asks who holds the beacon. Where nobody does, only the server on
// which it was taken knows whether the connection is gone, or has only put it
// out (RELEASE_ALL_LOCKS).
func (s *side) findByBeacon(ctx context.Context, w *wire) (id string, _ finding, _ error) {
	id = "IS_USED_LOCK('" + w.beacon + "')"
	row, err := s.l.inner.askRow(ctx, "SELECT "+id)
	switch {
	case err != nil:
		return "", unproved, err
	case row[0] != "":
		f, err := s.command(ctx, "ID = "+row[0])
		return id, f, err
	case s.who.server == "":
		return "", unproved, nil
	case w.server != s.who.server:
		return "", elsewhere, nil
	}
	f, err := s.command(ctx, fmt.Sprintf("ID = %s AND USER = x'%x'", w.thread, s.who.user))
	if err == nil && f != gone {
		f = unproved
	}
	return "", f, err
}

// findByPort looks for the id of the handshake, for our user and from our port,
// on a server that sees this connection as it sees itself: then it sees that one
// so too. What was born before the server has started is not there. That it is
// not there proves nothing: the address may lead to several servers.
func (s *side) findByPort(ctx context.Context, w *wire) (id string, _ finding, _ error) {
	if !s.direct || !samePath(s.l.wire, w) {
		return "", unproved, nil
	}
	id = strconv.FormatUint(uint64(w.hello.threadID), 10)
	f, err := s.command(ctx, fmt.Sprintf("ID = %s AND USER = x'%x' AND HOST = x'%x'", id, s.who.user, s.who.host+":"+port(w)))
	restarted := s.uptime+2*time.Second < s.ctr.clock.now()-w.born // it counts in whole seconds
	if err == nil && (f == gone || restarted) {
		f = absent
	}
	return id, f, err
}

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
