package server

// This file fetches programs that are not servers, as the servers are fetched.

import (
	"context"
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
