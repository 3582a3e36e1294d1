// Command mutants breaks the library's promises on purpose, one in each build,
// and shows that a test fails for each: a mistake of that kind would be seen. No
// file is changed; the compiler gets the broken one in place of the whole one.
//
//	go run ./internal/lab/mutants
//	go run ./internal/lab/mutants -run 'COMMIT'
//
// It fails if a mutant survives, does not compile or no longer fits the library.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// library is the module that is broken.
const library = "github.com/livepool/livepool"

// atATime is how many mutants are tried side by side: their tests mostly wait.
const atATime = 2

// patience is how long the tests of one mutant may take. A mutant may wait for
// ever, or spin where time is faked.
const patience = 120 * time.Second

func main() {
	only := flag.String("run", "", "break only the promises that match this `regexp`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string) error {
	chosen, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	start, caught := time.Now(), atomic.Int64{}
	var tried []mutant
	for _, m := range mutants {
		if chosen.MatchString(m.breaks) {
			tried = append(tried, m)
		}
	}
	if len(tried) == 0 {
		return fmt.Errorf("no promise matches %q", only)
	}
	next := make(chan mutant)
	var workers sync.WaitGroup
	for range atATime {
		l, err := openLab(ctx)
		if err != nil {
			return err
		}
		defer os.RemoveAll(l.scratch)
		workers.Go(func() {
			for m := range next {
				if l.report(ctx, m) {
					caught.Add(1)
				}
			}
		})
	}
	for _, m := range tried {
		next <- m
	}
	close(next)
	workers.Wait()
	fmt.Printf("%d of %d mutants caught in %s\n", caught.Load(), len(tried), time.Since(start).Round(time.Second))
	if missed := int64(len(tried)) - caught.Load(); missed > 0 {
		return fmt.Errorf("%d mutants were not caught", missed)
	}
	return ctx.Err()
}

// report tries a mutant, prints what came of it, and says whether it was caught.
func (l *lab) report(ctx context.Context, m mutant) (caught bool) {
	said, err := l.try(ctx, m)
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, errSurvived):
		fmt.Printf("SURVIVED  %s: %v\n", m.breaks, err)
	case err != nil:
		fmt.Printf("UNTRIED   %s: %v\n", m.breaks, err)
	default:
		fmt.Printf("caught    %s: %s\n", m.breaks, said)
		return true
	}
	return false
}

// lab is where mutants are made.
type lab struct {
	root    string // of the library
	scratch string
	tests   tests
	whole   map[string]string // the test programs of the library as it is, by package
	passed  map[aim]error
}

func openLab(ctx context.Context) (*lab, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", library).Output()
	if err != nil {
		return nil, fmt.Errorf("looking for %s: %w", library, err)
	}
	root := strings.TrimSpace(string(out))
	found, err := findTests(root)
	if err != nil {
		return nil, fmt.Errorf("looking for the tests: %w", err)
	}
	scratch, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return nil, err
	}
	return &lab{root: root, scratch: scratch, tests: found, whole: map[string]string{}, passed: map[aim]error{}}, nil
}

// compile makes the test program of a package.
func (l *lab) compile(ctx context.Context, dir, program string, flags ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", program}, flags...)...)
	cmd.Dir = filepath.Join(l.root, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// errSurvived: no test has failed.
var errSurvived = errors.New("the tests pass")

// try makes one mutant and says what caught it. An error but errSurvived is why
// that is not known.
func (l *lab) try(ctx context.Context, m mutant) (said string, err error) {
	aims, err := l.tests.aims(m.test)
	if err != nil {
		return "", err
	}
	overlay, err := l.mutate(m)
	if err != nil {
		return "", err
	}
	for _, a := range aims {
		if err := l.provesItself(ctx, a); err != nil {
			return "", err
		}
		program := filepath.Join(l.scratch, "mutant.test")
		if err := l.compile(ctx, a.dir, program, "-overlay", overlay); err != nil {
			return "", fmt.Errorf("it does not compile: %w", err)
		}
		start := time.Now()
		if out, err := l.runTest(ctx, program, a); err != nil {
			return fmt.Sprintf("by %s in %s", catcher(out), time.Since(start).Round(10*time.Millisecond)), nil
		}
	}
	return "", fmt.Errorf("%w: %s", errSurvived, m.test)
}

// provesItself has the test run on the library as it is: a test that fails there,
// or is skipped, shows nothing of a mutant.
func (l *lab) provesItself(ctx context.Context, a aim) error {
	err, known := l.passed[a]
	if known {
		return err
	}
	program, err := l.wholeProgram(ctx, a.dir)
	if err != nil {
		return err
	}
	out, failure := l.runTest(ctx, program, a)
	switch {
	case failure != nil:
		err = fmt.Errorf("%s fails on the library as it is: %w\n%s", a.pattern, failure, tail(out))
	case !hasRun(out, a.pattern):
		err = fmt.Errorf("%s does not run, or is skipped", a.pattern)
	}
	l.passed[a] = err
	return err
}

// wholeProgram is the test program of a package of the library as it is.
func (l *lab) wholeProgram(ctx context.Context, dir string) (string, error) {
	if program := l.whole[dir]; program != "" {
		return program, nil
	}
	program := filepath.Join(l.scratch, fmt.Sprintf("whole%d.test", len(l.whole)))
	if err := l.compile(ctx, dir, program); err != nil {
		return "", fmt.Errorf("the library as it is does not compile: %w", err)
	}
	l.whole[dir] = program
	return program, nil
}

// mutate breaks a file and says where the compiler is told of it.
func (l *lab) mutate(m mutant) (overlay string, err error) {
	file := filepath.Join(l.root, filepath.FromSlash(m.file))
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	broken, err := m.apply(string(text))
	if err != nil {
		return "", err
	}
	mutated := filepath.Join(l.scratch, "mutated.go")
	overlay = filepath.Join(l.scratch, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {file: mutated}})
	if err != nil {
		return "", err
	}
	return overlay, errors.Join(os.WriteFile(mutated, []byte(broken), 0o600), os.WriteFile(overlay, replace, 0o600))
}

// runTest runs a test program as "go test" does, with its package's directory as
// its own.
func (l *lab) runTest(ctx context.Context, program string, a aim) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience+10*time.Second) // should it not end itself
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.run", a.pattern, "-test.v", "-test.count=1", "-test.failfast",
		"-test.paniconexit0", "-test.timeout", patience.String())
	cmd.Dir, cmd.WaitDelay = filepath.Join(l.root, a.dir), time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}
