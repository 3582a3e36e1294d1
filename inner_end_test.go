package livepool_test

// What becomes of a unit inside another one, and of what it has prepared, when a
// unit around it ends first.

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
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
	p := openFake(t, f, nil)
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
	p := openFake(t, &fakedb.DB{}, nil)
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
	p := openFake(t, f, nil)
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
	p := openFake(t, &fakedb.DB{OnExec: func(_ context.Context, _ *fakedb.Conn, q string) error {
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
