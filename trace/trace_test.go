package trace_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/trace"
)

// recordingTracer writes down what it is told, and hands contexts on by a value.
type recordingTracer struct {
	mu    sync.Mutex
	lines []string
}

type spanKey struct{}

func (r *recordingTracer) note(ctx context.Context, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	inside := ""
	if ctx != nil {
		if span, ok := ctx.Value(spanKey{}).(string); ok {
			inside = span + ": "
		}
	}
	r.lines = append(r.lines, inside+fmt.Sprintf(format, args...))
}

func (r *recordingTracer) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.lines
	r.lines = nil
	return strings.Join(lines, "\n")
}

func (r *recordingTracer) TraceUnitStart(ctx context.Context, start trace.UnitStart) context.Context {
	r.note(ctx, "unit %s begins", start.Unit)
	return context.WithValue(ctx, spanKey{}, start.Unit)
}

func (r *recordingTracer) TraceUnitEnd(ctx context.Context, end trace.UnitEnd) {
	r.note(ctx, "ends: %s after %d", end.Outcome, end.Attempts)
}

func (r *recordingTracer) TraceAcquireStart(ctx context.Context, start trace.AcquireStart) context.Context {
	r.note(ctx, "attempt %d asks", start.Attempt)
	return context.WithValue(ctx, spanKey{}, "acquire")
}

func (r *recordingTracer) TraceAcquireEnd(ctx context.Context, end trace.AcquireEnd) {
	r.note(ctx, "ends: %v", end.Err)
}

func (r *recordingTracer) TraceConnectStart(ctx context.Context, _ trace.ConnectStart) context.Context {
	r.note(ctx, "connects")
	return ctx
}

func (r *recordingTracer) TraceConnectEnd(ctx context.Context, end trace.ConnectEnd) {
	r.note(ctx, "is connected: %v", end.Err)
}

func (r *recordingTracer) TraceEvent(ctx context.Context, event trace.Event) {
	switch e := event.(type) {
	case trace.Release:
		r.note(ctx, "released")
	case trace.Retry:
		r.note(ctx, "attempt %d failed", e.Attempt)
	case trace.Commit:
		r.note(ctx, "commit: %v", e.Err)
	case trace.Ping:
		r.note(ctx, "ping: %q", e.Failed)
	default:
		r.note(ctx, "%T", e)
	}
}

// A tracer is told of a unit, of each attempt's connection and of its commit, in contexts
// that are made from each other.
func TestTracerFollowsAUnit(t *testing.T) {
	r := &recordingTracer{}
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.Tracer, c.KeepAlive = r, 0 })
	tries := 0
	unit := func(result error) func(context.Context, *livepool.Session) error {
		return func(ctx context.Context, s *livepool.Session) error {
			tries++
			if _, err := s.ExecContext(ctx, "DO 1"); err != nil {
				return err
			}
			return result
		}
	}
	if err := p.WithSession(t.Context(), unit(nil), livepool.Name("pay")); err != nil {
		t.Fatal(err)
	}
	if got, want := r.take(), strings.TrimSpace(`
unit pay begins
pay: attempt 1 asks
acquire: connects
acquire: is connected: <nil>
acquire: ends: <nil>
pay: commit: <nil>
pay: released
pay: ends: applied after 1`); got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
	refused := errors.New("refused")
	if err := p.WithSession(t.Context(), unit(refused), livepool.Name("pay")); !errors.Is(err, refused) {
		t.Fatal(err)
	}
	if got := r.take(); !strings.HasSuffix(got, "pay: ends: not_applied after 1") || strings.Contains(got, "commit:") || strings.Contains(got, "connects") {
		t.Errorf("told of a refused unit:\n%s", got)
	}

	f.Conns()[0].Dead.Store(true)
	if err := p.WithSession(t.Context(), unit(nil), livepool.Name("pay")); err != nil {
		t.Fatal(err)
	}
	if got := r.take(); !strings.Contains(got, "pay: attempt 1 failed") || !strings.HasSuffix(got, "pay: ends: applied after 2") {
		t.Errorf("told of a unit whose connection was lost:\n%s", got)
	}
}

// One that panics is logged, and costs nobody a unit; one with no method of a tracer is an
// error at Open.
func TestTracerThatIsNone(t *testing.T) {
	cfg := livepool.NewConfig()
	cfg.Tracer = time.Second
	if _, err := livepool.OpenConnector(&fakedb.DB{}, cfg); err == nil || !strings.Contains(err.Error(), "UnitTracer") {
		t.Errorf("a Tracer that is none: %v", err)
	}
	p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Tracer, c.Logger = panickingTracer{}, labtest.DiscardLogger })
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "DO 1")
		return err
	}); err != nil {
		t.Error(err)
	}
}

type panickingTracer struct{}

func (panickingTracer) TraceUnitStart(context.Context, trace.UnitStart) context.Context {
	panic("start")
}
func (panickingTracer) TraceUnitEnd(context.Context, trace.UnitEnd) { panic("end") }
func (panickingTracer) TraceEvent(context.Context, trace.Event)     { panic("event") }
