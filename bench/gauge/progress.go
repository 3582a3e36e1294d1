package gauge

import (
	"fmt"
	"os"
	"time"
)

// Progress rewrites one line on a terminal, and prints a line every few
// seconds elsewhere, until stop is called.
func Progress(w *os.File, line func() string) (stop func()) {
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
				fmt.Fprintf(w, "\r%s\x1b[K", line())
			} else {
				fmt.Fprintln(w, line())
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
