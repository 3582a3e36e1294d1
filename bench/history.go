// history.go keeps what `bench hot` has measured, a line for each operation, so
// that a change of cost is seen beside the commit that made it. The measuring is
// hot.go's.

package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// quiet is how far two equal pools may be apart in figures that are worth keeping.
const quiet = 0.02

var historyColumns = []string{
	"date", "commit", "go", "cpu", "on", "operation", "pool", "plain_ns", "pool_ns", "ratio", "plain_allocs", "pool_allocs",
}

// history is a file of figures and what is the same in all that this run adds.
type history struct {
	path                         string
	date, commit, goVersion, cpu string
}

// measurement is the figures of one table.
type measurement struct {
	on   string // what the pools stood on
	rows []hotRow
}

// openHistory makes sure, before anything is measured, that the figures can be
// added to the file, and finds out which commit they belong to.
func openHistory(ctx context.Context, path string) (*history, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if head, _, _ := strings.Cut(string(text), "\n"); head != "" && head != strings.Join(historyColumns, ",") {
		return nil, fmt.Errorf("%s has other columns: %s", path, head)
	}
	// Opened as it will be, so that a file that cannot be written is known now.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return &history{
		path:      path,
		date:      time.Now().UTC().Format(time.DateOnly),
		commit:    commit(ctx, path),
		goVersion: runtime.Version(),
		cpu:       fmt.Sprintf("%d x %s", runtime.NumCPU(), cpuModel()),
	}, nil
}

// add appends all figures, or none if they are worth nothing.
func (h *history) add(all ...measurement) error {
	for _, m := range all {
		for _, r := range m.rows {
			if r.pool == plainAgain && !(math.Abs(r.took.ratio-1) <= quiet) {
				return fmt.Errorf("nothing was appended to %s: a second plain pool takes %.3f times as long as the first, so the machine is not quiet", h.path, r.took.ratio)
			}
		}
	}
	var text bytes.Buffer
	w := csv.NewWriter(&text)
	if fi, err := os.Stat(h.path); err != nil || fi.Size() == 0 {
		if err := w.Write(historyColumns); err != nil {
			return err
		}
	}
	for _, m := range all {
		for _, line := range h.lines(m) {
			if err := w.Write(line); err != nil {
				return err
			}
		}
	}
	if w.Flush(); w.Error() != nil {
		return w.Error()
	}
	f, err := os.OpenFile(h.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text.Bytes()) // at once: a line is there or is not
	return errors.Join(err, f.Close())
}

// lines has one for each pool that was compared with the plain one before it.
func (h *history) lines(m measurement) (lines [][]string) {
	var plain hotRow
	for _, r := range m.rows {
		if r.pool == "plain" {
			plain = r
			continue
		}
		lines = append(lines, []string{
			h.date, h.commit, h.goVersion, h.cpu, m.on, r.operation, r.pool,
			strconv.FormatInt(plain.took.perOp.Nanoseconds(), 10), strconv.FormatInt(r.took.perOp.Nanoseconds(), 10),
			fmt.Sprintf("%.3f", r.took.ratio), fmt.Sprint(plain.allocs), fmt.Sprint(r.allocs),
		})
	}
	return lines
}

// commit names the commit that is measured, with "+changes" if files of the
// repository other than the history have been changed since. `go run` does not
// put it into the program, so git is asked; "unknown" where it cannot tell.
func commit(ctx context.Context, history string) string {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	is := strings.TrimSpace(string(head))
	changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no").Output()
	if err != nil {
		return is + "+unknown"
	}
	for line := range strings.Lines(string(changed)) {
		// Two letters, a blank, and the path from the top of the repository.
		if len(line) < 4 || filepath.Base(strings.TrimSpace(line[3:])) != filepath.Base(history) {
			return is + "+changes"
		}
	}
	return is
}

// cpuModel is the processor's name where the system tells it in a file.
func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				return strings.Join(strings.Fields(value), " ")
			}
		}
	}
	return runtime.GOOS + "/" + runtime.GOARCH
}
