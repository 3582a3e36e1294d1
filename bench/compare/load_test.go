package compare

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
)

// fakePool takes 10 ms for anything, and ends with what result says of the id.
type fakePool struct {
	mu     sync.Mutex // guards what follows
	ids    []int64
	result func(ctx context.Context, id int64) error
}

func (p *fakePool) query(context.Context, int64) error { time.Sleep(10 * time.Millisecond); return nil }
func (p *fakePool) exec(context.Context) error         { time.Sleep(10 * time.Millisecond); return nil }
func (p *fakePool) recycle() bool                      { return false }
func (p *fakePool) close() error                       { return nil }
func (p *fakePool) transact(ctx context.Context, f func(context.Context, execFunc) error) error {
	return f(ctx, func(ctx context.Context, _ string, args ...any) error {
		time.Sleep(10 * time.Millisecond)
		if len(args) == 0 {
			return p.result(ctx, 0)
		}
		id := args[0].(int64)
		p.mu.Lock()
		p.ids = append(p.ids, id)
		p.mu.Unlock()
		return p.result(ctx, id)
	})
}

func TestLoadKeepsToItsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &inProcess{pool: &fakePool{}}
		start := time.Now()
		a, err := p.Do(t.Context(), order{Kind: kindQuery, Callers: 4, Seconds: 1, Deadline: 5}, func(answer) { t.Error("told of a query") })
		if err != nil || a.Operations != 400 || a.Failed != 0 || a.P50US != 10_000 || a.P99US != 10_000 {
			t.Errorf("answer %+v, %v", a, err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("it took %s", d)
		}
		if a, _ := p.Do(t.Context(), order{Kind: kindExec, Callers: 4, Seconds: 1, EveryMS: 100}, nil); a.Operations != 40 {
			t.Errorf("%d operations, one every 100 ms from each of 4 callers", a.Operations)
		}
	})
}

// Of four jobs one succeeds, one fails, of one nobody knows, and one hangs until the
// deadline.
func TestLoadTellsOfEachJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := &fakePool{result: func(ctx context.Context, id int64) error {
			switch id % 4 {
			case 0:
				return nil
			case 1:
				return errors.New("no\nmore")
			case 2:
				return fmt.Errorf("lost: %w", livepool.ErrCommitUnknown)
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		var mu sync.Mutex
		told := map[int64]answer{}
		start := time.Now()
		a, err := (&inProcess{pool: pool}).Do(t.Context(), order{Kind: kindJob, Callers: 8, Seconds: 1, EveryMS: 100, FirstID: 1000, Deadline: 5}, func(a answer) {
			mu.Lock()
			defer mu.Unlock()
			if _, twice := told[a.ID]; twice {
				t.Errorf("job %d was told of twice", a.ID)
			}
			told[a.ID] = a
		})
		if d := time.Since(start); d != 6*time.Second {
			t.Errorf("it took %s, with a deadline 5 s after its 1 s", d)
		}
		pool.mu.Lock()
		begun := len(pool.ids)
		pool.mu.Unlock()
		if err != nil || a.Operations != len(told) || len(told) != begun {
			t.Errorf("answer %+v, %v; %d were told of, %d begun", a, err, len(told), begun)
		}
		counts := map[string]int{}
		for id, op := range told {
			want := []string{outcomeOK, outcomeFailed, outcomeUnknown, outcomeHung}[id%4]
			if op.Outcome != want || id < 1000 || id >= 1000+int64(len(told)) || want == outcomeFailed && op.Error != "no" {
				t.Errorf("job %d: %+v, want %s", id, op, want)
			}
			if took := op.EndUS - op.StartUS; took < 10_000 || want == outcomeHung && took < 5_000_000 {
				t.Errorf("job %d took %d us", id, took)
			}
			counts[op.Outcome]++
		}
		if a.Failed != len(told)-counts[outcomeOK] || counts[outcomeHung] != 8 {
			t.Errorf("answer %+v of %v", a, counts)
		}
		synctest.Wait() // those that hung have ended with the order
	})
}

func TestHolderLeavesWithTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := &fakePool{}
		n := 0
		pool.result = func(ctx context.Context, _ int64) error {
			if n++; n == 1 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		start := time.Now()
		var held time.Duration
		a, err := (&inProcess{pool: pool}).Do(t.Context(), order{Kind: kindLock, Seconds: 30, PauseMS: 500, Timeout: 2}, func(a answer) {
			if a.Held {
				held = time.Since(start)
			}
		})
		if err != nil || a.Failed != 1 || held != 10*time.Millisecond || time.Since(start) != held+2500*time.Millisecond {
			t.Errorf("answer %+v, %v; held after %s, back after %s", a, err, held, time.Since(start))
		}
	})
}
