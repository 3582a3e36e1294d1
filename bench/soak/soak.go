// Package soak is the long proof: units of work on real servers under real
// faults, for as long as one likes, and every row held against what the units
// were told.
//
// What the units do and which faults strike is drawn from a seed; when they meet
// is not, so that a seed makes a like run and never the same.
//
// soak.go is the command and the course of a run. What it stands on is ground.go,
// lane.go and books.go. What the units do is in plan.go, work.go and unit.go; which
// fault strikes when in nemesis.go, the faults are listed in faults.go. What is held
// against what is in check.go, history.go and left.go, how it is told in report.go.
package soak

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/bench/gauge"
	"github.com/livepool/livepool/internal/lab/server"
)

// What Main returns for the program to end with.
const (
	exitKept = iota
	exitBroken
	exitNoRun
)

const usage = `usage: go run ./bench soak [flags]

Units of work on a private MariaDB or MySQL, through a proxy that fails in every way it knows, on a
server that is killed, frozen and overrun, or on servers that change places. In the end each row is held against what its unit was told.
Exit code: 0 every promise was kept, 1 one was not, 2 no run.

`

// settings are the command line.
type settings struct {
	duration time.Duration
	seed     uint64
	server   string
	workers  int
	naive    bool
	report   string
	only     []string
}

// Main runs the soak with the arguments that follow its name.
func Main(ctx context.Context, args []string, stdout, stderr *os.File) (code int, err error) {
	set, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitKept, nil
	}
	if err != nil {
		return exitNoRun, err
	}
	fmt.Fprintf(stdout, "seed %d\n", set.seed)
	// The first interrupt ends the run early and has it checked, the second ends
	// the program.
	defer context.AfterFunc(ctx, func() { signal.Reset(os.Interrupt, syscall.SIGTERM) })()

	log, err := openLog(set.report)
	if err != nil {
		return exitNoRun, err
	}
	defer log.Close()
	o, err := soak(ctx, set, log, stderr)
	if err != nil {
		return exitNoRun, err
	}
	o.write(stdout)
	if err := o.save(set.report); err != nil {
		return exitNoRun, err
	}
	fmt.Fprintf(stdout, "\nreport: %s\nwhat the pools logged: %s\n", set.report, log.Name())
	if !o.kept() {
		return exitBroken, nil
	}
	return exitKept, nil
}

func parse(args []string, w io.Writer) (set settings, err error) {
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.SetOutput(w)
	flags.DurationVar(&set.duration, "duration", time.Minute, "how `long` the faults go on")
	flags.Uint64Var(&set.seed, "seed", rand.Uint64()>>32, "from which units and faults are planned")
	flags.StringVar(&set.server, "server", "auto", "`which` server to start: "+siteNames()+";\npair and galera are behind one address, as behind a balancer; of pair-mariadb, pair-mysql and galera-hosts\nthe pool has each server's own, and follows the primary")
	flags.IntVar(&set.workers, "workers", 16, "how many run units at the same time")
	flags.BoolVar(&set.naive, "naive", false, "have plain database/sql, with a retry on any error, suffer the same\nin tables of its own; it must be found wanting")
	flags.StringVar(&set.report, "report", filepath.Join("bench", "out", "soak.json"), "`file` for the report as JSON; the log goes beside it")
	only := flags.String("only", "", "a comma-separated `list` of the faults that may strike:\n"+strings.Join(kindNames(), ", "))
	flags.Usage = func() {
		fmt.Fprint(w, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return set, err
	}
	if *only != "" {
		set.only = strings.Split(*only, ",")
	}
	for _, name := range set.only {
		if !slices.Contains(kindNames(), name) {
			return set, fmt.Errorf("-only: there is no fault %q; there are %s", name, strings.Join(kindNames(), ", "))
		}
	}
	site, known := sites[set.server]
	switch {
	case flags.NArg() > 0:
		return set, fmt.Errorf("soak: %q: takes only flags; -h tells more", flags.Args())
	case !known:
		return set, fmt.Errorf("-server %s: takes one of %s", set.server, siteNames())
	case len(kindsOn(site.shape, set.only)) == 0:
		return set, fmt.Errorf("-only %s: does not strike a server that is started with -server %s", *only, set.server)
	case set.naive && site.shape.is(hosts):
		return set, fmt.Errorf("-naive -server %s: plain database/sql has one address", set.server)
	case set.workers < 1:
		return set, fmt.Errorf("-workers %d: takes 1 or more", set.workers)
	case set.duration <= 0:
		return set, fmt.Errorf("-duration %s: takes more than 0", set.duration)
	}
	return set, nil
}

func openLog(report string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(report), 0o755); err != nil {
		return nil, err
	}
	return os.Create(strings.TrimSuffix(report, filepath.Ext(report)) + ".log")
}

// run is one soak under way.
type run struct {
	set    settings
	ground *ground
	start  time.Time
	pool   *livepool.Pool
	work   *work
	lists  *listWork
	plain  *plainWork
	state  *stateWatch
	naive  *naive // nil without -naive
	nem    *nemesis

	mu         sync.Mutex // guards what follows
	violations []violation
}

func (r *run) now() time.Duration { return time.Since(r.start) }

// violated notes what must not be.
func (r *run) violated(vs ...violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violations = append(r.violations, vs...)
}

func (r *run) violationsSoFar() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.violations)
}

// soak is a run from the server's start to the proof that nothing of it is left.
func soak(ctx context.Context, set settings, log io.Writer, progress *os.File) (_ *outcome, err error) {
	traces := takeTraces()
	server.Progress = progress
	g, err := newGround(ctx, set, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		return nil, err
	}
	defer g.close()
	r, err := newRun(ctx, set, g)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(progress, "%s, %d workers, faults for %s\n", g.title, set.workers, set.duration)
	stop := gauge.Progress(progress, r.progress)
	err = r.play(ctx)
	raged := r.now()
	stop()
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(progress, "the faults are over and healed; waiting for the units, then for whatever is left")
	o, err := r.conclude()
	if err != nil {
		return nil, err
	}
	o.raged = raged
	if err := g.close(); err != nil {
		return nil, err
	}
	o.violations = append(o.violations, traces.compare(5*time.Second)...)
	return o, nil
}

// newRun opens the pools and makes their tables.
func newRun(ctx context.Context, set settings, g *ground) (*run, error) {
	r := &run{set: set, ground: g, start: time.Now()}
	live, err := g.addLane("livepool", server.AppUser, server.AppPassword, true)
	if err != nil {
		return nil, err
	}
	if r.pool, err = livepool.OpenConfig(r.config(live)); err != nil {
		return nil, err
	}
	if err := r.pool.CreateCommitTable(ctx); err != nil {
		return nil, err
	}
	if err := g.settle(ctx); err != nil {
		return nil, err
	}
	r.work, r.lists, r.plain, r.state = newWork(r, live), newListWork(r, live), newPlainWork(r, live), &stateWatch{run: r}
	if set.naive {
		lane, err := g.addLane("naive", naiveUser, naivePassword, false)
		if err != nil {
			return nil, err
		}
		if r.naive, err = newNaive(r, lane); err != nil {
			return nil, err
		}
	}
	r.nem = newNemesis(r)
	return r, nil
}

// config is of a pool with patience enough for faults that last for some hundred
// milliseconds, and its defaults otherwise. Several servers need seconds to agree
// on which of them are left.
func (r *run) config(l *lane) *livepool.Config {
	g, cfg := r.ground, livepool.NewConfig()
	cfg.MySQL = l.mysql()
	if g.shape.is(hosts) {
		cfg.Addrs = l.addrs()
	}
	cfg.StallAfter, cfg.PingTimeout, cfg.ConnectTimeout = 500*time.Millisecond, 300*time.Millisecond, time.Second
	cfg.CommitTimeout = commitTimeout
	if g.shape != alone {
		cfg.PoolTimeout, cfg.MaxElapsed = clusterPatience, clusterPatience
	}
	cfg.Logger, cfg.MySQL.Logger = g.log, driverLog{g.log}
	return cfg
}

// driverLog is where the driver reports the connections it loses.
type driverLog struct{ *slog.Logger }

func (l driverLog) Print(v ...any) { l.Info("driver: " + strings.TrimSpace(fmt.Sprintln(v...))) }

// play has the units and the faults meet for the duration. The first violation
// that is seen meanwhile ends it: what matters is near then.
func (r *run) play(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.set.duration)
	defer cancel()
	var wg sync.WaitGroup
	r.work.begin(ctx)
	r.lists.begin(ctx)
	r.plain.begin(ctx)
	r.state.begin(ctx)
	if r.naive != nil {
		r.naive.begin(ctx)
	}
	wg.Go(func() {
		r.watch(ctx)
		cancel()
	})
	err := r.nem.rage(ctx)
	cancel()
	wg.Wait()
	return err
}

// How long whatever is left after the faults may take.
const (
	unitPatience    = 2 * time.Minute // above MaxElapsed
	clusterPatience = time.Minute
	closePatience   = 20 * time.Second
)

// conclude waits until nothing goes on any more and checks everything.
func (r *run) conclude() (*outcome, error) {
	r.violated(r.work.finish(unitPatience)...)
	r.violated(r.lists.finish(unitPatience)...)
	r.violated(r.plain.finish(unitPatience)...)
	r.violated(r.state.finish(unitPatience)...)
	if r.naive != nil {
		r.violated(r.naive.finish(unitPatience)...)
	}
	took := r.now()
	r.violated(r.work.proveAlive()...)
	stats := r.pool.Stats()
	r.violated(within(closePatience, "the pool is closed", r.pool.Close)...)
	if r.naive != nil {
		// Of a plain pool an error is no news: a connection that died while it was idle cannot be closed.
		r.violated(within(closePatience, "the naive pool is closed", func() error { _ = r.naive.db.Close(); return nil })...)
	}
	r.violated(r.ground.leftovers(closePatience)...)

	o := &outcome{set: r.set, server: r.ground.title, took: took, events: r.nem.events, stats: stats}
	o.live = r.account(r.work.deliveries(), r.work.lane)
	books, vs, err := r.ground.read(r.work.lane.tables)
	if err != nil {
		return nil, fmt.Errorf("reading the tables: %w", err)
	}
	r.violated(vs...)
	r.violated(judge(r.work.deliveries(), books)...)
	found, tally, err := r.lists.judge(books)
	if err != nil {
		return nil, err
	}
	r.violated(found...)
	r.violated(judgePlain(r.plain.entries(), books.plain, r.nem.lossy)...)
	r.violated(judgeCauses(r.work.deliveries(), r.nem.lossy)...)
	for _, text := range books.strayed {
		r.violated(violation{Rule: ruleSchema, Text: text})
	}
	o.lists, o.plain, o.looks = tally, r.plain.entries(), int(r.state.looks.Load())
	if r.naive != nil {
		books, vs, err := r.ground.read(r.naive.lane.tables)
		if err != nil {
			return nil, fmt.Errorf("reading the naive tables: %w", err)
		}
		r.violated(vs...) // which is not the naive way's fault
		o.naive = r.account(r.naive.deliveries(), r.naive.lane)
		o.naiveFound = judge(r.naive.deliveries(), books)
	}
	o.violations = r.tellStories(r.violations)
	return o, nil
}

// within reports what does not come to its end in time.
func within(patience time.Duration, what string, f func() error) []violation {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			return []violation{{Rule: what + " without an error", Text: err.Error()}}
		}
		return nil
	case <-time.After(patience):
		return []violation{{Rule: what + " in time", Text: fmt.Sprintf("not within %s\n%s", patience, stacks())}}
	}
}
