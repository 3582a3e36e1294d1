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

	begins          atomic.Int32 // sessions that have a place and take a connection
	unboundedBegins atomic.Int32 // of those, the ones that need not wait for it

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

func openPool(c driver.Connector, cfg *Config) (*Pool, error) {
	ctr, cfg, err := openConnector(c, cfg)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(ctr)
	db.SetMaxOpenConns(ctr.Cfg.MaxOpenConns())
	db.SetMaxIdleConns(cfg.PoolSize)
	db.SetConnMaxIdleTime(cfg.IdleTimeout)
	p := &Pool{DB: db, cfg: cfg, ctr: ctr, bypassed: map[string]bool{}}
	ctr.Cfg.CheckContext = p.checkContext
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
		cfg.MySQL = nil
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

// checkContext finds a statement that a unit's function sends on the pool in place of its
// Session: it is not undone with the unit, and sent again when the unit is run again.
func (p *Pool) checkContext(ctx context.Context) error {
	s, ok := p.FromContext(ctx)
	if !ok || s.hasEnded() || ctx.Value(connector.DialDeadlineKey{}) != nil { // by which a session waits for its connection
		return nil
	}
	if p.cfg.Strict {
		return fmt.Errorf("livepool: refused (pool_strict): a statement of the pool under the context of %s would run outside its transaction; "+
			"use the Session, or a context that is not the unit's", s.options.name)
	}
	p.bypassedMu.Lock()
	told := p.bypassed[s.options.name] || len(p.bypassed) >= maxBypassed
	if !told {
		p.bypassed[s.options.name] = true
	}
	p.bypassedMu.Unlock()
	if !told {
		p.cfg.log.Warn("livepool: the pool is used under the context of a unit of work, and so outside its transaction; use the Session "+
			"(pool_strict refuses this; it is logged once for each unit)", slog.String("unit", s.options.name))
	}
	return nil
}

// GetDBConn returns the *sql.DB itself; GORM asks for it.
func (p *Pool) GetDBConn() (*sql.DB, error) { return p.DB, nil }

// Close closes the pool and stops what runs in the background for it; so does
// Close of the *sql.DB alone. It is idempotent. What is in use is closed when
// it is returned.
func (p *Pool) Close() error { return p.DB.Close() }
