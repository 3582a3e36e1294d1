package livepool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/fifo"
)

// Pool is a *sql.DB whose connections are alive when they are handed out. All
// of sql.DB's methods work; it is safe for concurrent use.
//
// The limits that Config sets are those of the sql.DB: instead of SetMaxOpenConns
// and SetMaxIdleConns use PoolSize and MaxOverflow, instead of SetConnMaxLifetime
// Recycle, and instead of SetConnMaxIdleTime IdleTimeout. A call that was left in
// is logged once, as a warning, when it is noticed. SetMaxOpenConns also limits MinIdle
// and sessions. It takes effect at the next connection, session or round of the
// maintainer; idle connections above it are then closed.
type Pool struct {
	*sql.DB
	cfg   *Config // the pool's own
	ctr   *connector.Connector
	queue fifo.Queue

	underWay        atomic.Int64 // units of work, and functions of Retry
	begins          atomic.Int32 // sessions that have a place and take a connection
	unboundedBegins atomic.Int32 // of those, the ones that need not wait for it

	replicas replicas
	above    *Pool // of a pool on replicas, the one whose units it serves

	bypassedMu sync.Mutex
	bypassed   map[string]bool // units beside whose transaction the pool was used, see checkContext; guarded by bypassedMu
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
// wrapped by a connector that sets up each connection in its Connect: a dead connection is
// not replaced beneath it, so that the setup runs again.
func NewConnector(c driver.Connector, cfg *Config) (driver.Connector, error) {
	ctr, _, err := openConnector(c, cfg)
	if err != nil {
		return nil, err // and not a nil *connector, which would be no nil driver.Connector
	}
	return ctr, nil
}

// sqlDriver is for tools that open by a driver's name: sql.Open("livepool", dsn).
type sqlDriver struct{ byDSN sync.Map }

func init() { sql.Register("livepool", &sqlDriver{}) } //nolint:gochecknoinits // a driver has no other way to become known

// OpenConnector is NewConnector for a DSN. There is no Pool then: no units of work, nothing
// in the background, and the size of the pool is set on the sql.DB. So pool_size and the
// others of a Pool's settings are read and have no effect.
func (d *sqlDriver) OpenConnector(dsn string) (driver.Connector, error) {
	cfg, err := ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	ctr, _, err := openConnector(nil, cfg)
	if err != nil {
		return nil, err
	}
	return &namedConnector{ctr, d}, nil
}

// namedConnector is one whose driver, which wrappers ask for by its name, is livepool's.
type namedConnector struct {
	*connector.Connector
	driver driver.Driver
}

func (c *namedConnector) Driver() driver.Driver { return c.driver }

// Open is for wrappers that know no OpenConnector. What the connections of one DSN have in
// common is kept for as long as the program runs.
func (d *sqlDriver) Open(dsn string) (driver.Conn, error) {
	c, ok := d.byDSN.Load(dsn)
	if !ok {
		opened, err := d.OpenConnector(dsn)
		if err != nil {
			return nil, err
		}
		c, _ = d.byDSN.LoadOrStore(dsn, opened)
	}
	return c.(driver.Connector).Connect(context.Background())
}

func openPool(c driver.Connector, cfg *Config) (*Pool, error) {
	given := cfg
	ctr, cfg, err := openConnector(c, cfg)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(ctr)
	db.SetMaxOpenConns(ctr.Cfg.MaxOpenConns())
	db.SetMaxIdleConns(cfg.PoolSize)
	db.SetConnMaxIdleTime(cfg.IdleTimeout)
	p := &Pool{DB: db, cfg: cfg, ctr: ctr, bypassed: map[string]bool{}}
	if cfg.asksRole() && cfg.Target == TargetPrimary {
		p.replicas.cfg = given.clone()
	}
	ctr.Cfg.CheckContext, ctr.OnClose = p.checkContext, p.closeReplicas
	p.queue.Init(ctr.Cfg.MaxOpenConns(), ctr.ServePool(db, p.queue.SetLimit), connector.ErrPoolClosed)
	ctr.StartMaintainer()
	return p, nil
}

// openConnector makes the connector, and returns its settings: a copy, completed.
func openConnector(c driver.Connector, cfg *Config) (*connector.Connector, *Config, error) {
	if cfg == nil {
		cfg = NewConfig()
	}
	if err := cfg.validate(); err != nil {
		return nil, nil, err
	}
	cfg = cfg.clone()
	switch {
	case c != nil:
		cfg.MySQL, cfg.Addrs = nil, nil
	case cfg.MySQL == nil:
		return nil, nil, errors.New("livepool: Config.MySQL is not set: it says where the server is; " +
			"ParseDSN sets it, or set it to a *mysql.Config of the driver's")
	default:
		cfg.fitConnectTimeout()
	}
	ctr, err := connector.New(c, cfg.settings())
	return ctr, cfg, err
}

// maxBypassed bounds how many units' names are remembered: a name may hold an id.
const maxBypassed = 1000

// checkContext says why a statement of the sql.DB is refused: because the pool is being
// shut down, or is strict. It finds one that a unit's function sends on the pool in place
// of its Session: it is not undone with the unit, and sent again when the unit is run again.
func (p *Pool) checkContext(ctx context.Context) error {
	if p.ctr.Draining.Load() && !p.isUnderWay(ctx) {
		return errShuttingDown
	}
	s, ok := p.FromContext(ctx)
	if !ok || s.hasEnded() || ctx.Value(connector.DialDeadlineKey{}) != nil { // by which a session waits for its connection
		return nil
	}
	if p.cfg.Strict {
		return fmt.Errorf("livepool: refused (pool_strict): a statement of the pool under the context of %s would run outside its transaction; use the Session, or a context that is not the unit's", s.options.name)
	}
	p.bypassedMu.Lock()
	told := p.bypassed[s.options.name] || len(p.bypassed) >= maxBypassed
	if !told {
		p.bypassed[s.options.name] = true
	}
	p.bypassedMu.Unlock()
	if !told {
		p.cfg.log.Warn("livepool: the pool is used under the context of a unit of work, and so outside its transaction; use the Session (pool_strict refuses this; it is logged once for each unit)", slog.String("unit", s.options.name))
	}
	return nil
}

// begin counts a unit, or a function of Retry, until end is called. During Shutdown it
// refuses those that do not belong to one that is under way.
func (p *Pool) begin(ctx context.Context, name string) error {
	p.underWay.Add(1) // before Draining is read, so that Shutdown waits for it if it is let in
	if p.ctr.Draining.Load() && !p.isUnderWay(ctx) {
		p.end()
		return fmt.Errorf("livepool: %s was not begun: %w", name, errShuttingDown)
	}
	return nil
}

func (p *Pool) end() { p.underWay.Add(-1) }

// underWayKey finds in a context whether it belongs to a unit of the pool, to what waits
// for its commit, or to a function of Retry.
type underWayKey struct{ p *Pool }

func (p *Pool) isUnderWay(ctx context.Context) bool {
	s, ok := p.FromContext(ctx)
	return ok && !s.hasEnded() || ctx.Value(underWayKey{p}) != nil || ctx.Value(connector.DialDeadlineKey{}) != nil // which a session's own has
}

var errShuttingDown = fmt.Errorf("%w: it is being shut down, and lets only what is under way come to its end", ErrPoolClosed)

// Shutdown closes the pool without interrupting anything: new units and statements get
// ErrPoolClosed, those under way end, with all that they need for it, then the pool is
// closed. If ctx ends first it returns an error that says what is still under way, and the
// pool goes on refusing: call Close then. It refuses to be called under the context of a unit
// of the pool.
func (p *Pool) Shutdown(ctx context.Context) error {
	if p.isUnderWay(ctx) {
		return errors.New("livepool: Shutdown is called by what it would wait for: a unit of this pool, what waits for its commit, or a function of Retry")
	}
	start := time.Now()
	p.ctr.Draining.Store(true)
	for {
		units, inUse := p.underWay.Load(), p.DB.Stats().InUse // in this order: a unit ends after it has returned its connection
		if units == 0 && inUse == 0 {
			return p.Close()
		}
		if clock.Wait(ctx, nil, shutdownPoll); ctx.Err() != nil {
			longest, held := p.queue.Longest()
			text := fmt.Sprintf("livepool: the shutdown is not complete after %s: %d units of work and %d connections are in use", time.Since(start).Round(time.Millisecond), units, inUse)
			if held > 0 {
				text += fmt.Sprintf("; %s has held its connection longest, for %s", longest, held.Round(time.Millisecond))
			}
			return fmt.Errorf("%s: %w", text, contextError(ctx))
		}
	}
}

// shutdownPoll is how often Shutdown looks: database/sql tells nobody when a connection is
// returned.
const shutdownPoll = 10 * time.Millisecond

// Ready says whether work can be done now: nil, also if the pool is only busy;
// ErrUnreachable if the server cannot be reached, is full or does not answer, or if it
// refused a write and still does; ErrPoolClosed after Close and during Shutdown. It asks
// the server, and does not wait for the end of an outage: without a deadline in ctx it may
// take ConnectTimeout and PingTimeout twice. It is for a readiness probe.
func (p *Pool) Ready(ctx context.Context) error {
	switch {
	case p.ctr.Ctx.Err() != nil:
		return ErrPoolClosed
	case p.ctr.Draining.Load():
		return errShuttingDown
	}
	return connector.AsPoolClosed(p.ctr.Ready(outsideUnits{ctx, p}))
}

// GetDBConn returns the *sql.DB itself; GORM asks for it.
func (p *Pool) GetDBConn() (*sql.DB, error) { return p.DB, nil }

// Close closes the pool, as Close of the *sql.DB alone does. It is idempotent. What is in use
// is closed when it is returned.
func (p *Pool) Close() error { return p.DB.Close() }
