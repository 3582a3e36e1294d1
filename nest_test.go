package livepool_test

// Units of work inside units of work.

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A unit waits for what is being sent two levels below before it is undone.
func TestLateGoroutineOfAnInnermostUnit(t *testing.T) {
	f := &fakedb.DB{}
	var mu sync.Mutex
	var log []string
	f.OnExec = func(_ context.Context, _ *fakedb.Conn, q string) error {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, q)
		return nil
	}
	p := labtest.OpenFake(t, f, nil)
	for range 2000 {
		log = nil
		p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
			begun, ended := make(chan struct{}), make(chan struct{})
			p.WithSession(ctx, func(ctx context.Context, _ *livepool.Session) error {
				go func() {
					defer close(ended)
					p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
						close(begun)
						in.ExecContext(ctx, "INSERT")
						return nil
					})
				}()
				<-begun
				runtime.Gosched()
				return errors.New("refused")
			})
			<-ended
			return nil
		})
		undone := false
		for _, q := range log {
			if undone = undone || strings.HasPrefix(q, "ROLLBACK TO SAVEPOINT livepool_1"); undone && q == "INSERT" {
				t.Fatalf("written after it was undone: %q", log)
			}
		}
	}
}

// The innermost unit ends while the outer one commits.
func TestInnermostUnitEndsDuringTheOuterCommit(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	for range 200 {
		half, ended, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
		err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
			p.WithSession(ctx, func(ctx context.Context, middle *livepool.Session) error {
				go func() {
					defer close(ended)
					p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
						close(half)
						<-over
						return nil
					})
				}()
				<-half
				return nil
			})
			close(over)
			return nil
		})
		if <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// Whichever comes first, the end of the middle unit or that of the innermost, which
// fails: nothing of the innermost is applied.
func TestInnermostUnitFailsWhileTheMiddleOneEnds(t *testing.T) {
	f := &fakedb.DB{}
	var mu sync.Mutex
	kept := map[string]bool{} // what has been written and not undone
	f.OnExec = func(_ context.Context, _ *fakedb.Conn, q string) error {
		mu.Lock()
		defer mu.Unlock()
		if q == "INSERT" || strings.HasPrefix(q, "ROLLBACK TO") {
			kept["INSERT"] = q == "INSERT"
		}
		return nil
	}
	p := labtest.OpenFake(t, f, nil)
	for range 500 {
		kept = map[string]bool{}
		err := p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
			half, ended := make(chan struct{}), make(chan struct{})
			p.WithSession(ctx, func(ctx context.Context, _ *livepool.Session) error {
				go func() {
					defer close(ended)
					p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
						in.ExecContext(ctx, "INSERT")
						close(half)
						return errors.New("refused")
					})
				}()
				<-half
				return nil
			})
			<-ended
			return nil
		})
		if err == nil && kept["INSERT"] {
			t.Fatal("the work of a unit that failed is committed")
		}
	}
}

// stoppingContext is a context that stops who asks whether it is done: database/sql, after the
// session has let the statement through and before it is sent.
type stoppingContext struct {
	context.Context
	reached, open chan struct{}
	once          *sync.Once
}

func (g stoppingContext) Done() <-chan struct{} {
	g.once.Do(func() { close(g.reached); <-g.open })
	return g.Context.Done()
}

// What was let through before a unit ended, two levels below, is sent before that is
// undone.
func TestStatementOfAnInnermostUnitIsWaitedFor(t *testing.T) {
	var mu sync.Mutex
	var log []string
	undone := make(chan struct{})
	p := labtest.OpenFake(t, &fakedb.DB{OnExec: func(_ context.Context, _ *fakedb.Conn, q string) error {
		mu.Lock()
		defer mu.Unlock()
		if log = append(log, q); q == "ROLLBACK TO SAVEPOINT livepool_1" {
			close(undone)
		}
		return nil
	}}, nil)
	err := p.WithSession(context.Background(), func(ctx context.Context, _ *livepool.Session) error {
		g := stoppingContext{ctx, make(chan struct{}), make(chan struct{}), &sync.Once{}}
		ended := make(chan struct{})
		p.WithSession(ctx, func(ctx context.Context, _ *livepool.Session) error {
			go func() {
				defer close(ended)
				p.WithSession(ctx, func(ctx context.Context, in *livepool.Session) error {
					_, err := in.ExecContext(g, "INSERT")
					return err
				})
			}()
			<-g.reached
			go func() {
				select {
				case <-undone: // too early
				case <-time.After(100 * time.Millisecond):
				}
				close(g.open)
			}()
			return errors.New("refused")
		})
		<-ended
		return nil
	})
	if sent, undone := slices.Index(log, "INSERT"), slices.Index(log, "ROLLBACK TO SAVEPOINT livepool_1"); err != nil || sent < 0 || undone < sent {
		t.Errorf("%v; %q", err, log)
	}
}

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
	p := labtest.OpenFake(t, f, nil)
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
		p := labtest.OpenFake(t, f, nil)
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
		p := labtest.OpenFake(t, f, nil)
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
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		var cancel context.CancelFunc
		f.OnExec = func(ctx context.Context, _ *fakedb.Conn, query string) error {
			if strings.HasPrefix(query, "RELEASE") {
				cancel()
				time.Sleep(time.Second) // the end of a context may reach the statement's with a delay
				return ctx.Err()
			}
			return nil
		}
		p := labtest.OpenFake(t, f, nil)
		err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
			ctx, cancel = context.WithCancel(ctx)
			return p.WithSession(ctx, labtest.Work)
		})
		if err != nil {
			t.Error(err)
		}
	})
}
