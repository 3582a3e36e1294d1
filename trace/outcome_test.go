package trace_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/trace"
)

// spy keeps what it is told as it is.
type spy struct {
	mu      sync.Mutex
	events  []trace.Event
	acquire []trace.AcquireEnd
	units   []trace.UnitEnd
	starts  int
}

func (s *spy) TraceUnitStart(ctx context.Context, _ trace.UnitStart) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starts++
	return ctx
}
func (s *spy) TraceUnitEnd(_ context.Context, e trace.UnitEnd) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.units = append(s.units, e)
}
func (s *spy) TraceAcquireStart(ctx context.Context, _ trace.AcquireStart) context.Context {
	return ctx
}
func (s *spy) TraceAcquireEnd(_ context.Context, e trace.AcquireEnd) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acquire = append(s.acquire, e)
}
func (s *spy) TraceEvent(_ context.Context, e trace.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

func told[E trace.Event](s *spy) (all []E) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e, ok := e.(E); ok {
			all = append(all, e)
		}
	}
	return all
}

func (s *spy) lastUnit(t *testing.T) trace.UnitEnd {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.units) == 0 {
		t.Fatal("no unit is told")
	}
	return s.units[len(s.units)-1]
}

func openSpied(t *testing.T, f *fakedb.DB, change func(*livepool.Config)) (*livepool.Pool, *spy) {
	s := &spy{}
	return labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.Tracer = s
		if change != nil {
			change(c)
		}
	}), s
}

// The COMMIT by which livepool finds out about a lost one is not the unit's.
func TestProbeOfALostCommitIsNoCommitOfTheUnit(t *testing.T) {
	f := &fakedb.DB{}
	var n atomic.Int64
	f.OnCommit = func(*fakedb.Conn) error {
		if n.Add(1) == 1 {
			return fakedb.ErrGone
		}
		return nil
	}
	p, s := openSpied(t, f, nil)
	check(t, p.WithSession(t.Context(), func(ctx context.Context, o *livepool.Session) error {
		_, err := o.ExecContext(ctx, "DO 1")
		return err
	}, livepool.Name("pay"), livepool.VerifyCommit()), nil)
	ok := 0
	for _, c := range told[trace.Commit](s) {
		if c.Err == nil {
			ok++
		}
	}
	if ok != 1 {
		t.Errorf("the unit was committed once, and %d commits of it are told to have succeeded", ok)
	}
}

// No COMMIT is sent for a transaction that the function has rolled back itself.
func TestCommitThatIsNotSentIsNotTold(t *testing.T) {
	f := &fakedb.DB{}
	var n atomic.Int64
	f.OnCommit = func(*fakedb.Conn) error { n.Add(1); return nil }
	p, s := openSpied(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, o *livepool.Session) error {
		tx, err := o.Tx(ctx)
		if err != nil {
			return err
		}
		return tx.Rollback()
	})
	if all := told[trace.Commit](s); int64(len(all)) != n.Load() {
		t.Errorf("%d COMMITs were sent, %d are told: %+v (%v)", n.Load(), len(all), all, err)
	}
}

// A unit that is committed is told as applied, whatever its AfterCommit does.
func TestUnitThatIsCommittedIsAppliedWhateverFollows(t *testing.T) {
	p, s := openSpied(t, &fakedb.DB{}, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.WithSession(context.Background(), func(ctx context.Context, o *livepool.Session) error {
			o.AfterCommit(func(context.Context) { runtime.Goexit() })
			_, err := o.ExecContext(ctx, "DO 1")
			return err
		})
	}()
	<-done
	if end := s.lastUnit(t); end.Outcome != trace.Applied {
		t.Errorf("told %s of a unit whose COMMIT succeeded: %+v", end.Outcome, told[trace.Commit](s))
	}
}

// A unit that is rolled back because its function returns the unknown COMMIT of another one
// is not applied.
func TestUnknownOutcomeOfAnotherUnit(t *testing.T) {
	p, s := openSpied(t, &fakedb.DB{}, nil)
	_ = unit(t, p, fmt.Errorf("the other one: %w", livepool.ErrCommitUnknown))
	if end := s.lastUnit(t); end.Outcome != trace.NotApplied {
		t.Errorf("told %s of a unit that was rolled back", end.Outcome)
	}
}

type nilContext struct{}

func (nilContext) TraceUnitStart(context.Context, trace.UnitStart) context.Context { return nil }
func (nilContext) TraceUnitEnd(context.Context, trace.UnitEnd)                     {}

// A fault of a tracer costs nobody a unit.
func TestTracerThatMakesNoContext(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Tracer = nilContext{} })
	check(t, unit(t, p, nil), nil)
}

// slowWarnings delays the line of an outage's beginning.
type slowWarnings struct{ slog.Handler }

func (h slowWarnings) Handle(ctx context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn && strings.Contains(r.Message, "reach") {
		time.Sleep(2 * time.Second)
	}
	return nil
}
func (h slowWarnings) Enabled(context.Context, slog.Level) bool { return true }

// The end of an outage is told after its beginning: a gauge would show it for ever.
func TestOutageEndsAfterItHasBegun(t *testing.T) {
	f := &fakedb.DB{}
	var both sync.WaitGroup
	both.Add(2)
	f.OnConnect = func(_ context.Context, n int64) error {
		if n <= 2 {
			both.Done()
			both.Wait()
			return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		return nil
	}
	p, s := openSpied(t, f, func(c *livepool.Config) { c.Logger = slog.New(slowWarnings{slog.DiscardHandler}) })
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { _ = unit(t, p, nil) })
	}
	wg.Wait()
	var order []string
	for _, e := range s.events {
		switch e.(type) {
		case trace.OutageStart:
			order = append(order, "begins")
		case trace.OutageEnd:
			order = append(order, "ends")
		}
	}
	if got := strings.Join(order, " "); got != "begins ends" {
		t.Errorf("told that an outage %s", got)
	}
}

// Each AcquireStart has its AcquireEnd, also where the driver or its wrapper panics.
func TestAcquireEndsAlsoByAPanic(t *testing.T) {
	p, s := openSpied(t, &fakedb.DB{OnBegin: func(*fakedb.Conn) error { panic("a fault of a wrapper") }}, nil)
	func() {
		defer func() { t.Log("recovered:", recover()) }()
		_ = unit(t, p, nil)
	}()
	if len(s.units) != 1 || len(s.acquire) != 1 {
		t.Errorf("told of %d ends of units and %d of acquires, want one each", len(s.units), len(s.acquire))
	}
}

// asksStats calls the pool's Stats in each method: a tracer that makes gauges.
type asksStats struct{ p atomic.Pointer[livepool.Pool] }

func (a *asksStats) ask() {
	if p := a.p.Load(); p != nil {
		p.Stats()
	}
}
func (a *asksStats) TraceUnitStart(ctx context.Context, _ trace.UnitStart) context.Context {
	a.ask()
	return ctx
}
func (a *asksStats) TraceUnitEnd(context.Context, trace.UnitEnd) { a.ask() }
func (a *asksStats) TraceAcquireStart(ctx context.Context, _ trace.AcquireStart) context.Context {
	a.ask()
	return ctx
}
func (a *asksStats) TraceAcquireEnd(context.Context, trace.AcquireEnd) { a.ask() }
func (a *asksStats) TraceConnectStart(ctx context.Context, _ trace.ConnectStart) context.Context {
	a.ask()
	return ctx
}
func (a *asksStats) TraceConnectEnd(context.Context, trace.ConnectEnd) { a.ask() }
func (a *asksStats) TraceEvent(context.Context, trace.Event)           { a.ask() }

// A tracer may ask for the counters, whatever it is told of.
func TestTracerThatAsksForStats(t *testing.T) {
	f, a := &fakedb.DB{}, &asksStats{}
	var refuse atomic.Bool
	f.OnConnect = func(context.Context, int64) error {
		if refuse.CompareAndSwap(true, false) {
			return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		return nil
	}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.Tracer, c.PoolSize, c.MaxOverflow, c.PrePing, c.MinIdle = a, 2, 0, livepool.PrePingAlways, 2
	})
	a.p.Store(p)
	for range 20 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _ = unit(t, p, nil) })
			wg.Go(func() { _, _ = p.ExecContext(t.Context(), "DO 1") })
		}
		refuse.Store(true)
		f.Kill()
		wg.Wait()
		p.Recycle()
	}
}

// Nothing is known of a COMMIT that panics on its way.
func TestPanicInCommitLeavesTheOutcomeUnknown(t *testing.T) {
	p, s := openSpied(t, &fakedb.DB{OnCommit: func(*fakedb.Conn) error { panic("a fault of a wrapper") }}, nil)
	func() {
		defer func() { t.Log("recovered:", recover()) }()
		t.Log(unit(t, p, nil))
	}()
	if end := s.lastUnit(t); end.Outcome != trace.Unknown {
		t.Errorf("told %s of a unit whose COMMIT was sent", end.Outcome)
	}
}
