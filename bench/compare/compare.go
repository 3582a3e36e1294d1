// Package compare shows pools side by side: what each is worth when connections die, and
// what it costs when nothing is wrong. It takes no side: where another is better than
// livepool the report says so.
//
// compare.go is the command and the course of a run. Who takes part is contender.go,
// pools.go, gomysql.go and process.go; how they work, load.go; on what, stage.go. The
// scenarios are hot.go, faults.go, lock.go and scale.go; what their jobs are held against,
// judge.go. How it is told is table.go, report.go and page.go.
package compare

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/bench/gauge"
	"github.com/livepool/livepool/internal/lab/server"
)

// What Main returns for the program to end with.
const (
	exitDone   = iota
	exitBroken // livepool lost a unit, or applied one twice
	exitNoRun
)

const usage = `usage: go run ./bench compare [flags]

Pools side by side, on a private MariaDB or MySQL: plain database/sql in four ways, go-mysql, livepool in
three, and with -peers HikariCP and SQLAlchemy. What each costs when nothing is wrong, and what becomes
of its jobs when connections die. It takes about 10 minutes for each server.
Exit code: 0 done, 1 livepool lost a unit of work or applied one twice, 2 no run.

`

// settings are the command line.
type settings struct {
	short    bool
	scenario *regexp.Regexp
	kinds    []server.Kind
	peers    bool
	out      string
}

func parse(args []string, w io.Writer) (set settings, err error) {
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	flags.SetOutput(w)
	flags.BoolVar(&set.short, "short", false, "everything small: to see that it works, not to compare")
	scenario := flags.String("scenario", "", "a regular `expression` for the names of the scenarios to run:\n"+scenarioNames())
	kind := flags.String("server", "mariadb", "`which` server to start: mariadb, mysql or both")
	flags.BoolVar(&set.peers, "peers", false, "pools of other languages too: HikariCP and SQLAlchemy, fetched from Debian without root;\n4 minutes more")
	flags.StringVar(&set.out, "out", filepath.Join("bench", "out"), "`directory` for compare.html, compare.json, compare.txt and compare.log")
	flags.Usage = func() {
		fmt.Fprint(w, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return set, err
	}
	if flags.NArg() > 0 {
		return set, fmt.Errorf("compare: %q: takes only flags; -h tells more", flags.Args())
	}
	kinds := map[string][]server.Kind{"mariadb": {server.MariaDB}, "mysql": {server.MySQL}, "both": {server.MariaDB, server.MySQL}}
	if set.kinds = kinds[*kind]; set.kinds == nil {
		return set, fmt.Errorf("-server %s: takes mariadb, mysql or both", *kind)
	}
	if set.scenario, err = regexp.Compile(*scenario); err != nil {
		return set, fmt.Errorf("-scenario: %w", err)
	}
	if !slices.ContainsFunc(scenarios, func(s part) bool { return set.scenario.MatchString(s.name) }) {
		return set, fmt.Errorf("-scenario %s: fits none of\n%s", *scenario, scenarioNames())
	}
	return set, nil
}

// Main runs the comparison with the arguments that follow its name.
func Main(ctx context.Context, args []string, stdout, stderr *os.File) (code int, err error) {
	set, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitDone, nil
	}
	if err != nil {
		return exitNoRun, err
	}
	if err := os.MkdirAll(set.out, 0o755); err != nil {
		return exitNoRun, err
	}
	log, err := os.Create(filepath.Join(set.out, "compare.log"))
	if err != nil {
		return exitNoRun, err
	}
	defer log.Close()
	server.Progress = stderr
	r, err := newRun(set, log)
	if err != nil {
		return exitNoRun, err
	}
	if set.peers {
		r.addPeers(ctx, stderr)
	}
	stop := gauge.Progress(stderr, r.progress)
	rep, err := r.play(ctx)
	stop()
	if err != nil {
		return exitNoRun, err
	}
	rep.write(stdout)
	if err := rep.save(set.out); err != nil {
		return exitNoRun, err
	}
	fmt.Fprintf(stdout, "\nthe same as a page: %s; as JSON: compare.json; for benchstat: compare.txt; what the pools logged: compare.log\n", filepath.Join(set.out, pageName))
	if rep.broken != "" {
		fmt.Fprintln(stdout, rep.broken)
		return exitBroken, nil
	}
	return exitDone, nil
}

// run is a comparison under way.
type run struct {
	set       settings
	scale     scale
	entries   []entry
	log       io.Writer
	start     time.Time
	databases int // made so far
	report    *report

	mu    sync.Mutex // guards what follows
	doing string     // for the progress line
}

// newRun has what the drivers and pools log go to the log, where it does not tear the
// progress line.
func newRun(set settings, log io.Writer) (*run, error) {
	r := &run{set: set, scale: full, log: log, start: time.Now()}
	if set.short {
		r.scale = short
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
	r.report = newReport(r)
	for _, e := range inGo() {
		r.addEntry(e)
	}
	return r, mysql.SetLogger(driverLog{})
}

// addEntry has one more take part.
func (r *run) addEntry(e entry) {
	r.entries = append(r.entries, e)
	r.report.order = append(r.report.order, e.name)
	r.report.Contenders[e.name] = e.what
}

// driverLog is where the driver reports the connections it loses.
type driverLog struct{}

func (driverLog) Print(v ...any) { slog.Info("driver: " + fmt.Sprint(v...)) }

func (r *run) enter(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doing = fmt.Sprintf(format, args...)
}

func (r *run) progress() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%4.0fs  %s", time.Since(r.start).Seconds(), r.doing)
}

// seen notes the versions by which a lane introduced itself.
func (s *stage) seen(l *lane) { s.report.Contenders[l.entry.name] = l.what + "; " + l.Name() }

// part is a part of the comparison, which makes tables.
type part struct {
	name string
	play func(ctx context.Context, s *stage) ([]table, error)
}

var scenarios = []part{
	{"hot path", hotPath},
	{"idle past wait_timeout", idlePastWaitTimeout},
	{"restarts", restarts},
	{"planned switch", plannedSwitch},
	{"black hole of idle connections", blackHole(false)},
	{"black hole of busy connections", blackHole(true)},
	{"orphaned lock", orphanedLock},
	{"recycle", recycleUnderLoad},
	{"crowd", crowd},
}

func scenarioNames() (text string) {
	for _, s := range scenarios {
		text += "  " + s.name + "\n"
	}
	return text[:len(text)-1]
}

// play plays the scenarios on each server.
func (r *run) play(ctx context.Context) (*report, error) {
	for _, kind := range r.set.kinds {
		if err := r.playOn(ctx, kind); err != nil {
			return nil, err
		}
	}
	r.report.Took = time.Since(r.start).Round(time.Second).String()
	return r.report, nil
}

func (r *run) playOn(ctx context.Context, kind server.Kind) error {
	srv, err := server.Start(ctx, kind, serverOptions)
	if err != nil {
		return err
	}
	defer srv.Close()
	s, err := newStage(r, srv)
	if err != nil {
		return err
	}
	defer s.admin.Close()
	on := &onServer{Server: s.title()}
	r.report.Servers = append(r.report.Servers, on)
	for _, p := range scenarios {
		if !r.set.scenario.MatchString(p.name) {
			continue
		}
		r.enter("%s: %s", on.Server, p.name)
		tables, err := p.play(ctx, s)
		if err = errors.Join(ctx.Err(), err); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		for _, t := range tables {
			t.Scenario = p.name
			on.Tables = append(on.Tables, &t)
		}
	}
	return nil
}

var serverOptions = server.Options{Args: []string{fmt.Sprint("--max-connections=", maxConnections)}}

// scale is how large everything is.
type scale struct {
	block    time.Duration // of the hot path
	rounds   int
	callers  []int
	most     int // connections of the hot path
	restarts int
	calm     time.Duration // of load before a fault
	after    time.Duration // of load after it
	cap      time.Duration // after which a wait has no end
	recycled int           // connections
	crowd    int           // callers
	few      int           // connections for them
}

var (
	full = scale{
		block: 150 * time.Millisecond, rounds: 9, callers: []int{1, 8, 64, 512}, most: 64,
		restarts: 3, calm: 2 * time.Second, after: 4 * time.Second, cap: 30 * time.Second, recycled: 500, crowd: 10_000, few: 20,
	}
	short = scale{
		block: 20 * time.Millisecond, rounds: 2, callers: []int{1, 8}, most: 4,
		restarts: 1, calm: 500 * time.Millisecond, after: time.Second, cap: 2 * time.Second, recycled: 20, crowd: 200, few: 4,
	}
)
