// facts.go asks what must be known of a server. An address may lead to another
// server tomorrow, with other settings: so each new connection asks its own, in
// one small query, and keeps the answer.

package livepool

import (
	"context"
	"crypto/rand"
	"database/sql/driver"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// serverFacts is what a server says of itself, and of one connection to it. It is
// written before the connection is used, and never changed. A server that refuses
// the question leaves its connections without: nil, on which every method takes
// the safe side.
type serverFacts struct {
	server           string // its name for itself; the same after a restart
	connectionID     string // its own id for the connection, which is not the handshake's behind a proxy that speaks SQL
	user             string // as whom the connection has logged in
	version          string
	mariaDB          bool
	threadPool       bool          // a statement may wait for a worker thread, while its connection looks idle
	waitTimeout      time.Duration // idle longer, the connection is closed
	lockWaitEndsTx   bool          // innodb_rollback_on_timeout
	maxAllowedPacket int           // of the session, which keeps what it began with
}

const (
	// What begins with 50700 MariaDB does not see: it has no such variable.
	serverName = "CONCAT_WS('/', @@hostname, @@port, @@server_id, @@datadir /*!50700 , @@server_uuid */)"
	askFacts   = "SELECT " + serverName + ", CONNECTION_ID(), USER(), VERSION(), @@wait_timeout, @@innodb_rollback_on_timeout, @@max_allowed_packet, @@thread_handling, "
)

// mayEndTx says whether a lock wait that was too long may have ended its
// transaction, and not only its statement.
func (f *serverFacts) mayEndTx() bool { return f == nil || f.lockWaitEndsTx }

// largestBuffer is the most that net_buffer_length may be. A packet that fits into
// that buffer is read, however small max_allowed_packet is.
const largestBuffer = 1 << 20

// largestPacket is the size above which the server certainly does not read a packet,
// 0 if it is not known.
func (f *serverFacts) largestPacket() int {
	if f == nil || f.maxAllowedPacket == 0 {
		return 0
	}
	return max(f.maxAllowedPacket, largestBuffer)
}

// refuses says whether the server certainly does not read a packet of that size.
func (f *serverFacts) refuses(size int) bool {
	largest := f.largestPacket()
	return largest > 0 && size > largest
}

// getFacts asks them. With the name of a beacon it takes that too, and says
// whether it has got it.
func getFacts(ctx context.Context, in *inner, beacon string) (f *serverFacts, taken bool, err error) {
	lock := "NULL"
	if beacon != "" {
		lock = "GET_LOCK('" + beacon + "', 0)"
	}
	row, err := in.askRow(ctx, askFacts+lock)
	if err != nil {
		return nil, false, err
	}
	if len(row) != 9 {
		return nil, false, fmt.Errorf("livepool: the server shows %d columns where 9 were asked for", len(row))
	}
	f = &serverFacts{server: row[0], connectionID: row[1], user: row[2], version: row[3], lockWaitEndsTx: row[5] != "0"}
	if i := strings.LastIndexByte(f.user, '@'); i >= 0 {
		f.user = f.user[:i]
	}
	seconds, err := strconv.Atoi(row[4])
	if err != nil {
		return nil, false, fmt.Errorf("livepool: the server's wait_timeout: %w", err)
	}
	f.waitTimeout = time.Duration(seconds) * time.Second
	f.mariaDB = strings.Contains(f.version, "MariaDB")
	f.maxAllowedPacket, _ = strconv.Atoi(row[6])
	f.threadPool = row[7] == "pool-of-threads" || row[7] == "loaded-dynamically" // MariaDB, Percona; MySQL
	return f, row[8] == "1", nil
}

// askRow asks the server for one row, past all bookkeeping. NULL is "".
func (in *inner) askRow(ctx context.Context, query string) ([]string, error) {
	rows, err := in.askRows(ctx, query)
	if err == nil && len(rows) == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	return rows[0], nil
}

// askRows is askRow for any number of them.
func (in *inner) askRows(ctx context.Context, query string) (all [][]string, err error) {
	rows, err := in.QueryContext(ctx, query, nil)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	values := make([]driver.Value, len(rows.Columns()))
	for {
		err := rows.Next(values)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
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
		all = append(all, row)
	}
}

// isAnswer says whether an error is the server's answer to a question: a refusal,
// or no row.
func isAnswer(err error) bool { return errorNumber(err) != 0 || err == io.EOF }

// servers are those that the pool's connections have led to.
type servers struct {
	asking chan struct{} // full while a connection asks a server that is new to the pool

	mu    sync.Mutex // guards what follows
	known map[string]*knownServer

	// indirect: the last server that was asked sees connections otherwise than they
	// see themselves, so that the next one had better take its beacon at once.
	indirect atomic.Bool
	// silent: nothing is asked any more. What a server says through a proxy that may
	// send each statement elsewhere is true of none of them; and to ask for a
	// variable has ProxySQL stop multiplexing, which who turns the beacon off wants.
	silent atomic.Bool
}

// knownServer is what is asked once of a server, since the answer is dear.
type knownServer struct {
	direct bool   // it sees the connections as they see themselves
	warned string // what was last said of its wait_timeout; guarded by servers.mu
	// keepsKeys: its commit table was seen to keep the promise of Once; guarded by servers.mu.
	keepsKeys bool
}

// maxKnown bounds the memory of servers whose names change for ever. Forgotten,
// one is asked again.
const maxKnown = 100

// getAcquainted follows the login: the connection asks what must be known of its
// server, and takes its beacon, if it needs one.
func (ctr *connector) getAcquainted(ctx context.Context, l *link) error {
	l.keepAlive, l.trust = ctr.cfg.KeepAlive, ctr.cfg.PingAfter
	if !ctr.mysql {
		return nil
	}
	beacon := ""
	if l.wire != nil && ctr.needsBeacon(!ctr.servers.indirect.Load()) {
		beacon = newBeacon()
	}
	direct, taken, err := ctr.askServer(ctx, l, beacon)
	if err != nil || l.wire == nil {
		return err
	}
	w := &site{wire: l.wire, born: ctr.clock.now(), facts: l.facts}
	l.site, w.largest = w, l.facts.largestPacket()
	if ctr.maintainer != nil && ctr.cfg.StallAfter > 0 {
		w.worksOn = func() bool { return ctr.worksOn(w) }
	}
	switch {
	case taken:
		w.beacon = beacon
	case ctr.needsBeacon(direct):
		return takeBeacon(ctx, &l.inner, w)
	}
	return nil
}

// askServer asks the facts, and what else is to be known of a server that is new
// to the pool. One that refuses is as good as any other, but for what cannot be
// known of it then.
func (ctr *connector) askServer(ctx context.Context, l *link, beacon string) (direct, taken bool, err error) {
	if ctr.servers.silent.Load() {
		return false, false, nil
	}
	facts, taken, err := getFacts(ctx, &l.inner, beacon)
	switch {
	case isAnswer(err):
		ctr.cfg.Log.Debug("livepool: the server does not say who it is: no setting is fitted to its wait_timeout, "+
			"a lock wait that is too long counts as the end of its transaction, and what is abandoned there is killed only by a beacon",
			slog.String("addr", ctr.addr), slog.Any("cause", err))
		return false, false, nil
	case err != nil:
		return false, false, err
	}
	server, err := ctr.meet(ctx, l, facts)
	if err != nil {
		return false, taken, err
	}
	l.facts = facts
	ctr.fit(l, server)
	return server.direct && facts.isOwnID(l.wire), taken, nil
}

// isOwnID says whether the server's own id for the connection is that of the
// handshake. Where it is not there is a proxy that speaks SQL: it may send each
// statement to another server.
func (f *serverFacts) isOwnID(w *wire) bool {
	return f != nil && w != nil && f.connectionID == strconv.FormatUint(uint64(w.hello.threadID), 10)
}

// meet returns what is known of a connection's server. Those that are opened at
// the same time wait for the first to ask one that is new to the pool.
func (ctr *connector) meet(ctx context.Context, l *link, facts *serverFacts) (*knownServer, error) {
	ss := &ctr.servers
	if s := ss.get(facts.server); s != nil {
		return s, nil
	}
	leave, err := pass(ctx, ss.asking)
	if err != nil {
		return nil, err
	}
	defer leave()
	if s := ss.get(facts.server); s != nil {
		return s, nil
	}
	seen, err := look(ctx, &l.inner)
	notReady := isNotReady(err) // and to be asked again when it is
	if seen.inCluster || notReady {
		ctr.inCluster.Store(true)
	}
	if err != nil && (notReady || !isAnswer(err)) {
		return nil, err
	}
	s := &knownServer{direct: seen.isSelf(l.wire) && facts.isOwnID(l.wire)}
	if ctr.cfg.Beacon == beaconOff && l.wire != nil && !facts.isOwnID(l.wire) {
		ss.silent.Store(true)
	}
	ss.add(facts.server, s)
	return s, nil
}

func (ss *servers) get(name string) *knownServer {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.known[name]
}

func (ss *servers) add(name string, s *knownServer) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if len(ss.known) >= maxKnown {
		clear(ss.known)
	}
	ss.known[name] = s
	ss.indirect.Store(!s.direct)
}

// needsBeacon says whether a connection could not be told from others later. It
// is direct where its server sees it as it sees itself.
func (ctr *connector) needsBeacon(direct bool) bool {
	if !ctr.cfg.KillAbandoned && ctr.cfg.StallAfter == 0 {
		return false
	}
	switch ctr.cfg.Beacon {
	case beaconOn:
		return true
	case beaconAuto:
		return !direct
	}
	return false
}

// newBeacon is the name of a lock that nobody else can have, by which another
// connection finds the server's own id of the one that has it.
func newBeacon() string { return "livepool:" + rand.Text() }

// takeBeacon takes one alone. A server that refuses it leaves the connection
// without.
func takeBeacon(ctx context.Context, in *inner, w *site) error {
	name := newBeacon()
	row, err := in.askRow(ctx, "SELECT GET_LOCK('"+name+"', 0)")
	switch {
	case errorNumber(err) != 0:
		return nil
	case err != nil:
		return err
	case row[0] == "1":
		w.beacon = name
	}
	return nil
}
