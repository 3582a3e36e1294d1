// serverfacts.go asks what must be known of a server. An address may lead to another
// server tomorrow, with other settings: so each new connection asks its own, in
// one small query, and keeps the answer.

package connector

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

	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/wire"
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
	serverNameExpr = "CONCAT_WS('/', @@hostname, @@port, @@server_id, @@datadir /*!50700 , @@server_uuid */)"
	factsQuery     = "SELECT " + serverNameExpr + ", CONNECTION_ID(), USER(), VERSION(), @@wait_timeout, @@innodb_rollback_on_timeout, @@max_allowed_packet, @@thread_handling, "
)

// lockWaitMayEndTx says whether a lock wait that was too long may have ended its
// transaction, and not only its statement.
func (f *serverFacts) lockWaitMayEndTx() bool { return f == nil || f.lockWaitEndsTx }

// maxNetBuffer is the most that net_buffer_length may be. A packet that fits into
// that buffer is read, however small max_allowed_packet is.
const maxNetBuffer = 1 << 20

// maxPacket is the size above which the server certainly does not read a packet,
// 0 if it is not known.
func (f *serverFacts) maxPacket() int {
	if f == nil || f.maxAllowedPacket == 0 {
		return 0
	}
	return max(f.maxAllowedPacket, maxNetBuffer)
}

// rejectsPacket says whether the server certainly does not read a packet of that size.
func (f *serverFacts) rejectsPacket(size int) bool {
	largest := f.maxPacket()
	return largest > 0 && size > largest
}

// queryFacts asks them. With the name of a beacon it takes that too, and says
// whether it has got it.
func queryFacts(ctx context.Context, in *driverConn, beacon string) (f *serverFacts, taken bool, err error) {
	lock := "NULL"
	if beacon != "" {
		lock = "GET_LOCK('" + beacon + "', 0)"
	}
	row, err := in.queryRow(ctx, factsQuery+lock)
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

// queryRow asks the server for one row, past all bookkeeping. NULL is "".
func (in *driverConn) queryRow(ctx context.Context, query string) ([]string, error) {
	rows, err := in.queryRows(ctx, query)
	if err == nil && len(rows) == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	return rows[0], nil
}

// queryRows is askRow for any number of them.
func (in *driverConn) queryRows(ctx context.Context, query string) (all [][]string, err error) {
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

// isServerAnswer says whether an error is the server's answer to a question: a refusal,
// or no row.
func isServerAnswer(err error) bool { return mysqlerr.Number(err) != 0 || err == io.EOF }

// servers are those that the pool's connections have led to.
type servers struct {
	identifying chan struct{} // full while a connection asks a server that is new to the pool

	mu    sync.Mutex // guards what follows
	known map[string]*knownServer

	// indirect: the last server that was asked sees connections otherwise than they
	// see themselves, so that the next one had better take its beacon at once.
	indirect atomic.Bool
	// askNothing: nothing is asked any more. What a server says through a proxy that may
	// send each statement elsewhere is true of none of them; and to ask for a
	// variable has ProxySQL stop multiplexing, which who turns the beacon off wants.
	askNothing atomic.Bool
}

// knownServer is what is asked once of a server, since the answer is dear.
type knownServer struct {
	direct bool   // it sees the connections as they see themselves
	warned string // what was last said of its wait_timeout; guarded by servers.mu
	// commitTableOK: its commit table was seen to keep the promise of Once; guarded by servers.mu.
	commitTableOK bool
}

// maxKnownServers bounds the memory of servers whose names change for ever. Forgotten,
// one is asked again.
const maxKnownServers = 100

// afterLogin follows the login: the connection asks what must be known of its
// server, and takes its beacon, if it needs one.
func (ctr *Connector) afterLogin(ctx context.Context, l *link) error {
	l.keepAlive, l.pingAfter = ctr.Cfg.KeepAlive, ctr.Cfg.PingAfter
	if !ctr.IsMySQL {
		return nil
	}
	beacon := ""
	if l.wire != nil && ctr.needsBeacon(!ctr.servers.indirect.Load()) {
		beacon = newBeaconName()
	}
	direct, taken, err := ctr.identifyServer(ctx, l, beacon)
	if err != nil || l.wire == nil {
		return err
	}
	w := &serverSide{Conn: l.wire, bornAt: ctr.clock.Now(), facts: l.facts}
	l.serverSide, w.MaxPacket = w, l.facts.maxPacket()
	if ctr.maintainer != nil && ctr.Cfg.StallAfter > 0 {
		w.IsWorking = func() bool { return ctr.isWorkingOn(w) }
	}
	switch {
	case taken:
		w.beacon = beacon
	case ctr.needsBeacon(direct):
		return takeBeacon(ctx, &l.driverConn, w)
	}
	return nil
}

// identifyServer asks the facts, and what else is to be known of a server that is new
// to the pool. One that refuses is as good as any other, but for what cannot be
// known of it then.
func (ctr *Connector) identifyServer(ctx context.Context, l *link, beacon string) (direct, taken bool, err error) {
	if ctr.servers.askNothing.Load() {
		return false, false, nil
	}
	facts, taken, err := queryFacts(ctx, &l.driverConn, beacon)
	switch {
	case isServerAnswer(err):
		ctr.Cfg.Log.Debug("livepool: the server does not say who it is: no setting is fitted to its wait_timeout, "+
			"a lock wait that is too long counts as the end of its transaction, and what is abandoned there is killed only by a beacon",
			slog.String("addr", ctr.addr), slog.Any("cause", err))
		return false, false, nil
	case err != nil:
		return false, false, err
	}
	server, err := ctr.serverFor(ctx, l, facts)
	if err != nil {
		return false, taken, err
	}
	l.facts = facts
	ctr.fitToWaitTimeout(l, server)
	return server.direct && facts.isHandshakeID(l.wire), taken, nil
}

// isHandshakeID says whether the server's own id for the connection is that of the
// handshake. Where it is not there is a proxy that speaks SQL: it may send each
// statement to another server.
func (f *serverFacts) isHandshakeID(w *wire.Conn) bool {
	return f != nil && w != nil && f.connectionID == strconv.FormatUint(uint64(w.Handshake.ThreadID), 10)
}

// serverFor returns what is known of a connection's server. Those that are opened at
// the same time wait for the first to ask one that is new to the pool.
func (ctr *Connector) serverFor(ctx context.Context, l *link, facts *serverFacts) (*knownServer, error) {
	ss := &ctr.servers
	if s := ss.get(facts.server); s != nil {
		return s, nil
	}
	release, err := acquire(ctx, ss.identifying)
	if err != nil {
		return nil, err
	}
	defer release()
	if s := ss.get(facts.server); s != nil {
		return s, nil
	}
	seen, err := queryView(ctx, &l.driverConn)
	notReady := mysqlerr.IsNodeNotReady(err) // and to be asked again when it is
	if seen.inCluster || notReady {
		ctr.InCluster.Store(true)
	}
	if err != nil && (notReady || !isServerAnswer(err)) {
		return nil, err
	}
	s := &knownServer{direct: seen.isDirect(l.wire) && facts.isHandshakeID(l.wire)}
	if ctr.Cfg.Beacon == beaconOff && l.wire != nil && !facts.isHandshakeID(l.wire) {
		ss.askNothing.Store(true)
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
	if len(ss.known) >= maxKnownServers {
		clear(ss.known)
	}
	ss.known[name] = s
	ss.indirect.Store(!s.direct)
}

// needsBeacon says whether a connection could not be told from others later. It
// is direct where its server sees it as it sees itself.
func (ctr *Connector) needsBeacon(direct bool) bool {
	if !ctr.Cfg.KillAbandoned && ctr.Cfg.StallAfter == 0 {
		return false
	}
	switch ctr.Cfg.Beacon {
	case beaconOn:
		return true
	case beaconAuto:
		return !direct
	}
	return false
}

// newBeaconName is the name of a lock that nobody else can have, by which another
// connection finds the server's own id of the one that has it.
func newBeaconName() string { return "livepool:" + rand.Text() }

// takeBeacon takes one alone. A server that refuses it leaves the connection
// without.
func takeBeacon(ctx context.Context, in *driverConn, w *serverSide) error {
	name := newBeaconName()
	row, err := in.queryRow(ctx, "SELECT GET_LOCK('"+name+"', 0)")
	switch {
	case mysqlerr.Number(err) != 0:
		return nil
	case err != nil:
		return err
	case row[0] == "1":
		w.beacon = name
	}
	return nil
}
