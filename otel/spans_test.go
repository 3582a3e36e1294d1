package livepoolotel_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/trace"
)

// tree has a line for each span that has ended, children below their parent in the order in
// which they began: its name, the number of an attempt, its events, and what its status says.
func (o *telemetry) tree() string {
	spans := o.spans.GetSpans()
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	var lines []string
	var below func(parent oteltrace.SpanID, indent string)
	below = func(parent oteltrace.SpanID, indent string) {
		for _, s := range spans {
			if s.Parent.SpanID() != parent {
				continue
			}
			line := indent + strings.TrimPrefix(s.Name, "livepool.")
			for _, a := range s.Attributes {
				if a.Key == "livepool.attempt" {
					line += " " + a.Value.String()
				}
			}
			for _, e := range s.Events {
				line += " +" + strings.TrimPrefix(e.Name, "livepool.")
			}
			if s.Status.Code == codes.Error {
				line += " FAILED"
			}
			lines = append(lines, line)
			below(s.SpanContext.SpanID(), indent+"  ")
		}
	}
	below(oteltrace.SpanID{}, "")
	return strings.Join(lines, "\n")
}

func (o *telemetry) checkTree(t *testing.T, want string) {
	t.Helper()
	if got, want := o.tree(), strings.TrimSpace(want); got != want {
		t.Errorf("the spans are\n%s\nwant\n%s", got, want)
	}
}

func check(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("the error is %v, want %v", err, want)
	}
}

var errOwn = errors.New("the function's own")

// What happens to a unit is in one tree.
func TestSpansOfUnits(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*livepool.Config)
		do     func(t *testing.T, p *livepool.Pool, f *fakedb.DB)
		want   string
	}{
		{"a unit that opens its connection", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
			check(t, p.WithSession(t.Context(), labtest.Work), nil)
		}, `
unit
  acquire 1
    connect
  commit`},

		{"a function that fails", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
			check(t, p.Ping(), nil)
			check(t, p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				return errors.Join(labtest.Work(ctx, s), errOwn)
			}), errOwn)
		}, `
unit +exception FAILED
  acquire 1`},

		{"a function that panics", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
			defer func() { _ = recover() }()
			_ = p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { panic("no") })
		}, `
unit FAILED`},

		{"a unit whose connection dies", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB) {
			check(t, p.Ping(), nil)
			f.Kill()
			check(t, p.WithSession(t.Context(), labtest.Work), nil)
		}, `
unit +retry
  acquire 1
  acquire 2
    connect
  commit`},

		{"a unit whose connection is pinged", func(c *livepool.Config) { c.PrePing = livepool.PrePingAlways },
			func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
				check(t, p.Ping(), nil)
				check(t, p.WithSession(t.Context(), labtest.Work), nil)
			}, `
unit
  acquire 1 +ping
  commit`},

		{"a unit of unknown outcome", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB) {
			f.OnCommit = func(*fakedb.Conn) error { return fakedb.ErrGone }
			check(t, p.WithSession(t.Context(), labtest.Work), livepool.ErrCommitUnknown)
		}, `
unit +exception FAILED
  acquire 1
    connect
  commit FAILED`},

		{"an outage, during which a unit waits", nil, func(t *testing.T, p *livepool.Pool, f *fakedb.DB) {
			f.OnConnect = func(ctx context.Context, n int64) error {
				if n == 1 {
					return refuse(ctx, n)
				}
				return nil
			}
			check(t, p.WithSession(t.Context(), labtest.Work), nil)
		}, `
unit
  acquire 1
    connect +exception FAILED
  commit`},

		{"a statement of no span", nil, func(t *testing.T, p *livepool.Pool, _ *fakedb.DB) {
			_, err := p.ExecContext(t.Context(), "DO 1")
			check(t, err, nil)
		}, ``},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, f := newTelemetry(t), &fakedb.DB{}
			p := o.open(t, f, tt.change)
			tt.do(t, p, f)
			o.checkTree(t, tt.want)
		})
	}
}

// A unit that waits for the server in vain has the error where it came about, and at its end.
func TestSpansOfAUnitWithoutConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTelemetry(t)
		p := o.open(t, &fakedb.DB{OnConnect: refuse}, nil)
		check(t, p.WithSession(t.Context(), labtest.Work, livepool.MaxAttempts(1)), livepool.ErrPoolTimeout)
		o.checkTree(t, `
unit +exception FAILED
  acquire 1 FAILED
    connect +exception FAILED`)
	})
}

func refuse(context.Context, int64) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

// A unit, and a connection for a statement, belong to the caller's span.
func TestSpansAreTheCallers(t *testing.T) {
	o, f := newTelemetry(t), &fakedb.DB{}
	p := o.open(t, f, func(c *livepool.Config) { c.PrePing = livepool.PrePingAlways })
	ctx, caller := o.tracers.Tracer("the test").Start(t.Context(), "caller")
	_, err := p.ExecContext(ctx, "DO 1")
	check(t, err, nil)
	check(t, p.WithSession(ctx, labtest.Work), nil)
	first := true
	check(t, p.Retry(ctx, func(ctx context.Context) error {
		if first {
			first = false
			return fakedb.ServerError(1213, "Deadlock found")
		}
		_, err := p.ExecContext(ctx, "DO 2")
		return err
	}), nil)
	caller.End()
	o.checkTree(t, `
caller +retry +ping
  connect
  unit
    acquire 1 +ping
    commit`)
}

// With otelsql as Config.Wrap each statement is the unit's child, and so is its COMMIT.
func TestStatementsAreTheUnits(t *testing.T) {
	o, f := newTelemetry(t), &fakedb.DB{}
	p := o.open(t, f, func(c *livepool.Config) { c.Wrap = traceDriver(o.tracers) })
	check(t, p.WithSession(t.Context(), labtest.Work), nil)
	spans := o.spans.GetSpans()
	parents := map[string]string{}
	for _, s := range spans {
		parent := slices.IndexFunc(spans, func(p tracetest.SpanStub) bool { return p.SpanContext.SpanID() == s.Parent.SpanID() })
		if parent >= 0 {
			parents[s.Name] = spans[parent].Name
		}
	}
	want := map[string]string{"livepool.acquire": "livepool.unit", "livepool.connect": "livepool.acquire", "sql.connector.connect": "livepool.connect",
		"sql.conn.begin_tx": "livepool.unit", "sql.conn.exec": "livepool.unit", "sql.tx.commit": "livepool.unit", "livepool.commit": "livepool.unit"}
	if !maps.Equal(parents, want) {
		t.Errorf("the parents are %v\nwant %v", parents, want)
	}
}

// Of a unit that is not sampled there is nothing.
func TestUnitsThatAreNotSampled(t *testing.T) {
	o := newTelemetry(t)
	o.tracers = sdktrace.NewTracerProvider(sdktrace.WithSyncer(o.spans), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
	f := &fakedb.DB{}
	p := o.open(t, f, func(c *livepool.Config) { c.Wrap, c.PrePing = traceDriver(o.tracers), livepool.PrePingAlways })
	check(t, p.WithSession(t.Context(), labtest.Work), nil)
	f.Kill()
	check(t, p.WithSession(t.Context(), labtest.Work), nil)
	o.checkTree(t, "")
	o.check(t, map[string]int64{"livepool.unit.duration{livepool.outcome=applied}": 2, "db.client.connection.pending_requests": 0})
}

// What is joined with others ends its own spans.
func TestSpansBesideAnotherTracer(t *testing.T) {
	o := newTelemetry(t)
	p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Tracer = trace.All{o.newTracer(t), ownSpans{o.tracers.Tracer("own")}} })
	check(t, p.WithSession(t.Context(), labtest.Work), nil)
	o.checkTree(t, `
unit
  own
    acquire 1
      connect
    commit`)
}

// ownSpans is a user's own tracer.
type ownSpans struct{ tracer oteltrace.Tracer }

func (o ownSpans) TraceUnitStart(ctx context.Context, _ trace.UnitStart) context.Context {
	ctx, _ = o.tracer.Start(ctx, "own") //nolint:spancheck // TraceUnitEnd ends it
	return ctx
}
func (ownSpans) TraceUnitEnd(ctx context.Context, _ trace.UnitEnd) {
	oteltrace.SpanFromContext(ctx).End()
}

// attrsOf are the attributes of each span and event, by its name.
func (o *telemetry) attrsOf() map[string][]attribute.KeyValue {
	attrs := map[string][]attribute.KeyValue{}
	for _, s := range o.spans.GetSpans() {
		attrs[s.Name] = s.Attributes
		for _, e := range s.Events {
			if e.Name != "exception" {
				attrs[e.Name] = e.Attributes
			}
		}
	}
	return attrs
}

func text(attrs []attribute.KeyValue) string {
	var texts []string
	for _, a := range attrs {
		texts = append(texts, string(a.Key)+"="+a.Value.String())
	}
	slices.Sort(texts)
	return strings.Join(texts, " ")
}

// tellAll tells a tracer of all that spans are made of.
func tellAll(t *testing.T, o *telemetry, unitErr error) {
	t.Helper()
	tracer := o.newTracer(t)
	unit := tracer.TraceUnitStart(t.Context(), trace.UnitStart{Unit: "pay", Key: "order 7"})
	acquire := tracer.TraceAcquireStart(unit, trace.AcquireStart{Unit: "pay", Attempt: 1})
	connect := tracer.TraceConnectStart(acquire, trace.ConnectStart{Addr: "tcp(db:3307)"})
	tracer.TraceConnectEnd(connect, trace.ConnectEnd{Conn: trace.Conn{Addr: "tcp(db:3307)", ThreadID: 9}})
	tracer.TraceEvent(acquire, trace.Ping{Conn: trace.Conn{ThreadID: 9}, Took: time.Second, Failed: "its ping failed"})
	tracer.TraceAcquireEnd(acquire, trace.AcquireEnd{Queued: 1500 * time.Millisecond})
	tracer.TraceEvent(unit, trace.Commit{Unit: "pay", Took: time.Second})
	tracer.TraceEvent(unit, trace.Retry{Unit: "pay", Attempt: 1, Wait: 2 * time.Second, Cause: errOwn})
	end := trace.UnitEnd{Attempts: 2, Outcome: trace.Applied, Err: unitErr}
	if unitErr != nil {
		end.Outcome = trace.NotApplied
	}
	tracer.TraceUnitEnd(unit, end)
}

// What a span says of its unit, attempt or connection.
func TestAttributesOfSpans(t *testing.T) {
	o := newTelemetry(t)
	tellAll(t, o, nil)
	const pool = "db.client.connection.pool.name=shop"
	want := map[string]string{
		"livepool.unit":    pool + " livepool.outcome=applied livepool.unit.attempts=2 livepool.unit.has_key=true livepool.unit.name=pay",
		"livepool.acquire": pool + " livepool.attempt=1 livepool.queue_time=1.5",
		"livepool.connect": pool + " db.system.name=mysql livepool.thread_id=9 server.address=db server.port=3307",
		"livepool.commit":  pool,
		"livepool.ping":    "livepool.ping.failed=its ping failed livepool.ping.time=1 livepool.thread_id=9",
		"livepool.retry":   "livepool.attempt=1 livepool.cause=the function's own livepool.retry.wait_time=2",
	}
	got := o.attrsOf()
	for name, attrs := range got {
		if text(attrs) != want[name] {
			t.Errorf("%s has %s\nwant %s", name, text(attrs), want[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d spans and events, want %d", len(got), len(want))
	}
	for _, s := range o.spans.GetSpans() {
		kind := oteltrace.SpanKindInternal
		if s.Name == "livepool.connect" {
			kind = oteltrace.SpanKindClient
		}
		if s.SpanKind != kind {
			t.Errorf("%s is %s", s.Name, s.SpanKind)
		}
		if took := s.EndTime.Sub(s.StartTime); s.Name == "livepool.commit" && took != time.Second {
			t.Errorf("the COMMIT took %s, want 1s", took)
		}
	}
}

// The server's name is known of the addresses that the pool may have.
func TestServerOfAnAddress(t *testing.T) {
	for addr, want := range map[string]string{
		"tcp(db:3306)":             "server.address=db server.port=3306",
		"tcp([::1]:3306)":          "server.address=::1 server.port=3306",
		"tcp(db)":                  "server.address=db",
		"unix(/tmp/mysql.sock)":    "server.address=/tmp/mysql.sock",
		"cloudsql(shop:eu:orders)": "server.address=shop:eu:orders",
		"the database":             "",
	} {
		o := newTelemetry(t)
		tracer := o.newTracer(t)
		unit := tracer.TraceUnitStart(t.Context(), trace.UnitStart{})
		tracer.TraceConnectEnd(tracer.TraceConnectStart(unit, trace.ConnectStart{Addr: addr}), trace.ConnectEnd{Err: errOwn})
		attrs := slices.DeleteFunc(o.attrsOf()["livepool.connect"], func(a attribute.KeyValue) bool { return !strings.HasPrefix(string(a.Key), "server.") })
		if got := text(attrs); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
}

// A unit that fails says why, but neither its key nor the statements that a UnitError names.
func TestSpansHaveNoKeys(t *testing.T) {
	o := newTelemetry(t)
	tellAll(t, o, &livepool.UnitError{Name: "pay", Key: "order 7", Reason: `because of "SELECT secret"`, Err: errOwn})
	for _, s := range o.spans.GetSpans() {
		said := s.Status.Description + text(s.Attributes)
		for _, e := range s.Events {
			said += text(e.Attributes)
		}
		if strings.Contains(said, "order 7") || strings.Contains(said, "secret") {
			t.Errorf("%s says %s", s.Name, said)
		}
		if s.Name == "livepool.unit" && (s.Status.Code != codes.Error || !strings.Contains(s.Status.Description, errOwn.Error())) {
			t.Errorf("the unit's status is %+v", s.Status)
		}
	}
}

// A unit has failed if it was not applied, or nobody knows; not where another one was in its place.
func TestStatusOfOutcomes(t *testing.T) {
	for outcome, failed := range map[trace.Outcome]bool{trace.Applied: false, trace.AlreadyApplied: false, trace.NotApplied: true, trace.Unknown: true} {
		o := newTelemetry(t)
		tracer := o.newTracer(t)
		tracer.TraceUnitEnd(tracer.TraceUnitStart(t.Context(), trace.UnitStart{}), trace.UnitEnd{Outcome: outcome, Err: os.ErrDeadlineExceeded})
		span := o.spans.GetSpans()[0]
		hasType := strings.Contains(text(span.Attributes), "error.type=")
		if (span.Status.Code == codes.Error) != failed || hasType != failed || (len(span.Events) == 1) != failed {
			t.Errorf("%s: the status is %+v, with %d events and %s", outcome, span.Status, len(span.Events), text(span.Attributes))
		}
	}
}

// The page has each span and event with its attributes, and no other.
func TestPageHasEachSpan(t *testing.T) {
	o := newTelemetry(t)
	tellAll(t, o, errOwn)
	var want []string
	for name, attrs := range o.attrsOf() {
		for _, a := range attrs {
			if a.Key != "db.client.connection.pool.name" && a.Key != "error.type" {
				want = append(want, name+" "+string(a.Key))
			}
		}
		want = append(want, name)
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "tracing.md"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(livepool[.a-z]+)`[^|]*\\|([^|]*)\\|").FindAllStringSubmatch(strings.Split(string(page), "\n## Metrics\n")[0], -1) {
		got = append(got, m[1])
		for _, a := range regexp.MustCompile("`([a-z_.]+)`").FindAllStringSubmatch(m[2], -1) {
			got = append(got, m[1]+" "+a[1])
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the page has\n%s\nand there are\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
