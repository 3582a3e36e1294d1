package wire

import (
	"context"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// read reads one byte in another goroutine.
func read(w net.Conn) <-chan error {
	done := make(chan error, 1)
	go func() { _, err := io.ReadFull(w, make([]byte, 1)); done <- err }()
	return done
}

// awaitEnd waits until the end of the context has closed the connection.
func awaitEnd(t *testing.T, w *Conn) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !w.Closed.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the end of the context does not reach the connection")
		}
	}
}

// noDeadlineConn has sockets' methods, and no deadlines.
type noDeadlineConn struct{ *net.TCPConn }

func (noDeadlineConn) SetDeadline(time.Time) error     { return io.ErrNoProgress }
func (noDeadlineConn) SetReadDeadline(time.Time) error { return io.ErrNoProgress }

// Whatever is done on it: what waits ends, and what begins fails.
func TestWatchedContextEndsReadsAndWrites(t *testing.T) {
	for name, wrap := range map[string]func(*testing.T) *Conn{
		"a socket":                      func(t *testing.T) *Conn { w, _ := tcpPair(t); return w },
		"a socket that has no deadline": func(t *testing.T) *Conn { w, _ := tcpPair(t); return Wrap(noDeadlineConn{w.Conn.(*net.TCPConn)}) },
		"a connection without deadlines": func(t *testing.T) *Conn {
			a, b := net.Pipe()
			w := Wrap(newDeadlineConn(a))
			t.Cleanup(func() { w.Close(); b.Close() })
			return w
		},
	} {
		for _, tt := range []struct {
			name string
			do   func(w *Conn, cancel func()) error
		}{
			{"a read that waits", func(w *Conn, cancel func()) error {
				done := read(w)
				time.Sleep(10 * time.Millisecond)
				cancel()
				return <-done
			}},
			{"a read with a deadline that waits", func(w *Conn, cancel func()) error {
				w.SetReadDeadline(time.Now().Add(time.Hour))
				done := read(w)
				time.Sleep(10 * time.Millisecond)
				cancel()
				return <-done
			}},
			{"a later read", func(w *Conn, cancel func()) error { cancel(); awaitEnd(t, w); return <-read(w) }},
			{"a later write", func(w *Conn, cancel func()) error {
				cancel()
				awaitEnd(t, w)
				_, err := w.Write(make([]byte, 1<<20))
				return err
			}},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				w := wrap(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				quiet := w.Watch(ctx)
				err := tt.do(w, cancel)
				if err == nil || quiet.Err() != context.Canceled || quiet.Done() != nil {
					t.Errorf("got %v; the driver's context: %v", err, quiet.Err())
				}
				if ended := w.Ended(); ended != context.Canceled {
					t.Errorf("Ended: %v", ended)
				}
				if ended := w.Unwatch(); ended != context.Canceled || !w.Cut {
					t.Errorf("Unwatch returns %v, cut %v; want the context's own error", ended, w.Cut)
				}
				if LossOf(w.IOErr) != notLost {
					t.Errorf("the end of a context counts as a loss: %v", w.IOErr)
				}
			})
		}
	}
}

// The end of a context is told in a goroutine of its own, which may come when the
// connection serves another caller already, or nobody.
func TestLateEndOfAnEarlierContext(t *testing.T) {
	w, server := tcpPair(t)
	w.Watch(t.Context())
	w.end() // of an earlier one
	done := read(w)
	if _, err := server.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the read of the next caller fails: %v", err)
	}
	if err := w.Unwatch(); err != nil || w.Cut {
		t.Errorf("Unwatch returns %v", err)
	}
	w.end() // while nobody uses it
	if w.Closed.Load() {
		t.Error("a context that had ended earlier closes an idle connection")
	}
}

// A statement on a connection that an earlier one's context has closed fails for that
// reason, and not as if its own context had ended.
func TestEndOfAnEarlierContextIsNotTold(t *testing.T) {
	w, _ := tcpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.Watch(ctx)
	cancel()
	awaitEnd(t, w)
	w.Unwatch()
	w.Watch(t.Context())
	err := <-read(w)
	if ended := w.Unwatch(); err == nil || ended != nil || !w.Cut {
		t.Errorf("read: %v; its context: %v; cut: %v", err, ended, w.Cut)
	}
}

// An idle connection keeps nothing of its last user's.
func TestUnwatchForgetsTheContext(t *testing.T) {
	w, _ := tcpPair(t)
	freed := make(chan struct{})
	func() {
		value := new([1 << 20]byte)
		runtime.AddCleanup(value, func(int) { close(freed) }, 0)
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), w, value))
		defer cancel()
		w.Watch(ctx)
		w.Unwatch()
	}()
	for end := time.Now().Add(5 * time.Second); ; runtime.GC() {
		select {
		case <-freed:
			return
		default:
		}
		if time.Now().After(end) {
			t.Fatal("what its last user's context held is not freed")
		}
	}
}

func TestWatchAllocatesOnlyWhatTheContextNeeds(t *testing.T) {
	w, _ := tcpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	afterFunc := testing.AllocsPerRun(100, func() { context.AfterFunc(ctx, func() {})() })
	if n := testing.AllocsPerRun(100, func() { w.Watch(ctx); w.Unwatch() }); n > afterFunc {
		t.Errorf("%v allocations, context.AfterFunc alone %v", n, afterFunc)
	}
}
