// connector.go opens: the Pool that users hold and the connector below it. What a
// connection does afterwards is conn.go's affair.

package connector

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/committable"
	"github.com/livepool/livepool/internal/wire"
)

// Connector opens the connections of one pool and holds what they share.
type Connector struct {
	driverConnector driver.Connector
	sideConnector   driver.Connector // for connections beside the pool: they may send several statements at a time
	Cfg             *Settings
	addr            string // for errors and logs, without user and password
	// schema is the DSN's, "" for none or where it is not known. newConnector sets it.
	schema      string
	CommitTable committable.Table
	clock       *clock.Clock

	ownDialer   bool // livepool's dialer is in use
	peekSockets bool // livepool looks at the socket itself
	IsMySQL     bool // the driver is the MySQL driver
	// callsBeforeConnect: each attempt to connect calls the user's BeforeConnect.
	callsBeforeConnect bool
	// keepParkedAlive: connections whose owners are elsewhere are kept alive. It is set
	// before the first is opened.
	keepParkedAlive bool

	maintainer       *maintainer // nil for a connector without a Pool
	maintainerAsleep atomic.Bool // it waits until a connection is taken, opened or closed
	Ctx              context.Context
	cancel           context.CancelFunc

	mu              sync.Mutex // guards what follows
	conns           map[*conn]struct{}
	spares          []*conn
	spareReady      chan struct{}             // a spare has come, for those who open a connection meanwhile
	rechecks        map[*pendingPing]struct{} // links that database/sql does not have, and that are being asked
	background      sync.WaitGroup            // what outlives its caller
	connectAttempts sync.WaitGroup            // to connect
	closed          bool

	generation atomic.Uint64 // one more with each Recycle
	news       news
	roundTrip  roundTrip
	demotion   demotion
	// rejectReadOnly is the driver's setting, which livepool takes over: even a
	// session that was made read-only is left for another. Set when it is opened.
	rejectReadOnly bool
	// InCluster: a server that it has met is a node of a Galera cluster. One may
	// answer and do no work; and what it neither has nor locks, another may.
	InCluster         atomic.Bool
	Limits            limits
	minKeepAliveNanos atomic.Int64 // keep-alive of the links so far, in ns
	servers           servers
	reaper            reaper
	slowCommits       slowCommits
	Outage            outage

	Stats counters
}

// New makes a connector that opens connections by c, or where that is nil,
// by the MySQL driver with livepool's dialer below it. cfg is its own from here on.
func New(c driver.Connector, cfg *Settings) (*Connector, error) {
	ctr := &Connector{driverConnector: c, sideConnector: c, Cfg: cfg, clock: clock.New(), addr: "the database", conns: map[*conn]struct{}{},
		rechecks: map[*pendingPing]struct{}{}, spareReady: make(chan struct{}, 1)}
	ctr.news.init()
	ctr.Limits.Open.Store(int64(ctr.Cfg.MaxOpenConns()))
	ctr.minKeepAliveNanos.Store(int64(ctr.Cfg.KeepAlive))
	ctr.servers = servers{identifying: make(chan struct{}, 1), known: map[string]*knownServer{}}
	ctr.Outage.init(ctr.Cfg.ConnectLimit)
	ctr.Ctx, ctr.cancel = context.WithCancel(context.Background())
	if c != nil {
		_, ctr.IsMySQL = c.Driver().(*mysql.MySQLDriver)
		ctr.CommitTable = committable.New(ctr.Cfg.CommitTable, "", false)
		return ctr, nil
	}
	if err := ctr.useDriver(ctr.Cfg.MySQL); err != nil {
		return nil, err
	}
	ctr.CommitTable = committable.New(ctr.Cfg.CommitTable, ctr.schema, true)
	return ctr, nil
}

// address is where my leads, with what the driver fills in where it says nothing.
func address(my *mysql.Config) string {
	network, addr := cmp.Or(my.Net, "tcp"), my.Addr
	switch {
	case addr == "" && network == "tcp":
		addr = "127.0.0.1:3306"
	case addr == "" && network == "unix":
		addr = "/tmp/mysql.sock"
	}
	return fmt.Sprintf("%s(%s)", network, addr)
}

// hasBeforeConnect says whether the user's BeforeConnect is called for each
// attempt, which the driver does not show otherwise.
func hasBeforeConnect(my *mysql.Config) bool {
	f := reflect.ValueOf(my).Elem().FieldByName("beforeConnect")
	return f.IsValid() && f.Kind() == reflect.Func && !f.IsNil()
}

func isStandardNetwork(network string) bool {
	switch network {
	case "", "tcp", "tcp4", "tcp6", "unix":
		return true
	}
	return false
}

// Who calls Connect: that goroutine of database/sql, and a caller's own.
const (
	sqlOpener = "database/sql.(*DB).openNewConnection"
	sqlConn   = "database/sql.(*DB).conn"
)

// callerInSQL is the innermost function of database/sql that is being called
// through, "" for none. Nothing but the stack tells. Should Connect be called
// otherwise one day, it dials for that goroutine as for anyone.
func callerInSQL() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		frame, more := frames.Next()
		if strings.HasPrefix(frame.Function, "database/sql.") {
			return frame.Function
		}
		if !more {
			return ""
		}
	}
}

// ErrPoolClosed is for what would wait for, or open, a connection after Close.
var ErrPoolClosed = errors.New("livepool: the pool is closed")

// useDriver makes the connector one of the MySQL driver's, with livepool's
// dialer around it. A network that was registered with the driver under a name
// of its own is dialled by the driver, which does not let its dialer be seen.
func (ctr *Connector) useDriver(my *mysql.Config) error {
	if my.DialFunc != nil || isStandardNetwork(my.Net) {
		ctr.ownDialer, ctr.peekSockets = true, my.CheckConnLiveness
		my.DialFunc, my.CheckConnLiveness = wire.WrapDialer(my.DialFunc), false
	}
	// The driver would say of a refused statement that it was not sent, though a
	// part of it may have run; what is sent elsewhere is decided in failure.go.
	ctr.rejectReadOnly, my.RejectReadOnly = my.RejectReadOnly, false
	ctr.Cfg.warnOfTimeouts()
	if limit := ctr.Cfg.ConnectTimeout; my.Timeout > limit {
		ctr.Cfg.Log.Warn(fmt.Sprintf("livepool: the driver's timeout of %s is cut short by ConnectTimeout (pool_connect_timeout), which is %s and bounds dial, handshake and login together: raise it, or leave it out", my.Timeout, limit),
			slog.String("addr", address(my)))
	}
	ctr.callsBeforeConnect = hasBeforeConnect(my)
	if my.Logger != nil {
		my.Logger = &quietLogger{my.Logger, &ctr.Outage, ctr.Cfg}
	}
	inner, err := mysql.NewConnector(my)
	if err != nil {
		return fmt.Errorf("livepool: the driver refuses Config.MySQL: %w", err)
	}
	several := my.Clone()
	several.MultiStatements = true
	if ctr.sideConnector, err = mysql.NewConnector(several); err != nil {
		return fmt.Errorf("livepool: the driver refuses Config.MySQL: %w", err)
	}
	ctr.driverConnector = inner
	ctr.IsMySQL = true
	ctr.schema = my.DBName
	ctr.addr = address(my)
	return nil
}

// Driver returns the driver's own.
func (ctr *Connector) Driver() driver.Driver { return ctr.driverConnector.Driver() }

// Close stops what runs in the background, and closes the driver's connector if
// it can be closed. sql.DB.Close calls it, once. What was abandoned shortly
// before is still ended on the server, within PingTimeout.
func (ctr *Connector) Close() error {
	m := ctr.maintainer
	if m != nil {
		m.stop()
	}
	ctr.reaper.drain(ctr.Cfg.PingTimeout)
	ctr.cancel()
	if m != nil {
		<-m.done
	}
	ctr.mu.Lock()
	ctr.closed = true
	ctr.mu.Unlock()
	ctr.background.Wait()
	ctr.awaitAttempts()
	ctr.closeSpares()
	ctr.clock.Close()
	if closer, ok := ctr.driverConnector.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// Connect opens a connection within ConnectTimeout, from when it is its turn.
//
// For callers who wait because the pool is at its limit, database/sql has one
// goroutine open connections, one after the other and with a context that never
// ends: a server that accepts and says nothing would keep them all waiting, and
// a caller with little patience would be served by the patience of that
// goroutine. It therefore gets a shell at once, which its caller fills at the
// first use: in his own goroutine, under his own context, at the same time as
// the others.
func (ctr *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	noteSessionServed(ctx)
	ctr.SyncLimits()
	c := ctr.register(&conn{ctr: ctr, needsCheck: true, unconnected: true})
	if callerInSQL() == sqlOpener {
		return c, nil
	}
	l, _, err := ctr.takeOrDial(ctx)
	if err != nil {
		ctr.forget(c)
		return nil, err
	}
	c.attach(l)
	c.needsCheck = true
	c.trackCheckout("")
	c.park()
	return c, nil
}

// spawn runs f in the background, but not once the connector is closed, which
// waits for all that runs there.
func (ctr *Connector) spawn(f func()) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.closed {
		return false
	}
	ctr.background.Go(f)
	return true
}

func (ctr *Connector) register(c *conn) *conn {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.conns[c] = struct{}{}
	ctr.Limits.peakConns = max(ctr.Limits.peakConns, len(ctr.conns))
	ctr.makeRoom()
	return c
}

func (ctr *Connector) forget(c *conn) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	delete(ctr.conns, c)
	ctr.noteActivity()
	ctr.Stats.Reused.Add(c.reuses.Load())
}
