// hotservice.go measures what a service does all day: statements under a context that
// can end, checked connections, transactions. Each is compared with plain database/sql
// doing the same, from one caller and from eight.

package main

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/livepool/livepool"
)

// counterTable has one row for each caller, so that transactions wait for no lock.
const counterTable = "livepool_bench_counter"

// servicePools are plain database/sql, and livepool with and without a ping for each
// checkout.
type servicePools struct {
	plain         *sql.DB
	live, pinging *livepool.Pool
}

// serviceOperation is the same work on plain and on livepool, by the caller with a number.
type serviceOperation struct {
	name        string
	atMost      float64
	plain, live func(ctx context.Context, p *servicePools, caller int) error
}

var serviceOperations = []serviceOperation{
	{"Exec", 0.7, execOn(plainDB), execOn(liveDB)},
	{"QueryRow", 1, queryOn(plainDB), queryOn(liveDB)},
	{"Ping and Exec, pool_pre_ping=always", 1.05, pingAndExecOn(plainDB), execOn(pingingDB)},
	{"a transaction, a unit", 0.85, plainTransaction, unit()},
	{"a transaction, a unit with VerifyCommit", 1.1, plainTransaction, unit(livepool.VerifyCommit())},
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
	tx, err := p.plain.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, increment(caller)); err != nil {
		return err
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

// callers are how many work at the same time, in each table.
var callers = []int{1, 8}

// hotInAService makes one table for each number of callers.
func hotInAService(ctx context.Context, dsn string, rounds int) (tables map[int][]hotRow, err error) {
	p, err := openServicePools(ctx, dsn)
	if p != nil {
		defer p.close()
	}
	if err != nil {
		return nil, err
	}
	tables = map[int][]hotRow{}
	endable, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, n := range callers {
		for _, op := range serviceOperations {
			contestants := []contestant{p.contestant(endable, n, op.plain), p.contestant(endable, n, op.live)}
			took, err := compare(ctx, rounds, 2*realRound, contestants...)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", op.name, err)
			}
			for i, pool := range []string{"plain", "livepool"} {
				took[i].perOp /= time.Duration(n * turnsOfACaller)
				row := hotRow{operation: op.name, pool: pool, took: took[i], allocs: allocsPerRun(contestants[i].run) / float64(n*turnsOfACaller)}
				if i > 0 {
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

// contestant does the work by n callers at the same time. Its connections are not renewed:
// that of a unit is of use to the next.
func (p *servicePools) contestant(ctx context.Context, n int, do func(context.Context, *servicePools, int) error) contestant {
	turns := func(caller int) error {
		for range turnsOfACaller {
			if err := do(ctx, p, caller); err != nil {
				return err
			}
		}
		return nil
	}
	return contestant{renew: func() {}, run: func() error {
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
	const size = 8
	p = &servicePools{}
	if p.plain, err = sql.Open("mysql", dsn); err != nil {
		return nil, err
	}
	p.plain.SetMaxIdleConns(size)
	for pool, ping := range map[**livepool.Pool]livepool.PrePing{&p.live: livepool.PrePingIdle, &p.pinging: livepool.PrePingAlways} {
		cfg, err := livepool.ParseDSN(dsn)
		if err != nil {
			return p, err
		}
		cfg.PoolSize, cfg.PrePing = size, ping
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
	if _, err := p.plain.ExecContext(ctx, "CREATE TABLE "+counterTable+" (id INT PRIMARY KEY, n BIGINT NOT NULL)"); err != nil {
		return p, err
	}
	for caller := range callers[len(callers)-1] {
		if _, err := p.plain.ExecContext(ctx, "INSERT INTO "+counterTable+" VALUES (?, 0)", caller); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *servicePools) close() {
	p.plain.Exec("DROP TABLE IF EXISTS " + counterTable + ", " + pointTable)
	p.plain.Close()
	for _, pool := range []*livepool.Pool{p.live, p.pinging} {
		if pool != nil {
			pool.Close()
		}
	}
}
