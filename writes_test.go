package livepool_test

// Servers that take no writes, or no more connections, for a while.

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

func TestRetryTakesNameAndMaxAttempts(t *testing.T) {
	f := &fakedb.DB{OnExec: func(context.Context, *fakedb.Conn, string) error {
		return fakedb.ServerError(1205, "Lock wait timeout exceeded")
	}}
	p := openFake(t, f, nil)
	runs := 0
	fails := func(ctx context.Context) error {
		runs++
		_, err := p.ExecContext(ctx, "UPDATE t SET v = 1")
		return err
	}
	err := p.Retry(t.Context(), fails, livepool.Name("the nightly sum"), livepool.MaxAttempts(2))
	if runs != 2 || err == nil || !strings.Contains(err.Error(), "the nightly sum failed after 2 attempt(s)") {
		t.Errorf("%d runs: %v", runs, err)
	}
	for name, opt := range map[string]livepool.SessionOption{
		"ReadOnly": livepool.ReadOnly(), "Once": livepool.Once("k"), "VerifyCommit": livepool.VerifyCommit(),
		"RequiresNew": livepool.RequiresNew(), "Isolation": livepool.Isolation(6), "OncePerID": livepool.OncePerID("x"),
	} {
		runs = 0
		if err := p.Retry(t.Context(), fails, opt); err == nil || runs != 0 || !strings.Contains(err.Error(), "Name and MaxAttempts") {
			t.Errorf("%s: %d runs: %v, want it refused", name, runs, err)
		}
	}
	if err := p.Retry(t.Context(), fails, livepool.MaxAttempts(-1)); err == nil || !strings.Contains(err.Error(), "MaxAttempts(-1)") {
		t.Errorf("%v", err)
	}
}

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
		p := openFake(t, f, nil)
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
