package server

// This file finds a server program to run: one installed on the machine, one fetched earlier,
// or one fetched now. It knows what each kind is and how its program is called; fetching
// itself is in fetch.go, data directories are in template.go.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
)

// Kind names a sort of server.
type Kind string

const (
	// MariaDB is MariaDB 10.11, or whichever is installed where that cannot be had.
	MariaDB Kind = "mariadb"
	// MariaDB118 is MariaDB 11.8.
	MariaDB118 Kind = "mariadb-11.8"
	// MySQL is Oracle's MySQL 8 or newer.
	MySQL Kind = "mysql"
)

// Product is what people call it.
func (k Kind) Product() string {
	if k == MySQL {
		return "MySQL"
	}
	return "MariaDB"
}

// Kinds are all the kinds there are, in the order in which tests run them.
func Kinds() []Kind { return []Kind{MariaDB, MariaDB118, MySQL} }

// ErrUnavailable is wrapped by the errors of Find and Start when the machine has no server of
// that kind and none can be fetched. The error's text says what to do.
var ErrUnavailable = errors.New("no server to be had")

// Progress is where Find tells about a step that takes seconds, such as a fetch.
var Progress io.Writer = os.Stderr

// A recipe says how a kind is recognised and where Debian has it.
type recipe struct {
	name    string
	matches func(version string) bool
	similar func(version string) bool // would do; nil: nothing else does
	pkg     string                    // Debian packages; their dependencies come with them
	suite   string                    // Debian suite that has it
	size    string                    // of the download, for the person who waits
	useless []string                  // patterns of what is removed again; nil: uselessToServers
}

var recipes = map[Kind]recipe{
	MariaDB: {
		name:    "MariaDB 10.11",
		matches: func(v string) bool { return strings.HasPrefix(v, "10.11.") && strings.Contains(v, "MariaDB") },
		similar: func(v string) bool { return strings.Contains(v, "MariaDB") },
		pkg:     "mariadb-server-core",
		suite:   "bookworm",
		size:    "15 MB",
	},
	MariaDB118: {
		name:    "MariaDB 11.8",
		matches: func(v string) bool { return strings.HasPrefix(v, "11.8.") && strings.Contains(v, "MariaDB") },
		pkg:     "mariadb-server-core",
		suite:   "trixie",
		size:    "20 MB",
	},
	MySQL: {
		name: "MySQL",
		// MySQL 5.7 and older lack options that we pass.
		matches: func(v string) bool {
			return regexp.MustCompile(`^([89]|\d\d)\.`).MatchString(v) && !strings.Contains(v, "MariaDB")
		},
		pkg:   "mysql-server-core",
		suite: "sid",
		size:  "60 MB",
	},
}

// Install is a server program that can be run.
type Install struct {
	Kind    Kind
	Version string // as the program says it, such as 10.11.18-MariaDB-0+deb12u1

	bin    string   // the server program
	root   string   // the tree it was fetched into, or empty if the machine has it installed
	loader []string // the fetched tree's own ld.so and its arguments
	share  string   // directory of the program's messages, character sets and SQL files
}

// String names the program for a person.
func (in *Install) String() string { return fmt.Sprintf("%s %s (%s)", in.Kind, in.Version, in.bin) }

var installs struct {
	sync.Mutex
	found map[Kind]findResult
}

type findResult struct {
	in  *Install
	err error
}

// Find returns a server program of that kind, fetching one into the user's cache directory (or
// that named by LIVEPOOL_CACHE) if need be. The answer is remembered, also a no.
func Find(ctx context.Context, kind Kind) (*Install, error) {
	installs.Lock()
	defer installs.Unlock()
	if r, ok := installs.found[kind]; ok {
		return r.in, r.err
	}
	in, err := find(ctx, kind)
	if ctx.Err() == nil {
		if installs.found == nil {
			installs.found = map[Kind]findResult{}
		}
		installs.found[kind] = findResult{in, err}
	}
	return in, err
}

func find(ctx context.Context, kind Kind) (*Install, error) {
	r, ok := recipes[kind]
	if !ok {
		return nil, fmt.Errorf("%w: unknown kind %q", ErrUnavailable, kind)
	}
	if runtime.GOOS != "linux" {
		return nil, fmt.Errorf("%w: private servers need Linux", ErrUnavailable)
	}
	if in := installed(ctx, kind, r.matches); in != nil {
		return in, nil
	}
	in, err := fetched(ctx, kind, r)
	if err != nil && r.similar != nil {
		if other := installed(ctx, kind, r.similar); other != nil {
			return other, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s is neither installed nor could it be fetched from Debian: %w\n"+
			"(install its server package so that mariadbd or mysqld is in PATH or /usr/sbin; it need not run)",
			ErrUnavailable, r.name, err)
	}
	return in, nil
}

// installed looks for a usable program on the machine itself.
func installed(ctx context.Context, kind Kind, matches func(version string) bool) *Install {
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin", "/usr/libexec")
	for _, dir := range dirs {
		for _, name := range []string{"mariadbd", "mysqld"} {
			bin := filepath.Join(dir, name)
			if _, err := exec.LookPath(bin); err != nil || !filepath.IsAbs(bin) {
				continue
			}
			in := &Install{Kind: kind, bin: bin}
			if in.inspect(ctx, filepath.Dir(dir)) == nil && matches(in.Version) {
				return in
			}
		}
	}
	return nil
}

// opened looks at a tree that was fetched. Its program runs through the tree's own ld.so, with
// the tree's own libraries and nothing of the machine's, whatever that is.
func opened(ctx context.Context, kind Kind, root string) (*Install, error) {
	in := &Install{Kind: kind, root: root}
	for _, name := range []string{"mariadbd", "mysqld"} {
		if bin := filepath.Join(root, "usr/sbin", name); isFile(bin) {
			in.bin = bin
			break
		}
	}
	in.loader = loaderOf(root)
	if in.bin == "" || in.loader == nil {
		return nil, fmt.Errorf("%s holds no server program", root)
	}
	return in, in.inspect(ctx, filepath.Join(root, "usr"))
}

// loaderOf is the ld.so of a tree that was fetched, with its arguments, or nil.
func loaderOf(root string) []string {
	var libs, loaders []string
	for _, dir := range []string{"lib/*-linux-*", "usr/lib/*-linux-*"} {
		l, _ := filepath.Glob(filepath.Join(root, dir))
		libs = append(libs, l...)
		l, _ = filepath.Glob(filepath.Join(root, dir, "ld-linux*.so.*"))
		loaders = append(loaders, l...)
	}
	if len(loaders) == 0 {
		return nil
	}
	return []string{loaders[0], "--library-path", strings.Join(libs, ":")}
}

var versionRE = regexp.MustCompile(`\sVer (\S+)`)

// inspect asks the program for its version and finds the files that belong to it.
func (in *Install) inspect(ctx context.Context, prefix string) error {
	argv := in.command("--version")
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w: %s", in.bin, err, out)
	}
	m := versionRE.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("%s --version: no version in %q", in.bin, out)
	}
	in.Version = string(m[1])
	for _, name := range []string{"mariadb", "mysql"} {
		share := filepath.Join(prefix, "share", name)
		if isFile(filepath.Join(share, "english", "errmsg.sys")) {
			in.share = share
			return nil
		}
	}
	return fmt.Errorf("%s: its messages are not under %s", in.bin, prefix)
}

// command returns the command line that runs the program with args.
func (in *Install) command(args ...string) []string {
	argv := append([]string{}, in.loader...)
	argv = append(argv, in.bin, "--no-defaults")
	if in.root != "" && in.share != "" {
		argv = append(argv,
			"--basedir="+filepath.Join(in.root, "usr"),
			"--plugin-dir="+filepath.Join(in.root, "usr/lib/mysql/plugin"),
			"--lc-messages-dir="+in.share,
			"--character-sets-dir="+filepath.Join(in.share, "charsets"))
	}
	if os.Geteuid() == 0 {
		argv = append(argv, "--user=root") // they refuse to run as root by accident
	}
	return append(argv, args...)
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// cacheDir is where trees and templates are kept from one run to the next.
func cacheDir() (string, error) {
	if dir := os.Getenv("LIVEPOOL_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w (set LIVEPOOL_CACHE to a directory)", err)
	}
	return filepath.Join(dir, "livepool"), nil
}

// Cached returns the directory of that name in the cache. If it is not there, make is called
// with an empty directory to fill, which then takes the name: at no time is there a half-made
// one, and of two test binaries in parallel one makes it and the other waits.
func Cached(ctx context.Context, name string, make func(dir string) error) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := waitLock(ctx, lock); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil // made while we waited
	}
	stale, _ := filepath.Glob(filepath.Join(cache, "making-*")) // of a maker that was killed
	for _, s := range stale {
		os.RemoveAll(s)
	}
	tmp, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	content := filepath.Join(tmp, "d")
	if err := os.Mkdir(content, 0o755); err != nil {
		return "", err
	}
	if err := make(content); err != nil {
		return "", err
	}
	return dir, os.Rename(content, dir)
}
