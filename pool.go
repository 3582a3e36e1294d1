// pool.go opens: the Pool that users hold and the connector below it. What a
// connection does afterwards is conn.go's affair.

package livepool

import (
	"cmp"
	"context"
	"database/sql"
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
)

// Pool is a *sql.DB whose connections are alive when they are handed out. All
// of sql.DB's methods work; it is safe for concurrent use.
//
// The limits that Config sets are those of the sql.DB: instead of SetMaxOpenConns
// and SetMaxIdleConns use PoolSize and MaxOverflow, instead of SetConnMaxLifetime
// Recycle, and instead of SetConnMaxIdleTime IdleTimeout. A call that was left in
// is told once, as a warning, when it shows. The limit of SetMaxOpenConns holds
// for all that the pool opens, MinIdle included, and for sessions, from the next
// connection, session or look of the maintainer on; what was ready above it is
// then closed.
type Pool struct {
	*sql.DB
	cfg    *Config // the pool's own
	ctr    *connector
	places places

	beginning atomic.Int32 // sessions that have a place and take a connection
	unbounded atomic.Int32 // of those, the ones that need not wait for it
}

// Open opens a pool on a driver's DSN with livepool's pool_* parameters in it;
// see ParseDSN and Config. Like sql.Open it does not dial.
func Open(dsn string) (*Pool, error) {
	cfg, err := ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	return OpenConfig(cfg)
}

// OpenConfig opens a pool on cfg, of which MySQL must be set. It does not dial.
func OpenConfig(cfg *Config) (*Pool, error) {
	if cfg == nil {
		return nil, errors.New("livepool: OpenConfig takes a Config; NewConfig or ParseDSN makes one")
	}
	return openPool(nil, cfg)
}

// OpenConnector opens a pool on any database/sql driver. A nil cfg means the
// defaults; cfg.MySQL is not used. Since livepool does not dial here, the look
// at the socket is the driver's own, if it has one.
func OpenConnector(c driver.Connector, cfg *Config) (*Pool, error) {
	if c == nil {
		return nil, errors.New("livepool: OpenConnector takes a driver.Connector; to have livepool dial MySQL itself, use OpenConfig")
	}
	return openPool(c, cfg)
}

// NewConnector returns a connector for sql.OpenDB and its like. Nothing runs in
// the background for it, and the size of the pool is the caller's to set on the
// sql.DB: its default keeps two idle connections. With a nil c it connects to
// cfg.MySQL, with livepool's dialer; a nil cfg means the defaults. It may be
// wrapped by a connector that sets up each connection in its Connect: one that
// has died is never replaced beneath it.
func NewConnector(c driver.Connector, cfg *Config) (driver.Connector, error) {
	ctr, _, err := openConnector(c, cfg)
	if err != nil {
		return nil, err // and not a nil *connector, which would be no nil driver.Connector
	}
	return ctr, nil
}

func openPool(c driver.Connector, cfg *Config) (*Pool, error) {
	ctr, cfg, err := openConnector(c, cfg)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(ctr)
	db.SetMaxOpenConns(ctr.cfg.limit())
	db.SetMaxIdleConns(cfg.PoolSize)
	db.SetConnMaxIdleTime(cfg.IdleTimeout)
	p := &Pool{DB: db, cfg: cfg, ctr: ctr}
	p.places.init(ctr.cfg.limit(), ctr.serve(db, p.places.setLimit), errPoolClosed)
	ctr.start()
	return p, nil
}

// openConnector makes the connector, and returns its settings: a copy, completed.
func openConnector(c driver.Connector, cfg *Config) (*connector, *Config, error) {
	if cfg == nil {
		cfg = NewConfig()
	}
	if err := cfg.validate(); err != nil {
		return nil, nil, err
	}
	cfg = cfg.clone()
	switch {
	case c != nil:
		cfg.MySQL = nil
	case cfg.MySQL == nil:
		return nil, nil, errors.New("livepool: Config.MySQL is not set: it says where the server is; " +
			"ParseDSN sets it, or set it to a *mysql.Config of the driver's")
	default:
		cfg.fitConnectTimeout()
	}
	ctr, err := newConnector(c, cfg.settings())
	return ctr, cfg, err
}

// GetDBConn returns the *sql.DB itself; GORM asks for it.
func (p *Pool) GetDBConn() (*sql.DB, error) { return p.DB, nil }

// Close closes the pool and stops what runs in the background for it; so does
// Close of the *sql.DB alone. It is idempotent. What is in use is closed when
// it is returned.
func (p *Pool) Close() error { return p.DB.Close() }

// connector opens the connections of one pool and holds what they share.
type connector struct {
	inner driver.Connector
	side  driver.Connector // for connections beside the pool: they may send several statements at a time
	cfg   *settings
	addr  string // for errors and logs, without user and password
	// schema is the DSN's, "" for none or where it is not known. newConnector sets it.
	schema  string
	commits commitTable
	clock   *clock

	tapped bool // livepool's dialer is in use
	peeks  bool // livepool looks at the socket itself
	mysql  bool // the driver is the MySQL driver
	// asksForToken: each attempt to connect calls the user's BeforeConnect.
	asksForToken bool
	// keepsHeld: connections whose owners are elsewhere are kept alive. It is set
	// before the first is opened.
	keepsHeld bool

	maintainer *maintainer // nil for a connector without a Pool
	asleep     atomic.Bool // it waits until a connection is taken, opened or closed
	life       context.Context
	end        context.CancelFunc

	mu         sync.Mutex // guards what follows
	conns      map[*conn]struct{}
	spares     []*conn
	ready      chan struct{}         // a spare has come, for those who open a connection meanwhile
	aside      map[*pinging]struct{} // links that database/sql does not have, and that are being asked
	background sync.WaitGroup        // what outlives its caller
	attempts   sync.WaitGroup        // to connect
	closed     bool

	generation atomic.Uint64 // one more with each Recycle
	news       news
	roundTrip  roundTrip
	demotion   demotion
	// rejectsReadOnly is the driver's setting, which livepool takes over: even a
	// session that was made read-only is left for another. Set when it is opened.
	rejectsReadOnly bool
	// inCluster: a server that it has met is a node of a Galera cluster. One may
	// answer and do no work; and what it neither has nor locks, another may.
	inCluster atomic.Bool
	limits    limits
	shortest  atomic.Int64 // keep-alive of the links so far, in ns
	servers   servers
	reaper    reaper
	heldUp    heldUp
	outage    outage

	stats counters
}

// newConnector makes a connector that opens connections by c, or where that is nil,
// by the MySQL driver with livepool's dialer below it. cfg is its own from here on.
func newConnector(c driver.Connector, cfg *settings) (*connector, error) {
	ctr := &connector{inner: c, side: c, cfg: cfg, clock: newClock(), addr: "the database", conns: map[*conn]struct{}{},
		aside: map[*pinging]struct{}{}, ready: make(chan struct{}, 1)}
	ctr.news.init()
	ctr.limits.open.Store(int64(ctr.cfg.limit()))
	ctr.shortest.Store(int64(ctr.cfg.KeepAlive))
	ctr.servers = servers{asking: make(chan struct{}, 1), known: map[string]*knownServer{}}
	ctr.outage.init(ctr.cfg.ConnectLimit)
	ctr.life, ctr.end = context.WithCancel(context.Background())
	if c != nil {
		_, ctr.mysql = c.Driver().(*mysql.MySQLDriver)
		ctr.commits = newCommitTable(ctr.cfg.CommitTable, "", false)
		return ctr, nil
	}
	if err := ctr.useDriver(ctr.cfg.MySQL); err != nil {
		return nil, err
	}
	ctr.commits = newCommitTable(ctr.cfg.CommitTable, ctr.schema, true)
	return ctr, nil
}

// useDriver makes the connector one of the MySQL driver's, with livepool's
// dialer around it. A network that was registered with the driver under a name
// of its own is dialled by the driver, which does not let its dialer be seen.
func (ctr *connector) useDriver(my *mysql.Config) error {
	if my.DialFunc != nil || standardNetwork(my.Net) {
		ctr.tapped, ctr.peeks = true, my.CheckConnLiveness
		my.DialFunc, my.CheckConnLiveness = wiretap(my.DialFunc), false
	}
	// The driver would say of a refused statement that it was not sent, though a
	// part of it may have run; what is sent elsewhere is decided in failure.go.
	ctr.rejectsReadOnly, my.RejectReadOnly = my.RejectReadOnly, false
	ctr.cfg.warnOfTimeouts()
	if limit := ctr.cfg.ConnectTimeout; my.Timeout > limit {
		ctr.cfg.Log.Warn(fmt.Sprintf("livepool: the driver's timeout of %s is cut short by ConnectTimeout (pool_connect_timeout), which is %s and bounds dial, handshake and login together: raise it, or leave it out", my.Timeout, limit),
			slog.String("addr", address(my)))
	}
	ctr.asksForToken = hasBeforeConnect(my)
	if my.Logger != nil {
		my.Logger = &hushed{my.Logger, &ctr.outage, ctr.cfg}
	}
	inner, err := mysql.NewConnector(my)
	if err != nil {
		return fmt.Errorf("livepool: the driver refuses Config.MySQL: %w", err)
	}
	several := my.Clone()
	several.MultiStatements = true
	if ctr.side, err = mysql.NewConnector(several); err != nil {
		return fmt.Errorf("livepool: the driver refuses Config.MySQL: %w", err)
	}
	ctr.inner = inner
	ctr.mysql = true
	ctr.schema = my.DBName
	ctr.addr = address(my)
	return nil
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

func standardNetwork(network string) bool {
	switch network {
	case "", "tcp", "tcp4", "tcp6", "unix":
		return true
	}
	return false
}

// Driver returns the driver's own.
func (ctr *connector) Driver() driver.Driver { return ctr.inner.Driver() }

// Close stops what runs in the background, and closes the driver's connector if
// it can be closed. sql.DB.Close calls it, once. What was abandoned shortly
// before is still ended on the server, within PingTimeout.
func (ctr *connector) Close() error {
	m := ctr.maintainer
	if m != nil {
		m.stop()
	}
	ctr.reaper.finish(ctr.cfg.PingTimeout)
	ctr.end()
	if m != nil {
		<-m.done
	}
	ctr.mu.Lock()
	ctr.closed = true
	ctr.mu.Unlock()
	ctr.background.Wait()
	ctr.awaitAttempts()
	ctr.closeSpares()
	ctr.clock.close()
	if closer, ok := ctr.inner.(io.Closer); ok {
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
func (ctr *connector) Connect(ctx context.Context) (driver.Conn, error) {
	servesSession(ctx)
	ctr.follow()
	c := ctr.register(&conn{ctr: ctr, unchecked: true, shell: true})
	if callerInSQL() == sqlOpener {
		return c, nil
	}
	l, _, err := ctr.obtain(ctx)
	if err != nil {
		ctr.forget(c)
		return nil, err
	}
	c.fill(l)
	c.unchecked = true
	c.holds("")
	c.rest()
	return c, nil
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

// errPoolClosed is for what would wait for, or open, a connection after Close.
var errPoolClosed = errors.New("livepool: the pool is closed")

// spawn runs f in the background, but not once the connector is closed, which
// waits for all that runs there.
func (ctr *connector) spawn(f func()) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.closed {
		return false
	}
	ctr.background.Go(f)
	return true
}

func (ctr *connector) register(c *conn) *conn {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	ctr.conns[c] = struct{}{}
	ctr.limits.most = max(ctr.limits.most, len(ctr.conns))
	ctr.makeRoom()
	return c
}

func (ctr *connector) forget(c *conn) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	delete(ctr.conns, c)
	ctr.wakes()
	ctr.stats.reused.Add(c.reused.Load())
}
