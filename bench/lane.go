// lane.go is one of the pools that are compared: its own proxy, its own tables
// and its own workers. All lanes do the same jobs at the same time.

package main

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/proxy"
)

const (
	workers     = 24
	jobTimeout  = 10 * time.Second // how long a runner lets one job run
	waitTimeout = 4 * time.Second  // the server's patience with an idle connection
	tries       = 10               // of a job that is run again on any error
	retryPause  = 50 * time.Millisecond
)

// contender says how a lane's pool is opened.
type contender struct {
	name  string // one word: in tables' names too
	head  string // of its column
	full  string // in a sentence
	title string
	open  func(dsn string) (pool, error)
}

// pool is a *sql.DB that may be more than that, and is closed as what it is.
type pool struct {
	*sql.DB
	close func() error
	units *livepool.Pool // set where each job is a unit of work
	retry bool           // each job is run again on any error
}

var contenders = []contender{
	{"plain", "plain", "Plain database/sql", `sql.Open("mysql", dsn), its defaults`, openPlain},
	{"retry", "+ retry", "Retry on any error", fmt.Sprintf("the same, each job in the loop that everybody writes: again on any error, up to %d times, %s apart", tries, retryPause), openRetry},
	{"livepool", "livepool.Open", "livepool.Open", "livepool.Open(dsn), its defaults", openLivepool},
	{"units", "WithSession", "livepool.WithSession", "the same, each job in WithSession, writing ones with VerifyCommit", openUnits},
}

func openPlain(dsn string) (pool, error) {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return pool{}, err
	}
	return pool{DB: db, close: db.Close}, nil
}

func openRetry(dsn string) (pool, error) {
	p, err := openPlain(dsn)
	p.retry = true
	return p, err
}

func openLivepool(dsn string) (pool, error) {
	p, err := livepool.Open(dsn)
	if err != nil {
		return pool{}, err
	}
	return pool{DB: p.DB, close: p.Close}, nil
}

func openUnits(dsn string) (pool, error) {
	cfg, err := livepool.ParseDSN(dsn)
	if err != nil {
		return pool{}, err
	}
	cfg.CommitTable = newTables("units").commits
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		return pool{}, err
	}
	return pool{DB: p.DB, close: p.Close, units: p}, nil
}

// lane is one contender at work.
type lane struct {
	contender
	pool   pool
	proxy  *proxy.Proxy
	tables tables
	queue  chan arrival
	start  time.Time // of the run

	working sync.WaitGroup // jobs that have arrived and are not done

	mu      sync.Mutex
	samples []sample
	failed  int
	connIDs map[int64]bool // the server's ids of the lane's connections
}

// arrival is a job in the queue.
type arrival struct {
	job   job
	phase int
	at    time.Duration // since the run began
}

// openLane opens a contender's pool through a proxy of its own, and starts its
// workers, which end with ctx.
func openLane(ctx context.Context, c contender, site *site, start time.Time) (*lane, error) {
	p, err := proxy.New(site.mysql.Addr)
	if err != nil {
		return nil, err
	}
	opened, err := c.open(laneDSN(site.mysql, p.Addr()))
	if err != nil {
		p.Close()
		return nil, err
	}
	l := &lane{
		contender: c, pool: opened, proxy: p, start: start,
		tables:  newTables(c.name),
		queue:   make(chan arrival, 1000),
		connIDs: map[int64]bool{},
	}
	for range workers {
		go l.work(ctx)
	}
	return l, nil
}

// laneDSN leads to the server through the proxy, with a short wait_timeout for
// the lane's own sessions.
func laneDSN(server *mysql.Config, proxy string) string {
	cfg := server.Clone()
	cfg.Addr = proxy
	params := map[string]string{"wait_timeout": fmt.Sprint(waitTimeout.Seconds())}
	maps.Copy(params, cfg.Params)
	cfg.Params = params
	return cfg.FormatDSN()
}

func (l *lane) close() {
	l.pool.close()
	l.proxy.Close()
}

// arrive puts a job in the queue.
func (l *lane) arrive(j job, phase int) {
	l.working.Add(1)
	l.queue <- arrival{j, phase, time.Since(l.start)}
}

// work is one worker: it takes one job after the other.
func (l *lane) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-l.queue:
			l.run(ctx, a)
			l.working.Done()
		}
	}
}

func (l *lane) run(ctx context.Context, a arrival) {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	connID, err := a.job.do(ctx, l.pool, l.tables)
	s := sample{
		job: a.job, phase: a.phase, arrived: a.at,
		latency: time.Since(l.start) - a.at,
		failure: failureOf(err),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, s)
	if s.failed() {
		l.failed++
	}
	if connID != 0 {
		l.connIDs[connID] = true
	}
}

// done returns how many jobs were done and how many of them failed.
func (l *lane) done() (all, failed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.samples), l.failed
}

// takeConnIDs returns the server's ids of the connections that jobs ran on
// since the last call.
func (l *lane) takeConnIDs() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make([]int64, 0, len(l.connIDs))
	for id := range l.connIDs {
		ids = append(ids, id)
	}
	clear(l.connIDs)
	return ids
}
