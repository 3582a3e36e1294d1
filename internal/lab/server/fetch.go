package server

// This file fetches a server from the Debian archive into a directory, without root and
// without installing anything: apt, with its state redirected, downloads the package and all
// that it depends on, down to libc. Which archive, is read from the machine's own apt sources
// (sources.go); running what was fetched is install.go's part.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// fetched returns the server of that kind from the cache, fetching it first if need be.
func fetched(ctx context.Context, kind Kind, r recipe) (*Install, error) {
	name := fmt.Sprintf("%s-%s", kind, runtime.GOARCH)
	root, err := Cached(ctx, name, func(dir string) error { return fetch(ctx, r, dir) })
	if err != nil {
		return nil, err
	}
	in, err := opened(ctx, kind, root)
	if err == nil && !r.matches(in.Version) {
		err = fmt.Errorf("%s holds version %s: remove it", root, in.Version)
	}
	return in, err
}

// fetch unpacks the package of r and its dependencies into dir.
func fetch(ctx context.Context, r recipe, dir string) error {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("this is no Debian: %w", err)
		}
	}
	archives, err := debianArchives("/")
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range archives {
		err := fetchFrom(ctx, a, r, dir)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func fetchFrom(ctx context.Context, a archive, r recipe, dir string) error {
	a.suite = r.suite
	fmt.Fprintf(Progress, "fetching %s (%s) from Debian %s into the cache, once ...\n", r.name, r.size, a.suite)
	apt, err := os.MkdirTemp(filepath.Dir(dir), "apt-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(apt)
	for _, d := range []string{"lists/partial", "cache/archives/partial", "sources.d", "preferences.d"} {
		if err := os.MkdirAll(filepath.Join(apt, d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"status":              "", // nothing is installed, as far as apt can see: so libc comes too
		"sources.d/a.sources": a.stanza(),
		"apt.conf":            aptConf(apt),
	} {
		if err := os.WriteFile(filepath.Join(apt, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	conf := "--config-file=" + filepath.Join(apt, "apt.conf")
	if err := run(ctx, "apt-get", conf, "--quiet", "--error-on=any", "update"); err != nil {
		return err
	}
	install := append([]string{conf, "--quiet", "--yes", "--download-only", "install"}, strings.Fields(r.pkg)...)
	if err := run(ctx, "apt-get", install...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(apt, "cache/archives/*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := run(ctx, "dpkg-deb", "--extract", deb, dir); err != nil {
			return err
		}
	}
	useless := r.useless
	if useless == nil {
		useless = uselessToServers
	}
	for _, pattern := range useless {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, p := range paths {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return linkWithin(dir)
}

// linkWithin makes the absolute links of a tree lead to what the tree has there: the machine may
// have nothing, and Java does not start without its configuration.
func linkWithin(root string) error {
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSymlink == 0 {
			return err
		}
		target, err := os.Readlink(path)
		if err != nil || !filepath.IsAbs(target) {
			return err
		}
		if _, err := os.Lstat(filepath.Join(root, target)); err != nil {
			return nil //nolint:nilerr // the tree does not have it
		}
		relative, err := filepath.Rel(filepath.Dir(path), filepath.Join(root, target))
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.Symlink(relative, path)
	})
}

// uselessToServers is what a server has no use for: two thirds of what is fetched with it.
var uselessToServers = []string{"etc", "var", "usr/bin", "usr/share/perl", "usr/share/doc", "usr/share/man",
	"usr/share/locale", "usr/lib/*/perl", "usr/lib/*/perl-base", "usr/lib/*/gconv", "usr/lib/*/libperl.so*"}

// aptConf makes apt keep everything below dir. It is read after the machine's own
// configuration, so that a proxy set there still counts.
func aptConf(dir string) string {
	return strings.ReplaceAll(`
Dir::State "DIR";
Dir::State::lists "DIR/lists";
Dir::State::status "DIR/status";
Dir::Cache "DIR/cache";
Dir::Cache::archives "archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "DIR/sources.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "DIR/preferences.d";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Debug::NoLocking "true";
`, "DIR", dir)
}

// run runs a program and returns what it said only if it failed.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}
