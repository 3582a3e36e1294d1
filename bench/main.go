// Command bench shows what a pool does under a worker whose connections die.
//
//	go run ./bench           the same jobs and the same faults on plain database/sql
//	                         and on livepool, side by side; 80 s
//	go run ./bench hot       what livepool costs where nothing is wrong
//	go run ./bench idle      what it costs where nobody uses it
//	go run ./bench soak      units of work under faults for as long as one likes,
//	                         and every row held against what they were told
//	go run ./bench compare   other pools and livepool side by side: what each costs,
//	                         and what becomes of its jobs when connections die
//
// main.go reads the command line and says how it ended; the run is in run.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/go-sql-driver/mysql"

	pools "github.com/livepool/livepool/bench/compare"
	"github.com/livepool/livepool/bench/gauge"
	"github.com/livepool/livepool/bench/soak"
)

const usage = `usage: go run ./bench [flags]           a worker whose connections die, on plain database/sql and on livepool
       go run ./bench [flags] hot       what livepool costs where nothing is wrong; -history keeps it
       go run ./bench [flags] idle      what it costs at rest: the CPU time of 2,000 idle connections, memory
       go run ./bench soak [flags]      units of work under faults for as long as you like; soak -h tells more
       go run ./bench compare [flags]   pools side by side, other libraries too; compare -h tells more

The server is that of -dsn, or a MariaDB or MySQL on this machine, started privately; failing
that one fetched from Debian without root; failing that a small embedded one.
Exit code: 0 livepool kept its promise, 1 it did not, 2 no run.

`

// usageError is a mistake on the command line.
type usageError string

func (e usageError) Error() string { return string(e) }

func main() {
	dsn := flag.String("dsn", "", "use your own server: `user:password@tcp(host:port)/database`; it is not restarted,\nonly this program's own tables and connections are touched")
	kind := flag.String("server", "auto", "`which` server to start: auto, mariadb, mariadb-11.8, mysql or embedded")
	out := flag.String("out", filepath.Join("bench", "out"), "`directory` for the picture and the log")
	history := flag.String("history", "", "`file` to which hot appends its figures, such as bench/history.csv: for a run on a quiet\nmachine; not if two equal pools differ by more than 2%")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := dispatch(ctx, flag.Args(), options{*dsn, *kind, *out, *history})
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
	}
	os.Exit(code)
}

const (
	exitKept = iota
	exitBroken
	exitNoRun
)

// options are the flags of the command line.
type options struct{ dsn, kind, out, history string }

func dispatch(ctx context.Context, args []string, o options) (int, error) {
	var command func(context.Context, *site, options) (kept bool, err error)
	switch {
	case len(args) > 0 && args[0] == "soak":
		return soak.Main(ctx, args[1:], os.Stdout, os.Stderr)
	case len(args) > 0 && args[0] == "compare":
		return pools.Main(ctx, args[1:], os.Stdout, os.Stderr)
	case len(args) == 0:
		command = endure
	case len(args) == 1 && args[0] == "hot":
		command = hot
	case len(args) == 1 && args[0] == "idle":
		command = idle
	default:
		return exitNoRun, usageError(fmt.Sprintf("%q: takes nothing, hot, idle, soak or compare; -h tells more", args))
	}
	if o.history != "" && len(args) == 0 {
		return exitNoRun, usageError("-history: only hot has figures for it")
	}
	closeLog, err := logTo(filepath.Join(o.out, logName))
	if err != nil {
		return exitNoRun, err
	}
	defer closeLog()
	site, err := findSite(ctx, os.Stderr, o.dsn, o.kind)
	if err != nil {
		return exitNoRun, err
	}
	defer site.close()
	kept, err := command(ctx, site, o)
	switch {
	case ctx.Err() != nil:
		return exitNoRun, errors.New("interrupted")
	case err != nil:
		return exitNoRun, err
	case !kept:
		return exitBroken, nil
	}
	return exitKept, nil
}

// endure plays the plan, prints what came of it and draws the picture.
func endure(ctx context.Context, site *site, opts options) (kept bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the workers
	phases, skipped := planFor(site)
	fmt.Fprintf(os.Stderr, "%s; %d phases, about 80 s\n", site, len(phases))
	r, err := newRun(ctx, site, defaultLoad)
	if err != nil {
		return false, err
	}
	defer r.close()
	stop := gauge.Progress(os.Stderr, r.progress)
	marks, err := r.play(ctx, phases)
	stop()
	if err != nil {
		return false, err
	}
	o := &outcome{site: site, phases: phases, skipped: skipped, marks: marks, took: r.now()}
	if o.lanes, err = r.audit(ctx); err != nil {
		return false, err
	}
	if err := o.draw(opts.out); err != nil {
		return false, err
	}
	o.write(os.Stdout, "picture: "+filepath.Join(opts.out, pageName), "what the pools logged: "+filepath.Join(opts.out, logName))
	kept, _ = o.verdict()
	return kept, nil
}

const logName = "log.txt"

// logTo sends to a file what the driver and livepool log, which would tear the
// progress line.
func logTo(path string) (closeLog func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(f, nil)))
	return f.Close, mysql.SetLogger(driverLog{f})
}

// driverLog is where the driver reports the connections it loses.
type driverLog struct{ io.Writer }

func (l driverLog) Print(v ...any) { fmt.Fprintln(l, append([]any{"driver:"}, v...)...) }
