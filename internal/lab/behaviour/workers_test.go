package behaviour_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
)

// workers run verified units.
type workers struct {
	t      *testing.T
	pool   *livepool.Pool
	during string // what their errors begin with, "" for nothing

	wg   sync.WaitGroup
	quit chan struct{}

	mu      sync.Mutex // guards what follows
	next    int        // the number of the next unit; set before start: of the first
	applied []time.Time
}

// start starts n of them.
func (w *workers) start(n int) *workers {
	w.quit = make(chan struct{})
	for range n {
		w.wg.Go(func() {
			for {
				select {
				case <-w.quit:
					return
				case <-time.After(5 * time.Millisecond):
				}
				w.mu.Lock()
				unit := w.next
				w.next++
				w.mu.Unlock()
				err := w.pool.WithSession(w.t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, fmt.Sprintf("INSERT INTO ledger (unit) VALUES (%d)", unit))
					return err
				}, livepool.VerifyCommit())
				if err != nil {
					w.t.Errorf("%sunit %d: %v", w.during, unit, err)
				}
				w.mu.Lock()
				w.applied = append(w.applied, time.Now())
				w.mu.Unlock()
			}
		})
	}
	return w
}

// since is how many units were applied since then.
func (w *workers) since(then time.Time) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, at := range w.applied {
		if at.After(then) {
			n++
		}
	}
	return n
}

// firstAfter is how long after that the first unit was applied.
func (w *workers) firstAfter(then time.Time) time.Duration {
	first := time.Hour
	for _, at := range w.applied {
		if d := at.Sub(then); d > 0 {
			first = min(first, d)
		}
	}
	return first
}

// stop ends them, and returns the number that the next unit would have.
func (w *workers) stop() int {
	close(w.quit)
	w.wg.Wait()
	return w.next
}
