// Command conformance runs the test suites of other projects twice on the same server, on plain
// database/sql and through livepool, and shows where the outcomes differ: livepool promises that
// what works on a *sql.DB works on it, and those suites know best what that is.
//
//	go run ./internal/lab/conformance
//	go run ./internal/lab/conformance -suite mysql -server mariadb -v
//	go run ./internal/lab/conformance -docs
//
// No file of a suite or of the library is changed, and none is kept here: the compiler gets a
// database/sql that asks livepool for its pools (overlay.go), and both runs are of one program. The
// suites and their versions are those that the examples require, fetched as modules.
//
// It fails if an outcome differs and suites.go does not explain it, if it explains what does not
// differ any more, and if a suite ran no test or opened no pool of livepool's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/livepool/livepool/internal/lab/server"
)

func main() {
	only := flag.String("suite", "", "run only the suites whose name matches this `regexp`")
	kind := flag.String("server", "", "run on this `kind` of server only: mariadb, mariadb-11.8 or mysql; default: on mariadb and mysql")
	verbose := flag.Bool("v", false, "show what each test said whose outcome differs")
	docs := flag.Bool("docs", false, "write docs/conformance.md; it takes all suites and servers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	kinds := []server.Kind{server.MariaDB, server.MySQL}
	if *kind != "" {
		kinds = []server.Kind{server.Kind(*kind)}
	}
	err := run(ctx, *only, kinds, *verbose, *docs)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, kinds []server.Kind, verbose, docs bool) error {
	chosen, err := regexp.Compile(only)
	switch {
	case err != nil:
		return err
	case docs && (only != "" || len(kinds) == 1):
		return errors.New("-docs takes all suites and servers: leave out -suite and -server")
	}
	l, err := openLab(ctx)
	if err != nil {
		return err
	}
	defer os.RemoveAll(l.scratch)
	var results []result
	for _, kind := range kinds {
		onServer, err := l.runSuites(ctx, chosen, kind, kind == kinds[0])
		if err != nil {
			return err
		}
		results = append(results, onServer...)
	}
	fmt.Print(table(results))
	problems := 0
	for _, r := range results {
		problems += r.report(os.Stderr, verbose)
	}
	switch {
	case len(results) == 0:
		return fmt.Errorf("no suite matches %q", only)
	case problems > 0:
		return fmt.Errorf("%d problems", problems)
	case docs:
		return os.WriteFile(filepath.Join(l.root, "docs", "conformance.md"), []byte(page(results)), 0o644)
	}
	return nil
}

// runSuites runs the chosen suites that need a server on one of that kind, and, if it is the first
// kind, those that need none.
func (l *lab) runSuites(ctx context.Context, chosen *regexp.Regexp, kind server.Kind, first bool) (results []result, err error) {
	var s *server.Server
	for _, suite := range suites {
		needsServer := len(suite.databases) > 0
		if !chosen.MatchString(suite.name) || !needsServer && !first {
			continue
		}
		if needsServer && s == nil {
			if s, err = server.Start(ctx, kind, server.Options{Args: serverArgs, TLS: true}); err != nil {
				return nil, err
			}
			defer s.Close()
		}
		r, err := l.runSuite(ctx, suite, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", suite.name, err)
		}
		results = append(results, r)
	}
	return results, nil
}

// serverArgs are what the suites expect of a server beyond its defaults.
var serverArgs = strings.Fields("--local-infile=1 --max-allowed-packet=64M --log-bin-trust-function-creators=1")
