// hot.go measures what livepool costs where nothing is wrong, and prints it
// beside what plain database/sql costs. The operations are operations.go's, the
// way of measuring compare.go's.

package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
)

// How long each table takes: rounds times pools times the time of each.
const (
	noopRounds, noopRound = 501, time.Millisecond
	realRounds, realRound = 1001, 2 * time.Millisecond
	serviceRounds         = 301
)

// hotRow is one line: what the operation costs on one pool.
type hotRow struct {
	operation, pool string
	took            measured
	allocs          float64
	atMost          float64 // the ratio aimed at; 0: none
}

// hot measures on the driver that does nothing and on the site's server, and
// says whether livepool allocated no more than plain database/sql. Times are
// shown beside their targets; on a noisy machine they prove nothing.
func hot(ctx context.Context, s *site, o options) (kept bool, err error) {
	var past *history
	if o.history != "" {
		if past, err = openHistory(ctx, o.history); err != nil {
			return false, err
		}
	}
	onNoop, err := hotOnNoop(ctx, noopRounds)
	if err != nil {
		return false, err
	}
	writeHot(os.Stdout, "the pool alone, on a driver that does nothing", onNoop)
	onServer, err := hotOnServer(ctx, s)
	if err != nil {
		return false, err
	}
	writeHot(os.Stdout, "on "+s.String(), onServer)
	inAService := map[int][]hotRow{}
	if s.firstLook == "" { // the embedded server keeps no promise on which units could build
		if inAService, err = hotInAService(ctx, s.mysql.FormatDSN(), serviceRounds); err != nil {
			return false, err
		}
	}
	for _, n := range callers {
		if rows := inAService[n]; rows != nil {
			writeHot(os.Stdout, fmt.Sprintf("under a context that can end, %d at a time, on %s", n, s), rows)
		}
	}
	fmt.Println("time: median of interleaved rounds; ratio: median of the rounds' ratios to plain database/sql")
	if past != nil {
		if err := past.add(measurement{"no-op driver", onNoop}, measurement{s.String(), onServer}); err != nil {
			return false, err
		}
		fmt.Printf("appended to %s\n", o.history)
	}
	if excess := allocExcess(onNoop); excess != "" {
		fmt.Println(excess)
		return false, nil
	}
	return true, nil
}

// hotOnNoop compares the four operations.
func hotOnNoop(ctx context.Context, rounds int) ([]hotRow, error) {
	plain, live, err := noopPools()
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	defer live.Close()
	var rows []hotRow
	for _, op := range operations {
		pair, err := hotPair(ctx, op.name, rounds, noopRound, op.run, named{"plain", plain, 0}, named{"livepool", live.DB, 1.3})
		if err != nil {
			return nil, err
		}
		rows = append(rows, pair...)
	}
	return rows, nil
}

// noopPools opens both kinds of pool on the driver that does nothing.
func noopPools() (*sql.DB, *livepool.Pool, error) {
	live, err := livepool.OpenConnector(noopConnector{}, nil)
	if err != nil {
		return nil, nil, err
	}
	return sql.OpenDB(noopConnector{}), live, nil
}

// hotOnServer compares a checkout and a point query, the latter with each mode
// of the pre-ping.
func hotOnServer(ctx context.Context, s *site) ([]hotRow, error) {
	pools, closePools, err := realPools(s.mysql)
	if err != nil {
		return nil, err
	}
	defer closePools()
	plain := pools[0].db
	if err := fillPointTable(ctx, plain); err != nil {
		return nil, err
	}
	defer plain.Exec("DROP TABLE " + pointTable)

	checkout, err := hotPair(ctx, "Conn+Close", realRounds, realRound/5, connClose, pools[0], pools[1])
	if err != nil {
		return nil, err
	}
	for i := range checkout[1:] {
		checkout[1+i].atMost = 1
	}
	again, err := sql.Open("mysql", s.mysql.FormatDSN())
	if err != nil {
		return nil, err
	}
	defer again.Close()
	pools = slices.Insert(pools, 1, named{plainAgain, again, 0})
	query, err := hotPair(ctx, "point query", realRounds, realRound, pointQuery, pools...)
	return append(checkout, query...), err
}

// plainAgain is a second plain pool: how far it is from the first says what the
// measuring is worth.
const plainAgain = "plain, again"

// realPools opens a plain pool and one with each mode of the pre-ping.
func realPools(server *mysql.Config) (pools []named, closePools func(), err error) {
	closePools = func() {
		for _, p := range pools {
			p.db.Close()
		}
	}
	plain, err := sql.Open("mysql", server.FormatDSN())
	if err != nil {
		return nil, closePools, err
	}
	pools = []named{{"plain", plain, 0}}
	for _, mode := range []struct {
		ping   livepool.PrePing
		atMost float64
	}{{livepool.PrePingIdle, 1.02}, {livepool.PrePingOff, 1.02}, {livepool.PrePingAlways, 0}} {
		cfg, err := livepool.ParseDSN(server.FormatDSN())
		if err != nil {
			return nil, closePools, err
		}
		cfg.PrePing = mode.ping
		live, err := livepool.OpenConfig(cfg)
		if err != nil {
			return nil, closePools, err
		}
		pools = append(pools, named{"livepool, pre-ping " + mode.ping.String(), live.DB, mode.atMost})
	}
	return pools, closePools, nil
}

// named is a pool that takes part, and the ratio aimed at.
type named struct {
	name   string
	db     *sql.DB
	atMost float64
}

// hotPair measures one operation on all the pools, in turns.
func hotPair(ctx context.Context, operation string, rounds int, each time.Duration, run func(context.Context, *sql.DB) error, pools ...named) ([]hotRow, error) {
	// A context that can end makes database/sql start a goroutine for each
	// query, beside whose cost the pool's own would hide. That of hotservice.go can.
	endless := context.Background()
	var contestants []contestant
	for _, p := range pools {
		contestants = append(contestants, contestant{
			run:   func() error { return run(endless, p.db) },
			renew: func() { dropIdle(p.db, 1) },
		})
	}
	took, err := compare(ctx, rounds, each, contestants...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", operation, err)
	}
	var rows []hotRow
	for i, p := range pools {
		rows = append(rows, hotRow{operation, p.name, took[i], allocsPerRun(contestants[i].run), p.atMost})
	}
	return rows, nil
}

// dropIdle closes the idle connections; the measured runs need so many.
func dropIdle(db *sql.DB, keep int) {
	db.SetMaxIdleConns(-1)
	db.SetMaxIdleConns(keep)
}

// allocsPerRun returns the least of a few counts, since database/sql starts a
// goroutine for each transaction, which the runtime may or may not have at hand;
// NaN if f fails.
func allocsPerRun(f func() error) float64 {
	least := math.Inf(1)
	var failed error
	for range 5 {
		least = min(least, testing.AllocsPerRun(200, func() {
			if err := f(); err != nil {
				failed = err
			}
			runtime.Gosched() // lets that goroutine end
		}))
	}
	if failed != nil {
		return math.NaN()
	}
	return least
}

// allocExcess tells of the operations in which a pool allocates more than the
// plain one, which comes first in each.
func allocExcess(rows []hotRow) string {
	var plain float64
	for _, r := range rows {
		if r.pool == "plain" {
			plain = r.allocs
		} else if !(r.allocs <= plain) {
			return fmt.Sprintf("%s: %s allocates %v times, plain database/sql %v times", r.operation, r.pool, r.allocs, plain)
		}
	}
	return ""
}

func writeHot(w io.Writer, title string, rows []hotRow) {
	fmt.Fprintln(w, title)
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "  operation\tpool\ttime\tratio\taimed at\tallocations")
	for _, r := range rows {
		aim := ""
		if r.atMost > 0 {
			aim = fmt.Sprintf("<= %.2f", r.atMost)
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%.3f\t%s\t%v\n", r.operation, r.pool, r.took.perOp, r.took.ratio, aim, r.allocs)
	}
	tw.Flush()
	fmt.Fprintln(w)
}
