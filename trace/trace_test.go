package trace_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
	"syscall"
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

func (r *recordingTracer) notef(ctx context.Context, format string, args ...any) {
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
	r.notef(ctx, "unit %s begins", start.Unit)
	return context.WithValue(ctx, spanKey{}, start.Unit)
}

func (r *recordingTracer) TraceUnitEnd(ctx context.Context, end trace.UnitEnd) {
	r.notef(ctx, "ends: %s after %d", end.Outcome, end.Attempts)
}

func (r *recordingTracer) TraceAcquireStart(ctx context.Context, start trace.AcquireStart) context.Context {
	r.notef(ctx, "attempt %d asks", start.Attempt)
	return context.WithValue(ctx, spanKey{}, "acquire")
}

func (r *recordingTracer) TraceAcquireEnd(ctx context.Context, end trace.AcquireEnd) {
	r.notef(ctx, "ends: %t", end.Err == nil)
}

func (r *recordingTracer) TraceConnectStart(ctx context.Context, _ trace.ConnectStart) context.Context {
	r.notef(ctx, "connects")
	return context.WithValue(ctx, spanKey{}, "connect")
}

func (r *recordingTracer) TraceConnectEnd(ctx context.Context, end trace.ConnectEnd) {
	r.notef(ctx, "is connected: %t", end.Err == nil)
}

func (r *recordingTracer) TraceEvent(ctx context.Context, event trace.Event) {
	switch e := event.(type) {
	case trace.Release:
		r.notef(ctx, "released")
	case trace.Retry:
		r.notef(ctx, "attempt %d failed", e.Attempt)
	case trace.Commit:
		r.notef(ctx, "commit: %t", e.Err == nil)
	case trace.Ping:
		r.notef(ctx, "ping: %q", e.Failed)
	case trace.Resend:
		r.notef(ctx, "resent")
	case trace.Death:
		r.notef(ctx, "found dead")
	case trace.Discard:
		r.notef(ctx, "discarded: %s", e.Why)
	case trace.OutageStart:
		r.notef(ctx, "outage: %s", e.What)
	case trace.OutageEnd:
		r.notef(ctx, "outage ended: %s", e.What)
	default:
		r.notef(ctx, "%T", e)
	}
}

// unit runs a unit of one statement whose function then returns result.
func unit(t *testing.T, p *livepool.Pool, result error) error {
	t.Helper()
	return p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if _, err := s.ExecContext(ctx, "DO 1"); err != nil {
			return err
		}
		return result
	}, livepool.Name("pay"))
}

func check(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("the error is %v, want %v", err, want)
	}
}

// A tracer is told of units, connections and what happens to them, in contexts that are made
// from each other: each line begins with the innermost one that it was told in.
func TestTracerIsTold(t *testing.T) {
	errOwn := errors.New("the function's own")
	for _, tt := range []struct {
		name   string
		change func(c *livepool.Config)
		do     func(t *testing.T, p *livepool.Pool, f *fakedb.DB, untold func())
		want   string
	}{
		{"a unit that opens its connection", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB, _ func()) {
			check(t, unit(t, p, nil), nil)
		}, `
unit pay begins
pay: attempt 1 asks
acquire: connects
connect: is connected: true
acquire: ends: true
pay: commit: true
pay: released
pay: ends: applied after 1`},

		{"a function that fails", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB, untold func()) {
			check(t, unit(t, p, nil), nil)
			untold()
			check(t, unit(t, p, errOwn), errOwn)
		}, `
unit pay begins
pay: attempt 1 asks
acquire: ends: true
pay: released
pay: ends: not_applied after 1`},

		{"a function that sends nothing", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB, _ func()) {
			check(t, p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { return nil }, livepool.Name("idle")), nil)
		}, `
unit idle begins
idle: ends: applied after 1`},

		{"a function that panics", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB, _ func()) {
			defer func() { _ = recover() }()
			_ = p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { panic("no") }, livepool.Name("pay"))
		}, `
unit pay begins
pay: ends: not_applied after 1`},

		{"a unit whose connection dies", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB, untold func()) {
			check(t, unit(t, p, nil), nil)
			untold()
			f.Kill()
			check(t, unit(t, p, nil), nil)
		}, `
unit pay begins
pay: attempt 1 asks
acquire: ends: true
found dead
pay: released
pay: attempt 1 failed
pay: attempt 2 asks
acquire: connects
connect: is connected: true
acquire: ends: true
pay: commit: true
pay: released
pay: ends: applied after 2`},

		{"a lost COMMIT", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB, _ func()) {
			f.OnCommit = func(*fakedb.Conn) error { return fakedb.ErrGone }
			check(t, unit(t, p, nil), livepool.ErrCommitUnknown)
		}, `
unit pay begins
pay: attempt 1 asks
acquire: connects
connect: is connected: true
acquire: ends: true
found dead
pay: commit: false
pay: released
pay: ends: unknown after 1`},

		{"pings of units, in a pool that is full and in one that is not", func(c *livepool.Config) {
			c.PoolSize, c.MaxOverflow, c.PrePing = 1, 0, livepool.PrePingAlways
		}, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB, untold func()) {
			check(t, unit(t, p, nil), nil)
			held, err := p.Conn(t.Context())
			check(t, err, nil)
			untold()
			done := make(chan error)
			go func() { done <- unit(t, p, nil) }()
			for p.DB.Stats().WaitCount == 0 {
				time.Sleep(time.Millisecond)
			}
			held.Close()
			check(t, <-done, nil)
			check(t, unit(t, p, nil), nil)
		}, strings.Repeat(`
unit pay begins
pay: attempt 1 asks
acquire: ping: ""
acquire: ends: true
pay: commit: true
pay: released
pay: ends: applied after 1`, 2)},

		{"a ping that fails", func(c *livepool.Config) { c.PrePing = livepool.PrePingAlways },
			func(t *testing.T, p *livepool.Pool, f *fakedb.DB, untold func()) {
				check(t, p.Ping(), nil)
				untold()
				f.Kill()
				_, err := p.ExecContext(t.Context(), "DO 1")
				check(t, err, nil)
			}, `
found dead
ping: "its ping failed"
discarded: its ping failed
connects
connect: is connected: true`},

		{"a statement that is sent again", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB, untold func()) {
			check(t, p.Ping(), nil)
			untold()
			f.Kill()
			_, err := p.ExecContext(livepool.Idempotent(t.Context()), "DO 1")
			check(t, err, nil)
		}, `
found dead
resent
connects
connect: is connected: true`},

		{"an outage, whose end is a connection that is used", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB, _ func()) {
			f.OnConnect = func(_ context.Context, n int64) error {
				if n == 1 {
					return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
				}
				return nil
			}
			check(t, unit(t, p, nil), nil)
		}, `
unit pay begins
pay: attempt 1 asks
acquire: connects
outage: the server cannot be reached
connect: is connected: false
outage ended: the server cannot be reached
acquire: ends: true
pay: commit: true
pay: released
pay: ends: applied after 1`},

		{"a unit inside another one, which is told as its part", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB, untold func()) {
			check(t, unit(t, p, nil), nil)
			untold()
			check(t, p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "DO 1")
					return err
				})
			}, livepool.Name("outer")), nil)
		}, `
unit outer begins
outer: attempt 1 asks
acquire: ends: true
outer: commit: true
outer: released
outer: ends: applied after 1`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, f := &recordingTracer{}, &fakedb.DB{}
			p := labtest.OpenFake(t, f, func(c *livepool.Config) {
				c.Tracer = r
				if tt.change != nil {
					tt.change(c)
				}
			})
			tt.do(t, p, f, func() { r.take() })
			if got, want := r.take(), strings.TrimSpace(tt.want); got != want {
				t.Errorf("told\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Several tracers are told in their order, and each context has what the ones before put in.
func TestAllAreTold(t *testing.T) {
	first, second := &recordingTracer{}, &recordingTracer{}
	p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) {
		c.Tracer = trace.All{first, startsOnly{}, panickingTracer{}, second}
	})
	check(t, unit(t, p, nil), nil)
	rest := `
connect: is connected: true
acquire: ends: true
pay: commit: true
pay: released
pay: ends: applied after 1`
	if got, want := first.take(), "unit pay begins\npay: attempt 1 asks\nacquire: connects"+rest; got != want {
		t.Errorf("the first was told\n%s\nwant\n%s", got, want)
	}
	if got, want := second.take(), "outer: unit pay begins\nacquire: attempt 1 asks\nconnect: connects"+rest; got != want {
		t.Errorf("the second was told\n%s\nwant\n%s", got, want)
	}
}

// startsOnly is a UnitTracer whose context hides that of those before it.
type startsOnly struct{}

func (startsOnly) TraceUnitStart(ctx context.Context, _ trace.UnitStart) context.Context {
	return context.WithValue(ctx, spanKey{}, "outer")
}
func (startsOnly) TraceUnitEnd(context.Context, trace.UnitEnd) {}

// A tracer that panics is logged, and costs nobody a unit.
func TestTracerThatPanics(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Tracer = panickingTracer{} })
	check(t, unit(t, p, nil), nil)
	if st := p.Stats(); st.InUse != 0 {
		t.Errorf("%d connections are in use", st.InUse)
	}
}

type panickingTracer struct{}

func (panickingTracer) TraceUnitStart(context.Context, trace.UnitStart) context.Context {
	panic("unit")
}
func (panickingTracer) TraceUnitEnd(context.Context, trace.UnitEnd) { panic("unit") }
func (panickingTracer) TraceAcquireStart(context.Context, trace.AcquireStart) context.Context {
	panic("acquire")
}
func (panickingTracer) TraceAcquireEnd(context.Context, trace.AcquireEnd) { panic("acquire") }
func (panickingTracer) TraceConnectStart(context.Context, trace.ConnectStart) context.Context {
	panic("connect")
}
func (panickingTracer) TraceConnectEnd(context.Context, trace.ConnectEnd) { panic("connect") }
func (panickingTracer) TraceEvent(context.Context, trace.Event)           { panic("event") }

// A Tracer that would never be called is an error at Open.
func TestTracerThatIsNone(t *testing.T) {
	for _, none := range []any{time.Second, &sql.DB{}} {
		cfg := livepool.NewConfig()
		cfg.Tracer = none
		if _, err := livepool.OpenConnector(&fakedb.DB{}, cfg); err == nil || !strings.Contains(err.Error(), "UnitTracer") {
			t.Errorf("%s: %v", reflect.TypeOf(none), err)
		}
	}
}
