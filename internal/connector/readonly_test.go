package connector_test

// Servers that take no writes for a while.

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A proxy may have the prober's question answered by a server that takes writes
// while the unit's writes go to one that does not: the units try again, with
// pauses, within MaxElapsed, and cost no attempts.
func TestRefusedWritesAreTriedWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		start := time.Now()
		f.OnExec = func(context.Context, *fakedb.Conn, string) error {
			if time.Since(start) < 20*time.Second {
				return fakedb.ServerError(1290, readOnlyText)
			}
			return nil
		}
		p := labtest.OpenFake(t, f, nil)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := p.WithSession(t.Context(), labtest.Work, livepool.MaxAttempts(2)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := f.Execs.Load(); n > 10*45 {
			t.Errorf("10 units sent %d statements in %s", n, time.Since(start))
		}
		// For ever: until MaxElapsed.
		start = time.Now().Add(time.Hour)
		began := time.Now()
		err := p.WithSession(t.Context(), labtest.Work, livepool.MaxAttempts(2))
		if took := time.Since(began); !labtest.IsServerError(err, 1290) || took < 25*time.Second || took > 31*time.Second {
			t.Error(fmt.Errorf("after %s: %w", took, err))
		}
	})
}
