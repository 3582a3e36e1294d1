package server

// This file fetches programs that are not servers, as the servers are fetched, and runs those that
// stay.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Packages are Debian packages to fetch for the programs in them.
type Packages struct {
	Name, Suite string // Name also names the directory in the cache
	Names       string // of the packages, with spaces between; their dependencies come with them
	Size        string // of the download, for the person who waits
}

// Programs are packages that were fetched.
type Programs struct {
	Root   string // where they are unpacked
	loader []string
}

// FetchPrograms returns the packages from the cache, fetching them first if need be. Its errors wrap ErrUnavailable.
func FetchPrograms(ctx context.Context, p Packages) (*Programs, error) {
	if runtime.GOOS != "linux" {
		return nil, fmt.Errorf("%w: what is fetched needs Linux", ErrUnavailable)
	}
	r := recipe{name: p.Name, pkg: p.Names, suite: p.Suite, size: p.Size,
		useless: []string{"var", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/jvm/*/jmods",
			"usr/share/perl*", "usr/lib/*/perl*", "usr/lib/*/libperl.so*"}} // of what only an installation runs
	root, err := Cached(ctx, p.Name+"-"+runtime.GOARCH, func(dir string) error { return fetch(ctx, r, dir) })
	if err != nil {
		return nil, fmt.Errorf("%w: %s could not be fetched from Debian: %w", ErrUnavailable, p.Name, err)
	}
	programs := &Programs{Root: root, loader: loaderOf(root)}
	if programs.loader == nil {
		return nil, fmt.Errorf("%w: %s holds no ld.so: remove it", ErrUnavailable, root)
	}
	return programs, nil
}

// Command runs a program, named by its path below Root, by the tree's own ld.so, with the tree's own libraries and
// nothing of the machine's, whatever that is.
func (p *Programs) Command(program string, args ...string) *exec.Cmd {
	argv := append(append(append([]string{}, p.loader...), filepath.Join(p.Root, program)), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "LD_PRELOAD=", "LD_LIBRARY_PATH=")
	return cmd
}

// A daemon is a fetched program that runs in a directory of its own.
type daemon struct {
	name string
	dir  string
	lock *os.File // on dir, as of a Server
	proc *process
}

// makeDaemon makes the directory of one.
func makeDaemon(name string) (d daemon, err error) {
	d.name = name
	d.dir, d.lock, err = makeDir()
	return d, err
}

// start starts argv, and returns when it is ready. The context bounds the start only.
func (d *daemon) start(ctx context.Context, argv []string, ready func() bool) error {
	log, err := os.Create(d.logFile())
	if err != nil {
		return err
	}
	defer log.Close()
	if d.proc, err = startProcess(argv, nil, log); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		if !d.proc.running() {
			return false, fmt.Errorf("it ended: %v", d.proc.err)
		}
		return ready(), nil
	})
}

// startError is the error of a daemon that did not start, and is closed.
func (d *daemon) startError(err error) error {
	err = fmt.Errorf("%s does not start: %w\n%s", d.name, err, d.Log())
	return errors.Join(err, d.Close())
}

// Close ends it and removes all that it wrote. It may be called more than once.
func (d *daemon) Close() error {
	if d.proc != nil {
		d.proc.kill()
	}
	err := os.RemoveAll(d.dir)
	d.lock.Close()
	return err
}

// Log is the end of what it had to say, for the output of a test that failed.
func (d *daemon) Log() string { return tail(d.logFile()) }

func (d *daemon) logFile() string { return filepath.Join(d.dir, "log") }
