package outage_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/trace"
)

var errAway = errors.New("connection refused")

// fakeServer is away, or silent, until it is told otherwise.
type fakeServer struct {
	gate                    *outage.Gate
	clock                   *clock.Clock
	background              sync.WaitGroup
	short                   atomic.Int64 // an outage.Shortage
	log                     lockedBuffer
	connects, asked, opened atomic.Int64
}

// lockedBuffer may be read while it is written to.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newGate returns the gate of a server that is there; the test ends when its
// background does.
func newGate(t *testing.T, change func(*outage.Settings)) (*outage.Gate, *fakeServer) {
	s := &fakeServer{clock: clock.New()}
	closed, cancel := context.WithCancel(context.Background())
	settings := outage.Settings{Clock: s.clock, Closed: closed, Ended: func() {}, Trace: func(trace.Event) {}, Log: slog.New(slog.NewTextHandler(&s.log, nil)), Addr: "tcp(db)",
		Spawn:     func(f func()) bool { s.background.Go(f); return closed.Err() == nil },
		NewServer: func() outage.Server { s.opened.Add(1); return s },
		// What a Pool has.
		ConnectLimit: 16, ConnectTimeout: 5 * time.Second,
	}
	if change != nil {
		change(&settings)
	}
	s.gate = outage.New(settings)
	t.Cleanup(func() {
		cancel()
		s.background.Wait()
		s.clock.Close()
		if s.opened.Load() != 0 {
			t.Errorf("%d runs of the prober have not released what they had", s.opened.Load())
		}
	})
	return s.gate, s
}

// fail begins an outage, or goes on with it.
func (s *fakeServer) fail(short outage.Shortage) {
	s.short.Store(int64(short))
	s.gate.Failed(errAway, s.clock.Now(), short)()
}

func (s *fakeServer) Connect() {
	s.connects.Add(1)
	if short := outage.Shortage(s.short.Load()); short != outage.None {
		s.gate.Failed(errAway, s.clock.Now(), short)()
		return
	}
	s.gate.Connected()
}

func (s *fakeServer) AskForWrites(error) {
	s.asked.Add(1)
	if s.short.Load() == int64(outage.None) {
		s.gate.WritesTaken()
	}
}

func (s *fakeServer) Release() { s.opened.Add(-1) }

// A caller that is held back has a reason, also where the outage ends at that moment:
// an error without one says nothing about the server, and would end its unit.
func TestWhoeverIsKeptWaitingHasAReason(t *testing.T) {
	g, s := newGate(t, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.fail(outage.NoServer)
				g.Connected()
			}
		}
	})
	held := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		err := g.Enter(t.Context())
		if err == nil {
			g.Leave(0, true)
			continue
		}
		held++
		var reason *outage.Error
		if !errors.As(err, &reason) || reason.Shortage != outage.NoServer || reason.Cause == nil {
			t.Errorf("held with %#v", err)
			break
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("held %d times", held)
}

// All who wait are let in by one prober, which rests when nobody waits.
func TestOneProberForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, nil)
		s.fail(outage.NoServer)
		s.fail(outage.NoServer)
		if g.Outages.Load() != 1 || !g.IsDown() {
			t.Fatal("want one beginning of one outage")
		}
		time.Sleep(time.Minute)
		if n := s.connects.Load(); n != 0 {
			t.Fatalf("%d probes while nobody waited", n)
		}
		var letIn atomic.Int64
		for range 1000 {
			go func() {
				if g.AwaitServer(t.Context(), time.Now().Add(time.Hour)) {
					letIn.Add(1)
				}
			}()
		}
		time.Sleep(10 * time.Second)
		if n := s.connects.Load(); n < 30 || n > 50 || s.opened.Load() != 1 {
			t.Errorf("%d probes in 10s by %d probers, want one in about 250ms by one", n, s.opened.Load())
		}
		s.short.Store(int64(outage.None))
		time.Sleep(time.Second)
		if letIn.Load() != 1000 || g.IsDown() || g.LastError() != nil || g.Cause() != nil {
			t.Errorf("%d of 1000 let in; down %v, %v", letIn.Load(), g.IsDown(), g.LastError())
		}
		if s.opened.Load() != 0 {
			t.Error("the prober goes on")
		}
	})
}

// How often the prober asks depends on what is short.
func TestPaceOfTheProber(t *testing.T) {
	for _, tt := range []struct {
		short    outage.Shortage
		pause    time.Duration
		min, max int64
	}{
		{outage.NoServer, 0, 480, 600},
		{outage.NoServer, time.Second, 48, 62},
		{outage.NoRoom, 0, 50, 80},
		{outage.NoAnswer, 0, 5, 14},
	} {
		synctest.Test(t, func(t *testing.T) {
			g, s := newGate(t, func(set *outage.Settings) { set.ProbePause = tt.pause })
			s.fail(tt.short)
			if g.AwaitServer(t.Context(), time.Now().Add(time.Minute)) {
				t.Error("let in")
			}
			if n := s.connects.Load(); n < tt.min || n > tt.max {
				t.Errorf("shortage %d, pause %s: %d probes in a minute, want %d to %d", tt.short, tt.pause, n, tt.min, tt.max)
			}
		})
	}
}

// The log tells of the beginning and of the end of an outage, once each, and of what
// ended it.
func TestEndOfAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ends atomic.Int64
		g, s := newGate(t, func(set *outage.Settings) { set.Ended = func() { ends.Add(1) } })
		g.Connected()
		g.WritesTaken()
		if g.End() != nil || g.RequestProbe() != nil || ends.Load() != 0 || s.log.String() != "" {
			t.Error("the end of no outage")
		}
		s.fail(outage.NoServer)
		end := g.End()
		leave := g.Join()
		time.Sleep(time.Second)
		leave()
		refusal := errors.New("access denied") // the server is there
		log := g.Failed(refusal, s.clock.Now(), outage.None)
		select {
		case <-end:
		default:
			t.Error("who waits for the end is not told")
		}
		if g.IsDown() || g.LastError() != refusal {
			t.Errorf("down %v, last error %v", g.IsDown(), g.LastError())
		}
		if ends.Load() != 0 || strings.Contains(s.log.String(), "again") {
			t.Error("logged before the caller says so")
		}
		log()
		g.Connected()
		if ends.Load() != 1 {
			t.Errorf("the connector is told of %d ends", ends.Load())
		}
		lines := strings.Split(s.log.String(), "\n")
		if len(lines) != 3 || !strings.Contains(lines[0], `cannot be reached; sessions`) || !strings.HasSuffix(lines[0], `addr=tcp(db) cause="connection refused"`) ||
			!strings.HasSuffix(lines[1], `can be reached again" addr=tcp(db) after=1s waited=1 refusal="access denied"`) {
			t.Errorf("log: %q", lines)
		}
	})
}

// An attempt that began before the last success says nothing about the server now.
func TestLateFailureIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, nil)
		startedAt := s.clock.Now()
		time.Sleep(time.Second)
		g.Connected()
		if g.Failed(errAway, startedAt, outage.NoServer)(); g.IsDown() || g.LastError() != nil || s.log.String() != "" {
			t.Error("an outage")
		}
	})
}

// Each wait has a bound: the deadline, the context, the end of the pool.
func TestWaitsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed, closePool := context.WithCancel(t.Context())
		g, s := newGate(t, func(set *outage.Settings) {
			set.Closed, set.Spawn = closed, func(func()) bool { return false }
		})
		over, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if !g.AwaitServer(t.Context(), time.Now().Add(time.Second)) || g.AwaitServer(t.Context(), time.Now()) {
			t.Error("without an outage only the deadline counts")
		}
		s.fail(outage.NoServer)
		start := time.Now()
		if g.AwaitServer(t.Context(), start.Add(time.Second)) || time.Since(start) != time.Second {
			t.Errorf("deadline: after %s", time.Since(start))
		}
		if g.AwaitServer(over, start.Add(time.Hour)) || time.Since(start) != 2*time.Second {
			t.Errorf("context: after %s", time.Since(start))
		}
		time.AfterFunc(time.Second, closePool)
		if g.AwaitServer(t.Context(), start.Add(time.Hour)) || time.Since(start) != 3*time.Second {
			t.Errorf("close: after %s", time.Since(start))
		}
	})
}

// A full server's connection that is offered lets in one of those who wait.
func TestOfferedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, nil)
		s.fail(outage.NoRoom)
		if g.WantsRoom() {
			t.Error("room is wanted by nobody")
		}
		var letIn atomic.Int64
		for range 3 {
			go func() {
				if g.AwaitServer(t.Context(), time.Now().Add(time.Minute)) {
					letIn.Add(1)
				}
			}()
		}
		synctest.Wait()
		if !g.WantsRoom() {
			t.Error("no room is wanted")
		}
		g.Offer()
		synctest.Wait()
		if letIn.Load() != 1 {
			t.Errorf("%d let in", letIn.Load())
		}
		time.Sleep(2 * time.Minute)
	})
}

// Those who were refused a write wait for writes alone, and now and then one of them
// may try one itself.
func TestWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, nil)
		s.short.Store(int64(outage.NoWrites))
		var tries, letIn atomic.Int64
		for range 100 {
			go func() {
				if g.AwaitWrites(t.Context(), time.Now().Add(time.Hour), errAway) {
					if s.short.Load() != 0 {
						tries.Add(1)
					}
					letIn.Add(1)
				}
			}()
		}
		time.Sleep(11 * time.Second)
		if g.Outages.Load() != 1 || g.IsDown() || g.Enter(t.Context()) != nil {
			t.Fatal("want one outage of writes, and connections")
		}
		g.Leave(0, true)
		if n := tries.Load(); n < 4 || n > 5 {
			t.Errorf("%d single tries in 11s", n)
		}
		s.short.Store(int64(outage.None))
		time.Sleep(time.Second)
		if letIn.Load() != 100 || s.connects.Load() != 0 {
			t.Errorf("%d of 100 let in, %d connects", letIn.Load(), s.connects.Load())
		}
	})
}

// A server whose writes nobody waits for is not asked, also if it was asked before.
func TestNobodyWaitsForWritesNobodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, nil)
		s.short.Store(int64(outage.NoWrites))
		if g.AwaitWrites(t.Context(), time.Now().Add(time.Second), errAway) {
			t.Error("let in")
		}
		time.Sleep(time.Second)
		asked := s.asked.Load()
		time.Sleep(time.Minute)
		if n := s.asked.Load(); asked == 0 || n != asked || s.opened.Load() != 0 {
			t.Errorf("asked %d times, %d more while nobody waited; %d runs of the prober", asked, n-asked, s.opened.Load())
		}
		if time.AfterFunc(time.Second, func() { s.short.Store(0) }); !g.AwaitWrites(t.Context(), time.Now().Add(10*time.Second), errAway) {
			t.Error("who waits later is not let in")
		}
	})
}

// A caller that does not wait has the server probed once, unless the last news is fresh.
func TestRequestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, nil)
		s.fail(outage.NoServer)
		if g.RequestProbe() != nil {
			t.Error("the news is fresh")
		}
		time.Sleep(2 * time.Second)
		<-g.RequestProbe()
		time.Sleep(time.Minute)
		if n := s.connects.Load(); n != 1 || s.opened.Load() != 0 {
			t.Errorf("%d probes, want 1", n)
		}
	})
}

func TestErrorText(t *testing.T) {
	err := &outage.Error{Shortage: outage.NoRoom, Cause: errAway, Waited: 1500 * time.Millisecond}
	if text := err.Error(); !strings.Contains(text, "no more connections") || !strings.Contains(text, "1.5s (pool_outage_wait): connection refused") {
		t.Error(text)
	}
	if !errors.Is(err, errAway) || !errors.Is(err, mysqlerr.ErrUnreachable) {
		t.Error("its cause is hidden, or what it is")
	}
}
