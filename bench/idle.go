// idle.go measures what a pool costs that nobody uses: the CPU time of its background work,
// and its memory.

package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/clock"
)

// rest is how many connections are idle, and for how long.
type rest struct {
	conns   int
	settles time.Duration // before it is measured: what was begun by the filling ends
	lasts   time.Duration
}

var longRest = rest{2000, 5 * time.Second, time.Minute}

// idlePools are opened at the same time, to see what one takes.
const idlePools = 200

// idleCost is what a pool at rest takes.
type idleCost struct {
	pool          string
	cpu           float64 // share of one core
	pings         int64   // since the pool was opened
	perConnection float64 // bytes of the heap and of stacks
	empty         float64 // the same, of a pool without a connection
}

// idle compares a livepool and a plain pool at rest.
func idle(ctx context.Context, s *site, _ options) (kept bool, err error) {
	costs, err := idleCosts(ctx, s.mysql.FormatDSN(), longRest)
	if err != nil {
		return false, err
	}
	writeIdle(os.Stdout, fmt.Sprintf("%d idle connections for %s, on %s", longRest.conns, longRest.lasts, s), costs)
	return true, nil
}

func idleCosts(ctx context.Context, dsn string, r rest) ([]*idleCost, error) {
	openLive := func() (*livepool.Pool, error) {
		cfg, err := livepool.ParseDSN(dsn)
		if err != nil {
			return nil, err
		}
		cfg.PoolSize, cfg.IdleTimeout = r.conns, 0
		return livepool.OpenConfig(cfg)
	}
	plain, live := &idleCost{pool: "plain"}, &idleCost{pool: "livepool"}
	var err error
	if plain.empty, err = emptyPool(func() (io.Closer, error) { return sql.Open("mysql", dsn) }); err != nil {
		return nil, err
	}
	if live.empty, err = emptyPool(func() (io.Closer, error) { return openLive() }); err != nil {
		return nil, err
	}
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetMaxIdleConns(r.conns)
	if _, err := db.ExecContext(ctx, fmt.Sprintf("SET GLOBAL max_connections = GREATEST(@@max_connections, %d)", r.conns+50)); err != nil {
		return nil, fmt.Errorf("room for %d connections: %w", r.conns, err)
	}
	if err := plain.rest(ctx, db, r); err != nil {
		return nil, err
	}
	db.Close()
	p, err := openLive()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if err := live.rest(ctx, p.DB, r); err != nil {
		return nil, err
	}
	live.pings = p.Stats().KeptAlive
	return []*idleCost{plain, live}, nil
}

// rest fills the pool, and measures it while nobody uses it.
func (c *idleCost) rest(ctx context.Context, db *sql.DB, r rest) error {
	before := memory()
	if err := fillPool(ctx, db, r.conns); err != nil {
		return err
	}
	clock.Wait(ctx, nil, r.settles)
	c.perConnection = (memory() - before) / float64(r.conns)
	cpu, start := cpuTime(), time.Now()
	if err := wait(ctx, r.lasts); err != nil {
		return err
	}
	c.cpu = (cpuTime() - cpu).Seconds() / time.Since(start).Seconds()
	return nil
}

// fillPool opens n connections, one after the other: a server that is asked for all at once
// refuses some.
func fillPool(ctx context.Context, db *sql.DB, n int) error {
	var conns []*sql.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range n {
		c, err := db.Conn(ctx)
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(conns)+1, err)
		}
		conns = append(conns, c)
	}
	return nil
}

// emptyPool is what a pool takes that has no connection.
func emptyPool(open func() (io.Closer, error)) (bytes float64, err error) {
	before := memory()
	pools := make([]io.Closer, idlePools)
	for i := range pools {
		if pools[i], err = open(); err != nil {
			return 0, err
		}
	}
	bytes = (memory() - before) / idlePools
	for _, p := range pools {
		p.Close()
	}
	return bytes, nil
}

// memory is what is in use of the heap and of stacks.
func memory() float64 {
	runtime.GC()
	runtime.GC() // pools of the runtime empty in two steps
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

func writeIdle(w io.Writer, title string, costs []*idleCost) {
	fmt.Fprintln(w, title)
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "  pool\tof a core\tpings\ta connection\tan empty pool")
	for _, c := range costs {
		fmt.Fprintf(tw, "  %s\t%.2f %%\t%d\t%.1f KiB\t%.1f KiB\n", c.pool, 100*c.cpu, c.pings, c.perConnection/1024, c.empty/1024)
	}
	tw.Flush()
}
