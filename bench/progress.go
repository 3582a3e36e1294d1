// progress.go tells how far a run has come while it runs.

package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// showProgress rewrites one line on a terminal, and prints a line every few
// seconds elsewhere, until stop is called.
func showProgress(w *os.File, r *run) (stop func()) {
	terminal := isTerminal(w)
	every := 5 * time.Second
	if terminal {
		every = 200 * time.Millisecond
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				if terminal {
					fmt.Fprint(w, "\r\x1b[K")
				}
				return
			case <-tick.C:
			}
			if terminal {
				fmt.Fprintf(w, "\r%s\x1b[K", r.progress())
			} else {
				fmt.Fprintln(w, r.progress())
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

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

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
