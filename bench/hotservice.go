// hotservice.go measures what a service does all day: statements under a context that
// can end, checked connections, transactions. Each is compared with plain database/sql
// doing the same, from one caller and from eight, and with the driver alone (hotfloor.go).

package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/livepool/livepool"
)

// counterTable has one row for each caller, so that transactions wait for no lock; keyTable
// is as the commit table, for plain.
const (
	counterTable = "livepool_bench_counter"
	keyTable     = "livepool_bench_key"
)

// servicePools are plain database/sql, and livepool with and without a ping for each
// checkout.
type servicePools struct {
	plain         *sql.DB
	live, pinging *livepool.Pool
	floor         [serviceSize]*driverAlone // one for each caller
}

// serviceOperation is the same work on plain and on livepool, by the caller with a number.
type serviceOperation struct {
	name        string
	atMost      float64
	plain, live func(ctx context.Context, p *servicePools, caller int) error
	floor       func(d *driverAlone, caller int) error // what livepool must send, and nothing else
}

var serviceOperations = []serviceOperation{
	{"Exec", 0.7, execOn(plainDB), execOn(liveDB), (*driverAlone).exec},
	{"QueryRow", 1, queryOn(plainDB), queryOn(liveDB), (*driverAlone).query},
	{"Ping and Exec, pool_pre_ping=always", 1.05, pingAndExecOn(plainDB), execOn(pingingDB), (*driverAlone).pingAndExec},
	{"a transaction, a unit", 0.85, plainTransaction, unit(), (*driverAlone).unit},
	{"a transaction, a unit with VerifyCommit", 1.1, plainTransaction, unit(livepool.VerifyCommit()), (*driverAlone).keyedUnit},
	{"a transaction with a key, a unit with VerifyCommit", 1, plainKeyedTransaction, unit(livepool.VerifyCommit()), (*driverAlone).keyedUnit},
}

func plainDB(p *servicePools) *sql.DB   { return p.plain }
func liveDB(p *servicePools) *sql.DB    { return p.live.DB }
func pingingDB(p *servicePools) *sql.DB { return p.pinging.DB }

func execOn(db func(*servicePools) *sql.DB) func(context.Context, *servicePools, int) error {
	return func(ctx context.Context, p *servicePools, _ int) error {
		_, err := db(p).ExecContext(ctx, "DO 1")
		return err
	}
}

func queryOn(db func(*servicePools) *sql.DB) func(context.Context, *servicePools, int) error {
	return func(ctx context.Context, p *servicePools, _ int) error { return pointQuery(ctx, db(p)) }
}

func pingAndExecOn(db func(*servicePools) *sql.DB) func(context.Context, *servicePools, int) error {
	exec := execOn(db)
	return func(ctx context.Context, p *servicePools, caller int) error {
		if err := db(p).PingContext(ctx); err != nil {
			return err
		}
		return exec(ctx, p, caller)
	}
}

func increment(caller int) string {
	return fmt.Sprintf("UPDATE "+counterTable+" SET n = n + 1 WHERE id = %d", caller)
}

func plainTransaction(ctx context.Context, p *servicePools, caller int) error {
	return p.plainTransaction(ctx, increment(caller))
}

// plainKeyedTransaction does by hand what a verified unit does for its caller.
func plainKeyedTransaction(ctx context.Context, p *servicePools, caller int) error {
	return p.plainTransaction(ctx, insertKey(), increment(caller))
}

func insertKey() string {
	return fmt.Sprintf("INSERT INTO %s (unit) VALUES (X'%016x%016x')", keyTable, rand.Uint64(), rand.Uint64())
}

func (p *servicePools) plainTransaction(ctx context.Context, statements ...string) error {
	tx, err := p.plain.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func unit(opts ...livepool.SessionOption) func(context.Context, *servicePools, int) error {
	return func(ctx context.Context, p *servicePools, caller int) error {
		return p.live.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, increment(caller))
			return err
		}, opts...)
	}
}

// callers are how many work at the same time, in each table; there is a connection for each.
const serviceSize = 8

var callers = []int{1, serviceSize}

// hotInAService makes one table for each number of callers.
func hotInAService(ctx context.Context, dsn string, rounds int) (tables map[int][]hotRow, err error) {
	p, err := openServicePools(ctx, dsn)
	defer p.close()
	if err != nil {
		return nil, err
	}
	tables = map[int][]hotRow{}
	endable, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, n := range callers {
		for _, op := range serviceOperations {
			floor := func(_ context.Context, p *servicePools, caller int) error { return op.floor(p.floor[caller], caller) }
			contestants := []contestant{p.contestant(endable, n, op.plain), p.contestant(endable, n, op.live), p.contestant(endable, n, floor)}
			contestants[0].renew = func() { dropIdle(p.plain, serviceSize) }
			contestants[1].renew = func() { dropIdle(p.live.DB, serviceSize); dropIdle(p.pinging.DB, serviceSize) }
			contestants[2].renew = p.renewFloor
			took, err := compare(ctx, rounds, 2*realRound, contestants...)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", op.name, err)
			}
			for i, pool := range []string{"plain", "livepool", "the driver alone"} {
				took[i].perOp /= time.Duration(n * turnsOfACaller)
				row := hotRow{operation: op.name, pool: pool, took: took[i], allocs: allocsPerRun(contestants[i].run) / float64(n*turnsOfACaller)}
				if pool == "livepool" {
					row.atMost = op.atMost
				}
				tables[n] = append(tables[n], row)
			}
		}
	}
	return tables, nil
}

// turnsOfACaller is how often each of them does it in one run.
const turnsOfACaller = 8

// contestant does the work by n callers at the same time.
func (p *servicePools) contestant(ctx context.Context, n int, do func(context.Context, *servicePools, int) error) contestant {
	turns := func(caller int) error {
		ctx, cancel := context.WithCancel(ctx) // of its own, as a request of a service has it
		defer cancel()
		for range turnsOfACaller {
			if err := do(ctx, p, caller); err != nil {
				return err
			}
		}
		return nil
	}
	return contestant{run: func() error {
		if n == 1 {
			return turns(0)
		}
		errs := make(chan error, n)
		var wg sync.WaitGroup
		for caller := range n {
			wg.Go(func() {
				if err := turns(caller); err != nil {
					errs <- err
				}
			})
		}
		wg.Wait()
		close(errs)
		return <-errs
	}}
}

func openServicePools(ctx context.Context, dsn string) (p *servicePools, err error) {
	p = &servicePools{}
	if err := p.openFloor(ctx, dsn); err != nil {
		return p, err
	}
	if p.plain, err = sql.Open("mysql", dsn); err != nil {
		return p, err
	}
	p.plain.SetMaxIdleConns(serviceSize)
	for pool, ping := range map[**livepool.Pool]livepool.PrePing{&p.live: livepool.PrePingIdle, &p.pinging: livepool.PrePingAlways} {
		cfg, err := livepool.ParseDSN(dsn)
		if err != nil {
			return p, err
		}
		cfg.PoolSize, cfg.PrePing = serviceSize, ping
		if *pool, err = livepool.OpenConfig(cfg); err != nil {
			return p, err
		}
	}
	if err := p.live.CreateCommitTable(ctx); err != nil {
		return p, err
	}
	if err := fillPointTable(ctx, p.plain); err != nil {
		return p, err
	}
	for _, ddl := range []string{"CREATE TABLE " + counterTable + " (id INT PRIMARY KEY, n BIGINT NOT NULL)", "CREATE TABLE " + keyTable + " LIKE livepool_commits"} {
		if _, err := p.plain.ExecContext(ctx, ddl); err != nil {
			return p, err
		}
	}
	for caller := range serviceSize {
		if _, err := p.plain.ExecContext(ctx, "INSERT INTO "+counterTable+" VALUES (?, 0)", caller); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *servicePools) close() {
	for _, d := range p.floor {
		d.close()
	}
	if p.plain != nil {
		p.plain.Exec("DROP TABLE IF EXISTS " + counterTable + ", " + keyTable + ", " + pointTable)
		p.plain.Close()
	}
	for _, pool := range []*livepool.Pool{p.live, p.pinging} {
		if pool != nil {
			pool.Close()
		}
	}
}
