// progress.go tells how far a run has come while it runs.

package main

import (
	"fmt"
	"strings"
)

// progress is one line that fits a terminal: how long, what, and how many of
// each lane's jobs failed.
func (r *run) progress() string {
	r.mu.Lock()
	phase := r.phase
	r.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%2.0fs %-20s failed", r.now().Seconds(), phase)
	for _, l := range r.lanes {
		all, failed := l.done()
		fmt.Fprintf(&b, "  %s %d/%d", l.name, failed, all)
	}
	return b.String()
}
