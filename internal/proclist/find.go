// find.go finds the server's thread of a connection, and what it is doing. What follows
// from that is in orphans.go (KILL) and stall.go (a lost reply); both act only on proof
// from here.

package proclist

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/wire"
)

// View is what the server's processlist shows of a connection.
type View struct {
	user      string // "" if the processlist does not show it
	host      string // where it comes from, without the port
	port      string
	InCluster bool // the server says that it is a node of a Galera cluster
}

// The processlist is a scan of all threads, and on MySQL may block them: it is asked
// once for each server, and by each side connection. Only MariaDB sees wsrepOnColumn,
// which is NULL where it was built without Galera.
const (
	viewQuery = "SELECT p.USER, p.HOST" + wsrepOnColumn +
		" FROM (SELECT 1) AS me LEFT JOIN information_schema.PROCESSLIST AS p ON p.ID = CONNECTION_ID()"
	wsrepOnColumn = " /*M!100101 , (SELECT GLOBAL_VALUE FROM information_schema.SYSTEM_VARIABLES WHERE VARIABLE_NAME = 'WSREP_ON') */"
)

// QueryView asks what the processlist shows of the connection itself. MySQL may not show
// a connection to itself: that of a proxy user or of an anonymous account.
func QueryView(ctx context.Context, in *driverconn.Conn) (v View, err error) {
	row, err := in.QueryRow(ctx, viewQuery)
	if err != nil {
		return v, err
	}
	if len(row) != 2 && len(row) != 3 {
		return v, fmt.Errorf("livepool: the server shows %d columns where 2 were asked for, or 3 of MariaDB", len(row))
	}
	v = View{user: row[0], host: row[1], InCluster: len(row) == 3 && row[2] == "ON"}
	if i := strings.LastIndexByte(v.host, ':'); i >= 0 {
		v.host, v.port = v.host[:i], v.host[i+1:]
	}
	return v, nil
}

// IsDirect says whether the server sees the connection come from its own port: not
// behind a proxy or NAT, and not on a unix socket, which has no port.
func (v *View) IsDirect(w *wire.Conn) bool {
	return w != nil && v.port != "" && v.port == localPort(w)
}

// localPort is the connection's own, "" if it has none.
func localPort(w *wire.Conn) string {
	if tcp, ok := w.LocalAddr().(*net.TCPAddr); ok {
		return strconv.Itoa(tcp.Port)
	}
	return ""
}

// isSamePath says whether two connections lead from the same address to the same
// address, where one port belongs to one connection at a time.
func isSamePath(a, b *wire.Conn) bool {
	from, ok := a.LocalAddr().(*net.TCPAddr)
	to, ok2 := b.LocalAddr().(*net.TCPAddr)
	return ok && ok2 && from.IP.Equal(to.IP) && a.RemoteAddr().String() == b.RemoteAddr().String()
}

// threadState is what the server says of a connection's thread.
type threadState int

const (
	threadUnknown       threadState = iota // nothing is proved
	threadOnOtherServer                    // another server has it
	threadNotFound                         // the thread is gone
	threadHidden                           // it is there; what it does is not shown
	threadIdle                             // it waits for the client
	threadRunning
	threadCommitting // it runs, and must not be killed: see stateOf
)

// isAtWork says whether the thread works on what it was sent.
func (s threadState) isAtWork() bool { return s == threadRunning || s == threadCommitting }

// foundThread is what was found of a connection's thread. id is an SQL expression for
// its id, "" where it must not be killed.
type foundThread struct {
	id string
	threadState
}

// findThreads looks for the threads of some connections: first who holds their beacons,
// then once in the processlist, which is a scan of all threads. It takes limit at most.
func (s *Side) findThreads(ctx context.Context, limit time.Duration, ws []*Thread) ([]foundThread, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	holders, err := s.beaconHolders(ctx, ws)
	if err != nil {
		return nil, err
	}
	found, queries := make([]foundThread, len(ws)), make([]threadQuery, len(ws))
	var ids []string
	for i, w := range ws {
		if found[i], queries[i] = s.threadQuery(w, holders[i]); queries[i].id != "" {
			ids = append(ids, queries[i].id)
		}
	}
	if len(ids) == 0 {
		return found, nil
	}
	// An idle thread is shown as Killed where its transaction was ended, as by a Galera
	// node in favour of another node's.
	rows, err := s.Conn.QueryRows(ctx, "SELECT ID, USER, HOST, IF(COMMAND = 'Killed' AND INFO IS NULL, 'Sleep', COMMAND), STATE"+
		" FROM information_schema.PROCESSLIST WHERE ID IN ("+strings.Join(ids, ", ")+")")
	if err != nil {
		return nil, err
	}
	for i, q := range queries {
		for _, row := range rows {
			if q.id != "" && q.matches(row) {
				found[i] = foundThread{q.killExpr, q.stateOf(row[3], row[4])}
			}
		}
	}
	return found, nil
}

// beaconHolders asks who holds the beacons; "" for one that nobody holds, and for a
// connection that has none.
func (s *Side) beaconHolders(ctx context.Context, ws []*Thread) ([]string, error) {
	all := make([]string, len(ws))
	var locks []string
	for _, w := range ws {
		if w.Beacon != "" {
			locks = append(locks, w.beaconHolderExpr())
		}
	}
	if len(locks) == 0 {
		return all, nil
	}
	row, err := s.Conn.QueryRow(ctx, "SELECT "+strings.Join(locks, ", "))
	if err != nil {
		return nil, err
	}
	for i, w := range ws {
		if w.Beacon != "" {
			all[i], row = row[0], row[1:]
		}
	}
	return all, nil
}

// beaconHolderExpr is an expression for the id of the thread that holds the beacon.
func (w *Thread) beaconHolderExpr() string { return "IS_USED_LOCK('" + w.Beacon + "')" }

// threadQuery is what the processlist is asked about one thread.
type threadQuery struct {
	id, user, host string // user and host are "" where any is right
	killExpr       string // by which it is killed, "" if it must not be
}

// matches says whether a row of the processlist is about the thread.
func (q *threadQuery) matches(row []string) bool {
	return row[0] == q.id && (q.user == "" || row[1] == q.user) && (q.host == "" || row[2] == q.host)
}

// stateOf is what it says of the thread. A thread that waits for the acknowledgement of a
// semi-synchronous replica must not be killed: MariaDB (10.11, 11.8) then ends the wait, and
// shows, and acknowledges for the others of its group too, what no replica has. One in the
// state Commit may be about to wait.
func (q *threadQuery) stateOf(command, state string) threadState {
	switch {
	case q.killExpr == "":
		return threadUnknown
	case command == "Sleep":
		return threadIdle
	case state == "Commit", strings.HasPrefix(state, "Waiting for semi-sync ACK"):
		return threadCommitting
	}
	return threadRunning
}

// threadQuery returns what to ask the processlist about a connection's thread, and the
// result that holds unless a row answers it.
//
// The holder of the beacon is the thread. If nobody holds it, the connection is gone or
// has released its locks (RELEASE_ALL_LOCKS). Without a beacon the thread is the one with
// the handshake's id, for the same user, from the connection's own port; that is proof
// only on a server that shows the side connection's own port too. A connection that is
// older than the server's start has no thread.
func (s *Side) threadQuery(w *Thread, holder string) (foundThread, threadQuery) {
	switch {
	case holder != "":
		return foundThread{w.beaconHolderExpr(), threadHidden}, threadQuery{id: holder, killExpr: w.beaconHolderExpr()}
	case s.identity == nil, w.Identity == nil:
		return foundThread{}, threadQuery{}
	case s.identity.Server != w.Identity.Server:
		return foundThread{threadState: threadOnOtherServer}, threadQuery{}
	case w.BornAt+2*time.Second < s.serverStarted: // it counts in whole seconds
		return foundThread{threadState: threadNotFound}, threadQuery{}
	}
	ifAbsent, q := threadUnknown, threadQuery{id: w.Identity.ConnectionID, user: w.Identity.User}
	if s.canSeeUser(w.Identity.User) {
		ifAbsent = threadNotFound
	}
	if w.Beacon == "" {
		if !s.direct || !isSamePath(s.Wire, w.Conn) || !w.Identity.IsHandshakeID(w.Conn) {
			return foundThread{}, threadQuery{}
		}
		q.host, q.killExpr = s.view.host+":"+localPort(w.Conn), q.id
	}
	return foundThread{threadState: ifAbsent}, q
}

// canSeeUser says whether the processlist shows the side connection the threads of a
// user. It does if it shows its own, and the user is the same. The threads of others (a
// proxy user, an anonymous account, a renamed user) may exist without being shown.
func (s *Side) canSeeUser(user string) bool { return s.view.user != "" && s.view.user == user }
