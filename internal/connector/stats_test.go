package connector_test

import (
	"context"
	"sync"
	"testing"

	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A counter only grows, also while connections are closed: exporters take one that falls for a
// restart.
func TestCheckoutsAreNeverCountedLess(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := range 20000 {
				if _, err := p.ExecContext(context.Background(), "DO 1"); err != nil {
					t.Error(err)
				}
				if n%10 == 0 {
					p.Recycle()
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	for last, reads := int64(0), 0; ; reads++ {
		n := p.Stats().Reused
		if n < last {
			t.Fatalf("after %d reads: %d, and before that %d", reads, n, last)
		}
		last = n
		select {
		case <-done:
			if reads < 1000 || n == 0 {
				t.Errorf("%d reads, %d checkouts: the test shows nothing", reads, n)
			}
			return
		default:
		}
	}
}
