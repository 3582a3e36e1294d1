package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// later is a deadline of the driver's, which its readTimeout sets before each read.
var later = func() time.Time { return time.Now().Add(time.Hour) }

// read reads one byte in another goroutine.
func read(w net.Conn) <-chan error {
	done := make(chan error, 1)
	go func() { _, err := io.ReadFull(w, make([]byte, 1)); done <- err }()
	return done
}

// awaitEnd waits until the end of the context has reached the connection.
func awaitEnd(t *testing.T, w *Conn) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !w.watch.ended.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the end of the context does not reach the connection")
		}
	}
}

// Whatever is done on it: what waits ends, what begins fails, and a deadline that is set
// meanwhile changes nothing.
func TestWatchedContextEndsReadsAndWrites(t *testing.T) {
	for name, wrap := range map[string]func(*testing.T) *Conn{
		"a socket": func(t *testing.T) *Conn { w, _ := tcpPair(t); return w },
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
				w.SetReadDeadline(later())
				done := read(w)
				time.Sleep(10 * time.Millisecond)
				cancel()
				return <-done
			}},
			{"a later read", func(w *Conn, cancel func()) error {
				cancel()
				awaitEnd(t, w)
				w.SetReadDeadline(later())
				return <-read(w)
			}},
			{"a read without deadlines", func(w *Conn, cancel func()) error {
				cancel()
				awaitEnd(t, w)
				w.SetDeadline(time.Time{})
				return <-read(w)
			}},
			{"a later write", func(w *Conn, cancel func()) error {
				cancel()
				awaitEnd(t, w)
				w.SetWriteDeadline(later())
				_, err := w.Write(make([]byte, 1<<20))
				return err
			}},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				w := wrap(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				w.Watch(ctx)
				if err := tt.do(w, cancel); !errors.Is(err, context.Canceled) || !IsCut(err) {
					t.Errorf("got %v, want the context's error", err)
				}
				if err := w.Unwatch(); err != context.Canceled {
					t.Errorf("Unwatch returns %v, want the context's own error", err)
				}
				if LossOf(w.IOErr) != notLost || w.IOErr == nil {
					t.Errorf("the end of a context counts as a loss: %v", w.IOErr)
				}
			})
		}
	}
}

// A context that ends after the last read has cost nothing: the connection is used again.
func TestContextThatEndsAfterTheAnswer(t *testing.T) {
	w, server := tcpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.Watch(ctx)
	cancel()
	awaitEnd(t, w)
	if err := w.Unwatch(); err != nil {
		t.Errorf("Unwatch returns %v although nothing has failed", err)
	}
	done := read(w)
	if _, err := server.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || w.IOErr != nil {
		t.Errorf("the next read fails: %v, %v", err, w.IOErr)
	}
}

// The end of a context is told in a goroutine of its own, which may come when the
// connection serves another caller already.
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
	if err := w.Unwatch(); err != nil {
		t.Errorf("Unwatch returns %v", err)
	}
	w.end() // while nobody uses it
	if w.watch.ended.Load() {
		t.Error("a context that had ended earlier ends an idle connection")
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
