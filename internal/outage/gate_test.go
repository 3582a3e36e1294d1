package outage_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/outage"
)

var errAway = errors.New("connection refused")

// fakeServer is away, or silent, until it is told otherwise.
type fakeServer struct {
	gate                    *outage.Gate
	clock                   *clock.Clock
	background              sync.WaitGroup
	short                   atomic.Int64 // an outage.Shortage
	connects, asked, opened atomic.Int64
}

// newGate returns the gate of a server that is there; the test ends when its
// background does.
func newGate(t *testing.T, change func(*outage.Settings)) (*outage.Gate, *fakeServer) {
	s := &fakeServer{clock: clock.New()}
	closed, cancel := context.WithCancel(context.Background())
	settings := outage.Settings{Clock: s.clock, Closed: closed,
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
func (s *fakeServer) fail(short outage.Shortage) (begins bool) {
	s.short.Store(int64(short))
	begins, _ = s.gate.Failed(errAway, s.clock.Now(), short)
	return begins
}

func (s *fakeServer) Connect() {
	s.connects.Add(1)
	if short := outage.Shortage(s.short.Load()); short != outage.None {
		s.gate.Failed(errAway, s.clock.Now(), short)
		return
	}
	s.gate.Connected()
}

func (s *fakeServer) AskForWrites(error) (bool, error) {
	s.asked.Add(1)
	if s.short.Load() != int64(outage.None) {
		return false, nil
	}
	s.gate.WritesTaken()
	return true, nil
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
		if !s.fail(outage.NoServer) || s.fail(outage.NoServer) || !g.IsDown() {
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
		if n := s.connects.Load(); n < 30 || n > 50 {
			t.Errorf("%d probes in 10s, want one in about 250ms", n)
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

// What an outage was is told once, by what ended it.
func TestEndOfAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, nil)
		if g.Connected() != nil || g.WritesTaken() != nil || g.End() != nil || g.RequestProbe() != nil {
			t.Error("the end of no outage")
		}
		s.fail(outage.NoServer)
		end := g.End()
		leave := g.Join()
		time.Sleep(time.Second)
		leave()
		_, ended := g.Failed(errAway, s.clock.Now(), outage.None) // a refusal: the server is there
		if ended == nil || *ended != (outage.Ended{Shortage: outage.NoServer, Lasted: time.Second, Waited: 1}) {
			t.Errorf("ended %+v", ended)
		}
		select {
		case <-end:
		default:
			t.Error("who waits for the end is not told")
		}
		if g.IsDown() || g.LastError() != errAway {
			t.Errorf("down %v, last error %v", g.IsDown(), g.LastError())
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
		if begins, _ := g.Failed(errAway, startedAt, outage.NoServer); begins || g.IsDown() || g.LastError() != nil {
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
		if !g.WritesRefused(errAway) || g.WritesRefused(errAway) || g.IsDown() || g.Enter(t.Context()) != nil {
			t.Fatal("want one outage of writes, and connections")
		}
		g.Leave(0, true)
		var tries, letIn atomic.Int64
		for range 100 {
			go func() {
				if g.AwaitWrites(t.Context(), time.Now().Add(time.Hour)) {
					if s.short.Load() != 0 {
						tries.Add(1)
					}
					letIn.Add(1)
				}
			}()
		}
		time.Sleep(11 * time.Second)
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

type fakeAttempt struct{ aborted atomic.Bool }

func (a *fakeAttempt) Abort(error) { a.aborted.Store(true) }

// Attempts that go on are aborted ConnectTimeout after the outage, and there is a limit.
func TestKeptAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate(t, nil)
		var left, done, tooMany fakeAttempt
		if !g.Keep(&left, 2) || !g.Keep(&done, 2) || g.Keep(&tooMany, 2) {
			t.Fatal("the limit is not 2")
		}
		s.fail(outage.NoAnswer)
		time.Sleep(time.Hour)
		g.Connected()
		time.Sleep(4 * time.Second)
		if !g.IsKept(&left) || !g.Drop(&done) || g.Drop(&done) {
			t.Error("not kept until its end")
		}
		time.Sleep(2 * time.Second)
		if g.IsKept(&left) || !left.aborted.Load() || done.aborted.Load() {
			t.Error("want the one that is left aborted")
		}
	})
}

func TestErrorText(t *testing.T) {
	err := &outage.Error{Shortage: outage.NoRoom, Cause: errAway, Waited: 1500 * time.Millisecond}
	if text := err.Error(); !strings.Contains(text, "no more connections") || !strings.Contains(text, "1.5s (pool_outage_wait): connection refused") {
		t.Error(text)
	}
	if !errors.Is(err, errAway) {
		t.Error("its cause is hidden")
	}
	for s := outage.NoServer; s <= outage.NoWrites; s++ {
		if s.Begins() == "" || s.Ends() == "" {
			t.Errorf("the log would not say what %d is", s)
		}
	}
}
