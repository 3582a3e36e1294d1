package livepool_test

// Units of work inside units of work.

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A goroutine of an inner unit writes after the inner unit was undone.
func TestUnitLateGoroutineOfAnInnerUnit(t *testing.T) {
	f := &fakedb.DB{}
	var mu sync.Mutex
	var log []string
	f.OnExec = func(_ context.Context, _ *fakedb.Conn, q string) error {
		mu.Lock()
		log = append(log, q)
		mu.Unlock()
		return nil
	}
	p := openFake(t, f, nil)
	bad := 0
	for range 2000 {
		log = nil
		p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			done := make(chan struct{})
			p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
				go func() { in.ExecContext(ctx, "INSERT"); close(done) }()
				runtime.Gosched()
				return errors.New("refused")
			})
			<-done
			return nil
		})
		undone := false
		for _, q := range log {
			if strings.HasPrefix(q, "ROLLBACK TO") {
				undone = true
			} else if q == "INSERT" && undone {
				bad++
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d times of 2000 a write of an undone inner unit was sent after its undoing, and committed with the outer one", bad)
	}
}

// An inner unit whose failure is swallowed does not make that of another forgotten,
// which is passed on.
func TestFailureOfAnInnerUnitIsRememberedPastAnother(t *testing.T) {
	for _, second := range []bool{false, true} {
		f := &fakedb.DB{}
		f.OnExec = func(_ context.Context, c *fakedb.Conn, q string) error {
			switch q {
			case "INSERT A":
				return fakedb.ServerError(1205, "Lock wait timeout exceeded")
			case "INSERT B":
				return fakedb.ServerError(3024, "Query execution was interrupted, maximum statement execution time exceeded")
			}
			return nil
		}
		p := openFake(t, f, nil)
		n := 0
		p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
			n++
			inner := func(q string) error {
				return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, q)
					return err
				})
			}
			err := inner("INSERT A")
			if second {
				inner("INSERT B")
			}
			return err
		}, livepool.MaxAttempts(3))
		if n != 3 {
			t.Errorf("second %v: %d attempts, want 3", second, n)
		}
	}
}

// A connection lost while an inner unit is undone is a connection lost.
func TestConnectionLostWhileAnInnerUnitIsUndone(t *testing.T) {
	for _, bad := range []error{fakedb.ServerError(1205, "Lock wait timeout exceeded"), fakedb.ServerError(3024, "Query execution was interrupted, maximum statement execution time exceeded")} {
		f := &fakedb.DB{}
		f.OnExec = func(_ context.Context, c *fakedb.Conn, q string) error {
			switch {
			case q == "INSERT B" && c.ID == 1:
				return bad
			case strings.HasPrefix(q, "ROLLBACK TO") && c.ID == 1:
				c.Valid.Store(false)
				return fakedb.ErrGone
			}
			return nil
		}
		p := openFake(t, f, nil)
		err := p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
			p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, "INSERT B")
				return err
			})
			return nil
		})
		if err != nil {
			t.Errorf("%v: a connection lost before COMMIT was not retried: %v", bad, err)
		}
	}
}

// An inner unit's context ends when its work is done: by then it is the outer's.
func TestInnerContextEndsDuringTheRelease(t *testing.T) {
	f := &fakedb.DB{}
	var cancel context.CancelFunc
	f.OnExec = func(ctx context.Context, _ *fakedb.Conn, query string) error {
		if strings.HasPrefix(query, "RELEASE") {
			cancel()
			return ctx.Err()
		}
		return nil
	}
	p := openFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
		ctx, cancel = context.WithCancel(ctx)
		return p.WithSession(ctx, labtest.Work)
	})
	if err != nil {
		t.Error(err)
	}
}
