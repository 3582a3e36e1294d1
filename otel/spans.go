package livepoolotel

import (
	"context"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/livepool/livepool/trace"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// spans makes them.
type spans struct {
	tracer oteltrace.Tracer
	common oteltrace.SpanStartEventOption // what all have
}

func newSpans(t oteltrace.Tracer, pool string) spans {
	return spans{t, oteltrace.WithAttributes(semconv.DBSystemNameMySQL, semconv.DBClientConnectionPoolName(pool))}
}

// The names of the spans.
const (
	unitSpan    = "livepool.unit"
	acquireSpan = "livepool.acquire"
	connectSpan = "livepool.connect"
	commitSpan  = "livepool.commit"
)

// spanKey is the key under which a context holds the span that is to be ended in it: its
// current span may be another tracer's.
type spanKey struct {
	by   *spans
	name string
}

func (s *spans) start(ctx context.Context, name string, kind oteltrace.SpanKind, attrs ...attribute.KeyValue) context.Context {
	ctx, span := s.tracer.Start(ctx, name, oteltrace.WithSpanKind(kind), s.common, oteltrace.WithAttributes(attrs...))
	return context.WithValue(ctx, spanKey{s, name}, span)
}

// end ends the span that start has begun.
func (s *spans) end(ctx context.Context, name string, err error, attrs ...attribute.KeyValue) {
	span, ok := ctx.Value(spanKey{s, name}).(oteltrace.Span)
	if !ok {
		return
	}
	span.SetAttributes(attrs...)
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

func (s *spans) startUnit(ctx context.Context, start trace.UnitStart) context.Context {
	attrs := []attribute.KeyValue{attribute.String("livepool.unit", start.Unit)}
	if start.Key != "" {
		attrs = append(attrs, attribute.String("livepool.key", start.Key))
	}
	return s.start(ctx, unitSpan, oteltrace.SpanKindInternal, attrs...)
}

func (s *spans) endUnit(ctx context.Context, end trace.UnitEnd) {
	s.end(ctx, unitSpan, end.Err, outcomeOf(end.Outcome), attribute.Int("livepool.attempts", end.Attempts))
}

func outcomeOf(o trace.Outcome) attribute.KeyValue {
	return attribute.String("livepool.outcome", string(o))
}

func (s *spans) startAcquire(ctx context.Context, start trace.AcquireStart) context.Context {
	return s.start(ctx, acquireSpan, oteltrace.SpanKindInternal, attribute.Int("livepool.attempt", start.Attempt))
}

func (s *spans) endAcquire(ctx context.Context, end trace.AcquireEnd) {
	s.end(ctx, acquireSpan, end.Err, attribute.Float64("livepool.queued", end.Queued.Seconds()))
}

func (s *spans) startConnect(ctx context.Context, start trace.ConnectStart) context.Context {
	return s.start(ctx, connectSpan, oteltrace.SpanKindClient, serverOf(start.Addr)...)
}

func (s *spans) endConnect(ctx context.Context, end trace.ConnectEnd) {
	s.end(ctx, connectSpan, end.Err, threadOf(end.Conn))
}

func threadOf(c trace.Conn) attribute.KeyValue {
	return attribute.Int64("livepool.thread_id", int64(c.ThreadID))
}

// serverOf splits an address such as "tcp(db:3306)".
func serverOf(addr string) []attribute.KeyValue {
	_, inside, _ := strings.Cut(strings.TrimSuffix(addr, ")"), "(")
	host, port, err := net.SplitHostPort(inside)
	if err != nil {
		return []attribute.KeyValue{semconv.ServerAddress(inside)}
	}
	n, _ := strconv.Atoi(port)
	return []attribute.KeyValue{semconv.ServerAddress(host), semconv.ServerPort(n)}
}

// addEvent adds what happens to a caller to its current span. A COMMIT has a span of its own,
// after the fact.
func (s *spans) addEvent(ctx context.Context, event trace.Event) {
	switch e := event.(type) {
	case trace.Commit:
		now := time.Now()
		_, span := s.tracer.Start(ctx, commitSpan, oteltrace.WithTimestamp(now.Add(-e.Took)),
			oteltrace.WithSpanKind(oteltrace.SpanKindInternal), s.common)
		if e.Err != nil {
			span.SetStatus(codes.Error, e.Err.Error())
		}
		span.End(oteltrace.WithTimestamp(now))
	case trace.Retry:
		oteltrace.SpanFromContext(ctx).AddEvent("livepool.retry", oteltrace.WithAttributes(attribute.Int("livepool.attempt", e.Attempt),
			attribute.Float64("livepool.wait", e.Wait.Seconds()), attribute.String("livepool.cause", e.Cause.Error())))
	case trace.Ping:
		attrs := []attribute.KeyValue{threadOf(e.Conn), attribute.Float64("livepool.took", e.Took.Seconds())}
		if e.Failed != "" {
			attrs = append(attrs, attribute.String("livepool.failed", e.Failed))
		}
		oteltrace.SpanFromContext(ctx).AddEvent("livepool.ping", oteltrace.WithAttributes(attrs...))
	}
}
