package main

// This file runs the program of a suite both ways.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/livepool/livepool/internal/lab/server"
)

// A result is what came of a suite.
type result struct {
	comparison
	program
	server          string
	why             map[string]string // the explanations that count on this server
	plain, livepool ran
	settled         []string // what was as expected only when it was run again alone
	took            time.Duration
}

// runSuite runs a suite both ways, and once more alone what is not as it is explained to be: timing
// may have decided it, beside all the others.
func (l *lab) runSuite(ctx context.Context, s suite, on *server.Server) (r result, err error) {
	start := time.Now()
	if r.program, err = l.build(ctx, s); err != nil {
		return r, err
	}
	r.server, r.why = "none", s.explained
	if len(s.databases) > 0 {
		version, _, _ := strings.Cut(on.Version(), "-")
		r.server = on.Kind().Product() + " " + version
		r.why = s.explanations(on.Kind())
	}
	fmt.Fprintf(os.Stderr, "%s %s on %s: built in %s\n", s.name, r.version, r.server, time.Since(start).Round(time.Second))
	if r.plain, r.livepool, err = r.both(ctx, on, "."); err != nil {
		return r, err
	}
	if err := meansNothing(r.plain, r.livepool); err != nil {
		return r, err
	}
	r.comparison = compare(r.plain, r.livepool, r.why)
	if doubted := slices.Concat(r.unknown, r.obsolete); len(doubted) > 0 {
		var tests []string
		for _, name := range doubted {
			test, _, _ := strings.Cut(name, "/")
			tests = append(tests, test)
		}
		plain, livepool, err := r.both(ctx, on, "^("+strings.Join(tests, "|")+")$")
		if err != nil {
			return r, err
		}
		r.plain.replace(tests, plain)
		r.livepool.replace(tests, livepool)
		r.comparison = compare(r.plain, r.livepool, r.why)
		for _, name := range doubted {
			if !slices.Contains(r.unknown, name) && !slices.Contains(r.obsolete, name) {
				r.settled = append(r.settled, name)
			}
		}
	}
	r.took = time.Since(start)
	return r, nil
}

// both runs the tests that match a pattern, first on plain database/sql.
func (p program) both(ctx context.Context, on *server.Server, pattern string) (plain, livepool ran, err error) {
	if plain, err = p.run(ctx, on, pattern, false); err == nil {
		livepool, err = p.run(ctx, on, pattern, true)
	}
	return plain, livepool, err
}

// patience is how long one run of a suite may take.
const patience = 15 * time.Minute

// run runs the tests that match a pattern, on new databases.
func (p program) run(ctx context.Context, on *server.Server, pattern string, throughLivepool bool) (ran, error) {
	fill := strings.NewReplacer()
	if len(p.databases) > 0 {
		fill = strings.NewReplacer("{dsn}", strings.TrimSuffix(on.DSN(), server.Database),
			"{addr}", on.Addr(), "{user}", server.User, "{password}", server.Password)
	}
	for _, name := range p.databases {
		for _, statement := range []string{"DROP DATABASE IF EXISTS ", "CREATE DATABASE "} {
			if err := on.Exec(statement + name); err != nil {
				return ran{}, err
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience+time.Minute)
	defer cancel()
	pools := filepath.Join(p.scratch, "pools")
	if err := os.RemoveAll(pools); err != nil {
		return ran{}, err
	}
	cmd := exec.CommandContext(ctx, p.path(), "-test.v=test2json", "-test.timeout="+patience.String(), "-test.run="+pattern)
	cmd.Dir, cmd.Env = p.dir, append(os.Environ(), "TMPDIR="+p.scratch)
	for _, arg := range p.args {
		cmd.Args = append(cmd.Args, fill.Replace(arg))
	}
	for _, variable := range p.env {
		cmd.Env = append(cmd.Env, fill.Replace(variable))
	}
	if throughLivepool {
		cmd.Env = append(cmd.Env, hooksEnv+"="+pools)
	}
	out, err := cmd.CombinedOutput()
	if failed := (&exec.ExitError{}); ctx.Err() != nil || err != nil && !errors.As(err, &failed) {
		return ran{}, errors.Join(err, ctx.Err())
	}
	r, err := events(ctx, bytes.NewReader(out))
	if opened, err := os.ReadFile(pools); err == nil {
		r.pools = len(opened)
	}
	return r, err
}

// events reads what a test program printed.
func events(ctx context.Context, printed io.Reader) (ran, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	cmd.Stdin = printed
	out, err := cmd.Output()
	if err != nil {
		return ran{}, fmt.Errorf("go tool test2json: %w", err)
	}
	return read(bytes.NewReader(out))
}
