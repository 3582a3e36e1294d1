// Package connector is what stands below database/sql: it opens the connections of a
// pool, decides at each checkout whether one may be handed out, keeps idle ones alive,
// and turns a failure into what database/sql shall do about it. It does not run units of
// work again and defines no public API: the root calls New, gives the Connector to
// sql.OpenDB, and reads from it what became of a unit. This file has the Connector; how it
// dials is in connect.go, what a connection does afterwards in conn.go.
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
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/internal/wire"
)

// Connector opens the connections of one pool and holds what they share.
type Connector struct {
	hostList atomic.Pointer[[]*host] // at least one; hostname.go adds others
	hostSet  *hosts.Set              // nil where there is one host, whatever its role is
	names    names
	Cfg      *Settings
	Tracer   Tracer
	addr     string // of all hosts, for errors and logs, without user and password
	// schema is the DSN's; "": none, or not known. New sets it.
	schema      string
	CommitTable committable.Table
	clock       *clock.Clock

	ownDialer   bool // livepool's dialer is in use
	peekSockets bool // livepool peeks at the socket itself
	IsMySQL     bool // the driver is the MySQL driver
	// keepParkedAlive: checked-out connections on which nothing is sent are kept alive. It
	// is set before the first connection is opened.
	keepParkedAlive bool

	OnClose          func() error // what is to be closed with it, nil for nothing; a Pool sets it
	maintainer       *maintainer  // nil for a connector without a Pool
	maintainerAsleep atomic.Bool  // it waits until a connection is taken, opened or closed; others reset it to wake it
	Ctx              context.Context
	cancel           context.CancelFunc

	mu              sync.Mutex // guards the fields up to closed
	conns           map[*conn]struct{}
	spares          []*conn
	spareReady      chan struct{}             // signals a new spare to callers that dial meanwhile
	rechecks        map[*pendingPing]struct{} // links that database/sql does not have, and that are being pinged
	background      sync.WaitGroup            // goroutines that outlive their callers
	connectAttempts sync.WaitGroup            // goroutines that connect
	closed          bool

	news        news
	roundTrip   roundTrip
	demotion    demotion
	credentials credentials
	// rejectReadOnly is the driver's setting, which livepool takes over: a session that was
	// made read-only is replaced, too. New sets it.
	rejectReadOnly bool
	// InCluster: one of the servers was seen to be a node of a Galera cluster. A node may
	// answer and do no work; and a row that it neither has nor locks may be on another.
	InCluster         atomic.Bool
	unitsCall         atomic.Bool // a unit has called a procedure, which may turn autocommit on
	Limits            limits
	minKeepAliveNanos atomic.Int64 // the shortest keep-alive of the links so far, in ns
	servers           servers
	Outage            *outage.Gate
	readyDial         chan struct{} // has an element while Ready opens a connection
	Draining          atomic.Bool   // no new statement may run, because the pool is being shut down
	keptAttempts      atomic.Int64  // how many connect without their callers

	Stats counters
}

// New makes a connector that opens connections by c; if c is nil, by the MySQL driver with
// livepool's dialer below it. cfg belongs to the connector from now on.
func New(c driver.Connector, cfg *Settings) (*Connector, error) {
	ctr := &Connector{Cfg: cfg, clock: clock.New(), addr: "the database", conns: map[*conn]struct{}{},
		rechecks: map[*pendingPing]struct{}{}, spareReady: make(chan struct{}, 1), readyDial: make(chan struct{}, 1)}
	var err error
	if ctr.Tracer, err = NewTracer(cfg.Tracer, cfg.Log); err != nil {
		return nil, err
	}
	ctr.news.init()
	ctr.Limits.Open.Store(int64(ctr.Cfg.MaxOpenConns()))
	ctr.minKeepAliveNanos.Store(int64(ctr.Cfg.KeepAlive))
	ctr.servers = servers{identifying: make(chan struct{}, 1), known: map[string]*knownServer{}}
	ctr.Ctx, ctr.cancel = context.WithCancel(context.Background())
	if c != nil {
		_, ctr.IsMySQL = c.Driver().(*mysql.MySQLDriver)
		ctr.hostList.Store(&[]*host{{addr: ctr.addr, connector: c, side: c}})
	} else if err := ctr.useDriver(ctr.Cfg.MySQL); err != nil {
		return nil, err
	}
	if err := ctr.wrapDriver(); err != nil {
		return nil, err
	}
	ctr.CommitTable = committable.New(ctr.Cfg.CommitTable, ctr.schema, c == nil)
	ctr.Outage = ctr.newGate()
	for _, h := range ctr.hosts() {
		ctr.initProclist(h, bareReapLimit)
	}
	return ctr, nil
}

// address is the address that my names, with the defaults of the driver.
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

// hasBeforeConnect says whether the driver calls a BeforeConnect of the user's for each
// attempt. The driver has no other way to ask.
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

// The callers of Connect: database/sql's own goroutine, and the goroutine of a caller.
const (
	sqlOpener = "database/sql.(*DB).openNewConnection"
	sqlConn   = "database/sql.(*DB).conn"
)

// callerInSQL is the innermost function of database/sql on the stack, "" for none. Only
// the stack shows who calls. If database/sql renames the function, Connect dials in that
// goroutine as it does for any caller.
func callerInSQL() string {
	return innermostFunc(func(name string) bool { return strings.HasPrefix(name, "database/sql.") })
}

// innermostFunc is the name of the innermost function on the stack for which is holds, ""
// for none. It leaves out its caller.
func innermostFunc(is func(name string) bool) string {
	var pcs [48]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		frame, more := frames.Next()
		if is(frame.Function) {
			return frame.Function
		}
		if !more {
			return ""
		}
	}
}

// ErrPoolClosed is the error of whatever needs a connection after Close.
var ErrPoolClosed = errors.New("livepool: the pool is closed")

// AsPoolClosed is err, in the place of database/sql's own error for a closed pool, which is not
// exported, ErrPoolClosed: database/sql has it before Close is called.
func AsPoolClosed(err error) error {
	if err != nil && err.Error() == "sql: database is closed" {
		return ErrPoolClosed
	}
	return err
}

// useDriver has the connector use the MySQL driver with a wrapped dialer. A network that
// was registered with the driver under a name of its own is dialed by the driver, which
// does not give access to that dialer.
func (ctr *Connector) useDriver(my *mysql.Config) error {
	resolvesNames := my.DialFunc == nil
	if my.DialFunc != nil || isStandardNetwork(my.Net) {
		ctr.ownDialer, ctr.peekSockets = true, my.CheckConnLiveness
		my.DialFunc, my.CheckConnLiveness = wire.WrapDialer(my.DialFunc), false
	}
	// With it the driver would report a refused statement as not sent, though a part of it
	// may have run. failure.go decides what is sent again.
	ctr.rejectReadOnly, my.RejectReadOnly = my.RejectReadOnly, false
	ctr.Cfg.warnOfTimeouts()
	if limit := ctr.Cfg.ConnectTimeout; my.Timeout > limit {
		ctr.Cfg.Log.Warn(fmt.Sprintf("livepool: the driver's timeout of %s is cut short by ConnectTimeout (pool_connect_timeout), which is %s and bounds dial, handshake and login together: raise it, or leave it out", my.Timeout, limit),
			slog.String("addr", address(my)))
	}
	my.Logger = ctr.driverLogger(my.Logger)
	if err := ctr.makeHosts(my, resolvesNames); err != nil {
		return fmt.Errorf("livepool: the driver refuses Config.MySQL: %w", err)
	}
	ctr.IsMySQL = true
	ctr.schema = my.DBName
	return nil
}

// wrapDriver has Config.Wrap wrap the driver's connectors.
func (ctr *Connector) wrapDriver() error {
	wrap := ctr.Cfg.Wrap
	if wrap == nil {
		return nil
	}
	for _, h := range ctr.hosts() {
		for _, c := range []*driver.Connector{&h.connector, &h.side} {
			inner := *c
			if !ctr.Cfg.catchPanic("Config.Wrap", func() { *c = wrap(inner) }) || *c == nil {
				return errors.New("livepool: Config.Wrap panicked, or returned no connector")
			}
		}
	}
	return nil
}

// Driver returns the driver's own.
func (ctr *Connector) Driver() driver.Driver { return ctr.hosts()[0].connector.Driver() }

// Close stops what runs in the background, and closes the driver's connectors if they can
// be closed. sql.DB.Close calls it, once. The orphans of connections that were abandoned
// shortly before are still killed, within PingTimeout.
func (ctr *Connector) Close() error {
	var errs []error
	m := ctr.maintainer
	if m != nil {
		m.stop()
	}
	ctr.drainReapers()
	ctr.cancel()
	if ctr.OnClose != nil { // which takes a while: the callers of this pool are told by now
		errs = append(errs, ctr.OnClose())
	}
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
	for _, h := range ctr.hosts() {
		if closer, ok := h.connector.(io.Closer); ok && h.at == "" {
			errs = append(errs, closer.Close())
		}
	}
	return errors.Join(errs...)
}

// Connect opens a connection within ConnectTimeout, once it may dial.
//
// For callers that wait because the pool is at its limit, database/sql opens connections
// in one goroutine, one after the other, with a context that never ends. A server that
// accepts and says nothing would keep them all waiting, and a caller with a short
// deadline would wait for as long as that goroutine does. So that goroutine gets an
// unconnected conn at once, and the caller that uses it first connects it: in its own
// goroutine, under its own context, in parallel with the others.
func (ctr *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	noteSessionServed(ctx)
	ctr.SyncLimits()
	c := ctr.register(&conn{ctr: ctr, needsCheck: true, unconnected: true})
	if callerInSQL() == sqlOpener {
		return c, nil
	}
	l, err := ctr.takeTrustedOrDial(ctx)
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

// spawn runs f in the background, and says whether it does: not after Close, which waits
// for all that runs there.
func (ctr *Connector) spawn(f func()) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.closed {
		return false
	}
	ctr.background.Go(f)
	return true
}

// register adds c to the connections of the pool.
func (ctr *Connector) register(c *conn) *conn {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.conns[c] = struct{}{}
	ctr.Limits.peakConns = max(ctr.Limits.peakConns, len(ctr.conns))
	ctr.makeRoom()
	return c
}

// forget removes c from them.
func (ctr *Connector) forget(c *conn) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	delete(ctr.conns, c)
	ctr.noteActivity()
	ctr.Stats.Reused.Add(c.reuses.Load())
}
