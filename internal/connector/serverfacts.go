// serverfacts.go asks a server for its facts. An address may lead to another server
// tomorrow, with other settings: so each new connection asks its own server, in one
// small query, and keeps the answer.

package connector

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
)

// serverFacts is what a server says of itself and of one connection. It is written
// before the connection is used and never changed. It is nil where the server refuses
// the question; its methods then give the safe answer.
type serverFacts struct {
	identity         proclist.Identity
	version          string
	mariaDB          bool
	waitTimeout      time.Duration // idle longer, the connection is closed
	lockWaitEndsTx   bool          // innodb_rollback_on_timeout
	maxAllowedPacket int           // of the session, fixed at login
	autocommit       bool          // is on after the login
}

const (
	// MariaDB, which has no server_uuid, skips what begins with !50700.
	serverNameExpr = "CONCAT_WS('/', @@hostname, @@port, @@server_id, @@datadir /*!50700 , @@server_uuid */)"
	factsQuery     = "SELECT " + serverNameExpr + ", CONNECTION_ID(), USER(), VERSION(), @@wait_timeout, @@innodb_rollback_on_timeout, @@max_allowed_packet, @@thread_handling, @@autocommit, "
)

// lockWaitMayEndTx says whether a lock wait timeout may have ended the transaction, and
// not only the statement.
func (f *serverFacts) lockWaitMayEndTx() bool { return f == nil || f.lockWaitEndsTx }

// maxNetBuffer is the largest net_buffer_length. A packet that fits into that buffer is
// read, however small max_allowed_packet is.
const maxNetBuffer = 1 << 20

// maxPacket is the size above which the server certainly rejects a packet, 0 if it is
// not known.
func (f *serverFacts) maxPacket() int {
	if f == nil || f.maxAllowedPacket == 0 {
		return 0
	}
	return max(f.maxAllowedPacket, maxNetBuffer)
}

// rejectsPacket says whether the server certainly rejects a packet of that size.
func (f *serverFacts) rejectsPacket(size int) bool {
	largest := f.maxPacket()
	return largest > 0 && size > largest
}

// name is the server's name for itself, "" if it is not known.
func (f *serverFacts) name() string {
	if f == nil {
		return ""
	}
	return f.identity.Server
}

// isHandshakeID says whether the server's own id for the connection is the handshake's.
func (f *serverFacts) isHandshakeID(w *wire.Conn) bool {
	return f != nil && f.identity.IsHandshakeID(w)
}

// queryFacts asks for them. Given the name of a beacon it takes that lock too; taken is that
// name if it got it. rest are the values of more columns.
func queryFacts(ctx context.Context, in *driverconn.Conn, beacon, more string) (f *serverFacts, taken string, rest []string, err error) {
	lock := "NULL"
	if beacon != "" {
		lock = "GET_LOCK('" + beacon + "', 0)"
	}
	row, err := in.QueryRow(ctx, factsQuery+lock+more)
	if err != nil {
		return nil, "", nil, err
	}
	if len(row) < 10 || more == "" && len(row) > 10 {
		return nil, "", nil, fmt.Errorf("livepool: the server shows %d columns where 10 were asked for", len(row))
	}
	f = &serverFacts{identity: proclist.Identity{Server: row[0], ConnectionID: row[1], User: row[2]}, version: row[3], lockWaitEndsTx: row[5] != "0"}
	if i := strings.LastIndexByte(f.identity.User, '@'); i >= 0 {
		f.identity.User = f.identity.User[:i]
	}
	seconds, err := strconv.Atoi(row[4])
	if err != nil {
		return nil, "", nil, fmt.Errorf("livepool: the server's wait_timeout: %w", err)
	}
	f.waitTimeout = time.Duration(seconds) * time.Second
	f.mariaDB = strings.Contains(f.version, "MariaDB")
	f.maxAllowedPacket, _ = strconv.Atoi(row[6])
	f.identity.ThreadPool = row[7] == "pool-of-threads" || row[7] == "loaded-dynamically" // MariaDB, Percona; MySQL
	f.autocommit = row[8] == "1"
	if row[9] == "1" {
		taken = beacon
	}
	return f, taken, row[10:], nil
}

// earlyFacts are a link's facts that were asked together with its role, and the beacon that was
// taken with them, "" for none.
type earlyFacts struct {
	facts  *serverFacts
	beacon string
}

// askRole asks a new connection's server whether it takes writes, and for its facts in the same
// query: not where AfterConnect may change them, or the server refuses them.
func (ctr *Connector) askRole(ctx context.Context, l *link) (takesWrites bool, err error) {
	if ctr.Cfg.AfterConnect != nil || ctr.servers.askNothing.Load() {
		return l.takesWrites(ctx, false)
	}
	facts, beacon, role, err := queryFacts(ctx, &l.driverConn, ctr.firstBeacon(l), ", "+readOnlyColumns)
	switch {
	case driverconn.IsAnswer(err) && !mysqlerr.IsNodeNotReady(err):
		return l.takesWrites(ctx, false)
	case err != nil:
		return false, err
	}
	l.early = &earlyFacts{facts, beacon}
	return !saysReadOnly(role), nil
}

// firstBeacon is the name of the beacon that a connection is to take with its facts, ""
// for none.
func (ctr *Connector) firstBeacon(l *link) string {
	if l.wire != nil && ctr.needsBeacon(!ctr.servers.indirect.Load()) {
		return newBeaconName()
	}
	return ""
}

// servers are those that the pool's connections have reached.
type servers struct {
	identifying chan struct{} // full while a connection asks a server that is new to the pool

	mu    sync.Mutex // guards what follows
	known map[string]*knownServer
	// latest is the server that the last connection was opened to.
	latest string

	// indirect: the last server that was asked is behind a proxy or NAT, so the next
	// connection takes its beacon at once.
	indirect atomic.Bool
	// askNothing: nothing is asked any more. Behind a proxy that may send each statement
	// to another server an answer is true of none of them; and asking for a variable
	// makes ProxySQL stop multiplexing, for which the user turned the beacon off.
	askNothing atomic.Bool
	// warnedOfPrivilege: warnOfPrivilege has.
	warnedOfPrivilege atomic.Bool
}

// knownServer is what a server is asked only once, because the answer is expensive.
type knownServer struct {
	direct bool   // it sees the connections' own ports
	warned string // the last warning about its wait_timeout; guarded by servers.mu
	// commitTableOK: its commit table was seen to keep the promise of Once; guarded by servers.mu.
	commitTableOK bool
	// lastKey is the key of the last unit whose COMMIT it has acknowledged since the pool came
	// to it, "" for none; guarded by servers.mu.
	lastKey string
}

// maxKnownServers bounds the memory where names of servers change forever. A server that
// was forgotten is asked again.
const maxKnownServers = 100

// afterLogin asks the facts of the connection's server, and takes its beacon if it needs
// one.
func (ctr *Connector) afterLogin(ctx context.Context, l *link) error {
	l.keepAlive, l.pingAfter = ctr.Cfg.KeepAlive, ctr.Cfg.PingAfter
	if !ctr.IsMySQL {
		return nil
	}
	if l.wire != nil {
		l.wire.Wrapped = ctr.Cfg.Wrap != nil
	}
	direct, beacon, err := ctr.identifyServer(ctx, l)
	server := l.facts.name()
	if server == "" && ctr.hostSet != nil { // its address tells it from the others
		server = l.host.addr
	}
	l.server = &server
	l.host.server.Store(&server)
	if err != nil || l.wire == nil {
		return err
	}
	w := &proclist.Thread{Conn: l.wire, Host: l.host.index, BornAt: ctr.clock.Now()}
	if l.facts != nil {
		w.Identity = &l.facts.identity
	}
	l.thread, w.MaxPacket = w, l.facts.maxPacket()
	if ctr.maintainer != nil && ctr.Cfg.StallAfter > 0 {
		w.IsWorking = func() bool { return l.host.stalls.IsWorkingOn(w) }
	}
	switch {
	case beacon != "":
		w.Beacon = beacon
	case ctr.needsBeacon(direct):
		return takeBeacon(ctx, &l.driverConn, w)
	}
	return nil
}

// identifyServer asks the facts, if they were not asked before, and the rest of a server that is
// new to the pool. It returns the name of the beacon that was taken. A server that refuses to
// answer is used without.
func (ctr *Connector) identifyServer(ctx context.Context, l *link) (direct bool, beacon string, err error) {
	if ctr.servers.askNothing.Load() {
		return false, "", nil
	}
	e := l.early
	if e == nil {
		e = &earlyFacts{}
		e.facts, e.beacon, _, err = queryFacts(ctx, &l.driverConn, ctr.firstBeacon(l), "")
	}
	switch {
	case driverconn.IsAnswer(err):
		ctr.Cfg.Log.Debug("livepool: the server does not say who it is: no setting is fitted to its wait_timeout, "+
			"a lock wait that is too long counts as the end of its transaction, and what is abandoned there is killed only by a beacon",
			slog.String("addr", ctr.addrOf(l)), slog.Any("cause", err))
		return false, "", nil
	case err != nil:
		return false, "", err
	}
	server, err := ctr.serverFor(ctx, l, e.facts)
	if err != nil {
		return false, "", err
	}
	l.facts, l.early = e.facts, nil
	ctr.noteReached(l.facts.identity.Server)
	ctr.fitToWaitTimeout(l, server)
	return server.direct && l.facts.isHandshakeID(l.wire), e.beacon, nil
}

// serverFor returns what is known of a connection's server. Of the connections that are
// opened at the same time to a new server only the first asks; the others wait.
func (ctr *Connector) serverFor(ctx context.Context, l *link, facts *serverFacts) (*knownServer, error) {
	ss := &ctr.servers
	if s := ss.get(facts.identity.Server); s != nil {
		return s, nil
	}
	release, err := acquire(ctx, ss.identifying)
	if err != nil {
		return nil, err
	}
	defer release()
	if s := ss.get(facts.identity.Server); s != nil {
		return s, nil
	}
	seen, err := proclist.QueryView(ctx, &l.driverConn)
	notReady := mysqlerr.IsNodeNotReady(err) // and to be asked again when it is
	if seen.InCluster || notReady {
		ctr.InCluster.Store(true)
	}
	if err != nil && (notReady || !driverconn.IsAnswer(err)) {
		return nil, err
	}
	s := &knownServer{direct: seen.IsDirect(l.wire) && facts.isHandshakeID(l.wire)}
	if ctr.Cfg.Beacon == beaconOff && l.wire != nil && !facts.isHandshakeID(l.wire) {
		ss.askNothing.Store(true)
	}
	ss.add(facts.identity.Server, s)
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

// noteReached notes that a connection to a server was opened. If the last one was to another
// server, the pool has come back to this one: what it acknowledged before, the other one has had
// since, whatever that lacks of what follows. Where several servers are used at the same time
// the pool has never left one to which it is connected.
func (ctr *Connector) noteReached(name string) {
	ss := &ctr.servers
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.known[name]; s != nil && ss.latest != name && (ctr.followsPrimary() || !ctr.isConnectedTo(name)) {
		s.lastKey = ""
	}
	ss.latest = name
}

// isConnectedTo says whether one of the pool's connections leads to a server.
func (ctr *Connector) isConnectedTo(name string) bool {
	return slices.ContainsFunc(ctr.snapshot(), func(c *conn) bool {
		server := c.currentServer.Load()
		return server != nil && *server == name
	})
}

// noteCommit notes the key of a unit whose COMMIT the server has acknowledged.
func (ss *servers) noteCommit(name, key string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.known[name]; s != nil {
		s.lastKey = key
	}
}

// Witness says what must be on a server, by name, before it can tell what became of a COMMIT
// that was sent to another one: the key of the last unit that the other had acknowledged.
// Transactions are replicated in their order, asynchronously maybe: a server that lacks that
// unit has taken over without the last of them, and knows nothing of the COMMIT. In a Galera
// cluster a transaction of the probe's own is proof enough.
func (ctr *Connector) Witness(sentTo, name string) (key string, needed bool) {
	if sentTo == name || sentTo == "" || name == "" || ctr.InCluster.Load() {
		return "", false
	}
	ss := &ctr.servers
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.known[sentTo]; s != nil {
		key = s.lastKey
	}
	return key, true
}

// needsBeacon says whether a connection needs a beacon to be found on the server later.
// It is direct where the server sees its own port.
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

// newBeaconName is a lock name that nobody else has. By it another connection finds the
// server's id of the connection that holds the lock.
func newBeaconName() string { return "livepool:" + rand.Text() }

// takeBeacon takes a beacon in a query of its own. If the server refuses, the connection
// has none.
func takeBeacon(ctx context.Context, in *driverconn.Conn, w *proclist.Thread) error {
	name := newBeaconName()
	row, err := in.QueryRow(ctx, "SELECT GET_LOCK('"+name+"', 0)")
	switch {
	case mysqlerr.Number(err) != 0:
		return nil
	case err != nil:
		return err
	case row[0] == "1":
		w.Beacon = name
	}
	return nil
}
