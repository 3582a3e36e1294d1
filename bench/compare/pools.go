package compare

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
)

// pool is what the contenders in this process differ in.
type pool interface {
	query(ctx context.Context, id int64) error
	exec(ctx context.Context) error
	// transact commits what f does, or says why it did not.
	transact(ctx context.Context, f func(ctx context.Context, exec execFunc) error) error
	recycle() (supported bool)
	close() error
}

type execFunc func(ctx context.Context, query string, args ...any) error

const (
	tunedLifetime = 3 * time.Minute // as the driver's README has it
	tries         = 3               // of the contender that retries
	tuned         = "plain, tuned"  // to which the others are compared
)

// inGo are the contenders in this process.
func inGo() []entry {
	return []entry{
		{name: "plain", what: "database/sql as sql.Open leaves it: no limit, two idle connections", goes: true, open: plain(func(*sqlPool, int) {})},
		{name: tuned, what: "MaxOpen = MaxIdle = size, ConnMaxLifetime 3 min, as the driver's README advises", goes: true, open: plain(tune)},
		{name: "plain with a Ping", what: "tuned, and PingContext before each operation", goes: true, open: plain(tune, func(p *sqlPool) { p.ping = true })},
		{name: "plain with a retry", what: "tuned, and a job is run again on any error, 3 times in all", goes: true, same: true, open: plain(tune, func(p *sqlPool) { p.tries = tries })},
		{name: "go-mysql", what: "client.Pool of go-mysql-org/go-mysql; its statements take no context", goes: true, open: openGoMySQL},
		{name: "livepool", what: "livepool.Open, used as the plain pool is", goes: true, live: true, open: live(nil)},
		{name: "livepool units", what: "each job in WithSession", goes: true, live: true, same: true, units: true, open: live([]livepool.SessionOption{})},
		{name: "livepool verified", what: "each job in WithSession with VerifyCommit, which inserts a key and resolves a lost COMMIT", goes: true, live: true, same: true, units: true, open: live([]livepool.SessionOption{livepool.VerifyCommit()})},
	}
}

// sqlPool is a *sql.DB, and what is done around it.
type sqlPool struct {
	*sql.DB
	ping    bool
	tries   int
	live    *livepool.Pool           // set where it is livepool's
	options []livepool.SessionOption // not nil: transactions are units of work with these
}

func (t target) config() *mysql.Config {
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.DBName = t.user, t.password, t.database
	cfg.Net, cfg.Addr = "tcp", net.JoinHostPort(t.host, t.port)
	return cfg
}

func tune(p *sqlPool, size int) {
	p.SetMaxOpenConns(size)
	p.SetMaxIdleConns(size)
	p.SetConnMaxLifetime(tunedLifetime)
}

func plain(set func(*sqlPool, int), more ...func(*sqlPool)) func(context.Context, target) (contender, error) {
	return func(_ context.Context, t target) (contender, error) {
		db, err := sql.Open("mysql", t.config().FormatDSN())
		if err != nil {
			return nil, err
		}
		p := &sqlPool{DB: db, tries: 1}
		set(p, t.size)
		for _, f := range more {
			f(p)
		}
		return &inProcess{name: "go-sql-driver/mysql", pool: p}, nil
	}
}

func live(options []livepool.SessionOption) func(context.Context, target) (contender, error) {
	return func(ctx context.Context, t target) (contender, error) {
		cfg := livepool.NewConfig()
		cfg.MySQL, cfg.PoolSize, cfg.MaxOverflow = t.config(), t.size, 0
		p, err := livepool.OpenConfig(cfg)
		if err != nil {
			return nil, err
		}
		if err := p.CreateCommitTable(ctx); err != nil {
			return nil, errors.Join(err, p.Close())
		}
		return &inProcess{name: "livepool", pool: &sqlPool{DB: p.DB, tries: 1, live: p, options: options}}, nil
	}
}

func (p *sqlPool) pinged(ctx context.Context) error {
	if !p.ping {
		return nil
	}
	return p.PingContext(ctx)
}

func (p *sqlPool) query(ctx context.Context, id int64) error {
	if err := p.pinged(ctx); err != nil {
		return err
	}
	var v string
	return p.QueryRowContext(ctx, "SELECT v FROM bench_point WHERE id = ?", id).Scan(&v)
}

func (p *sqlPool) exec(ctx context.Context) error {
	if err := p.pinged(ctx); err != nil {
		return err
	}
	_, err := p.ExecContext(ctx, "DO 1")
	return err
}

func (p *sqlPool) transact(ctx context.Context, f func(context.Context, execFunc) error) (err error) {
	if p.options != nil {
		return p.live.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error { return f(ctx, execOf(s)) }, p.options...)
	}
	for range p.tries {
		if err = p.once(ctx, f); err == nil {
			return nil
		}
	}
	return err
}

func (p *sqlPool) once(ctx context.Context, f func(context.Context, execFunc) error) error {
	if err := p.pinged(ctx); err != nil {
		return err
	}
	tx, err := p.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(ctx, execOf(tx)); err != nil {
		tx.Rollback()
		return err
	}
	return tx.Commit()
}

// execOf is a transaction's or a session's way to execute.
func execOf(on interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
},
) execFunc {
	return func(ctx context.Context, query string, args ...any) error {
		_, err := on.ExecContext(ctx, query, args...)
		return err
	}
}

func (p *sqlPool) recycle() bool {
	if p.live == nil {
		return false // database/sql has nothing of the kind
	}
	p.live.Recycle()
	return true
}

func (p *sqlPool) close() error {
	if p.live != nil {
		return p.live.Close()
	}
	return p.DB.Close()
}
