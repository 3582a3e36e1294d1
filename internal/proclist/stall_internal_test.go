package proclist

import (
	"context"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/wire"
)

// A connection that waits for its reply is given up only if the server says, at
// two looks in a row, that it does nothing for it. A server that does not answer
// has said nothing.
func TestConnectionIsGivenUpByTwoLooksInARow(t *testing.T) {
	for _, tt := range []struct {
		name  string
		looks []string
		dead  bool
	}{
		{"idle twice", []string{"Sleep", "Sleep"}, true},
		{"idle once", []string{"Sleep"}, false},
		{"at work", []string{"Query", "Query", "Query"}, false},
		{"at a COMMIT", []string{"Query, Commit", "Query, Waiting for semi-sync ACK from slave"}, false},
		{"idle, at work, idle", []string{"Sleep", "Query", "Sleep"}, false},
		{"no answer", []string{"", "", ""}, false},
		{"idle, and then no answer", []string{"Sleep", "", ""}, false},
		{"idle, no answer, idle", []string{"Sleep", "", "Sleep"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := &fakeProcesslist{threads: []fakeThread{{"21", "app", "x"}}, locks: map[string]string{"b": "21"}, commands: tt.looks}
			s := &Stalls{Env: newEnv(t)}
			s.OpenSide = server.openSide
			w := &Thread{Conn: &wire.Conn{Conn: addrConn{}}, Beacon: "b", Identity: &Identity{ConnectionID: "0"}}
			w.Reads.Store(1)
			w.stallWatch.reads = 1
			for range tt.looks {
				s.check([]*Thread{w})
			}
			if dead := w.AbortErr.Load() != nil; dead != tt.dead {
				t.Errorf("given up: %v, want %v", dead, tt.dead)
			}
			if checks, stalled := s.Counters.StallChecks.Load(), s.Counters.Stalled.Load(); checks != int64(len(tt.looks)) || stalled == 1 != tt.dead {
				t.Errorf("%d looks and %d dead connections were counted", checks, stalled)
			}
		})
	}
}

// The server is asked about a read that has waited for After, and for the time that its
// statement may take to arrive; and not about the next read that soon.
func TestWhenTheServerIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fakeProcesslist{locks: map[string]string{"b": "21"}, threads: []fakeThread{{"21", "app", "x"}}}
		s := &Stalls{Env: newEnv(t), After: 4 * time.Second}
		s.Spawn = func(f func()) bool { go f(); return true }
		s.OpenSide = func(context.Context) (*Side, error) {
			return &Side{Conn: server.open("Query"), Close: func(error) {}}, nil
		}
		w := newThread("b")
		askedWithin := func(d time.Duration) (asked int64) {
			before := s.Counters.StallChecks.Load()
			for end := time.Now().Add(d); time.Now().Before(end); synctest.Wait() {
				time.Sleep(s.Look(slices.Values([]*Thread{w})))
			}
			return s.Counters.StallChecks.Load() - before
		}
		if n := askedWithin(time.Minute); n != 0 {
			t.Errorf("asked %d times while nothing is waited for", n)
		}
		w.Reads.Store(1)
		if n := askedWithin(4 * time.Second); n != 0 {
			t.Errorf("asked %d times before After", n)
		}
		if n := askedWithin(5 * time.Second); n != 2 {
			t.Errorf("asked %d times in the next five seconds, want 2", n)
		}
		w.BytesSinceRead.Store(60 * minUploadRate)
		w.Reads.Store(3)
		if n := askedWithin(time.Minute); n != 0 {
			t.Errorf("asked %d times while the next statement may be under way to the server", n)
		}
		if n := askedWithin(5 * time.Second); n != 1 {
			t.Errorf("asked %d times after that, want once", n)
		}
		if s.After = 0; s.Look(nil) != clock.Never {
			t.Error("asked with After 0")
		}
	})
}

// A COMMIT is waited for only while the server says that it works on it. All that are
// slow at a time are asked about by one connection.
func TestSlowCommitIsWaitedForWhileTheServerWorks(t *testing.T) {
	for _, tt := range []struct {
		command string // "" for no answer
		want    bool
	}{{"Query", true}, {"Sleep", false}, {"", false}} {
		synctest.Test(t, func(t *testing.T) {
			server, sides := &fakeProcesslist{locks: map[string]string{"b": "21"}, threads: []fakeThread{{"21", "app", "x"}}}, 0
			s := &Stalls{Env: newEnv(t)}
			s.OpenSide = func(context.Context) (*Side, error) {
				sides++
				if time.Sleep(time.Second); tt.command == "" {
					return nil, io.EOF
				}
				return &Side{Conn: server.open(tt.command), Close: func(error) {}}, nil
			}
			if s.Spawn = func(func()) bool { return false }; s.IsWorkingOn(newThread("b")) {
				t.Error("waited for with nobody to ask")
			}
			s.slow.waiting = nil
			s.Spawn = func(f func()) bool { go f(); return true }
			answers := make(chan bool)
			for range 5 {
				go func() { answers <- s.IsWorkingOn(newThread("b")) }()
			}
			for range 5 {
				if got := <-answers; got != tt.want {
					t.Errorf("%q: waited for is %v", tt.command, got)
				}
			}
			if sides > 2 { // those that came after the first was asked about share the second
				t.Errorf("asked by %d connections", sides)
			}
		})
	}
}
