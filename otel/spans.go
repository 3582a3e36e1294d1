package livepoolotel

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/trace"
)

// The keys by which a context has the spans that are to be ended: its current span may be
// that of another tracer of trace.All.
type (
	unitKey    struct{}
	acquireKey struct{}
	connectKey struct{}
)

const (
	attemptKey   = attribute.Key("livepool.attempt")
	attemptsKey  = attribute.Key("livepool.unit.attempts")
	causeKey     = attribute.Key("livepool.cause")
	failedKey    = attribute.Key("livepool.ping.failed")
	hasKeyKey    = attribute.Key("livepool.unit.has_key")
	outcomeKey   = attribute.Key("livepool.outcome")
	pingTimeKey  = attribute.Key("livepool.ping.time")
	queueTimeKey = attribute.Key("livepool.queue_time")
	retryWaitKey = attribute.Key("livepool.retry.wait_time")
	threadIDKey  = attribute.Key("livepool.thread_id")
	unitNameKey  = attribute.Key("livepool.unit.name")
)

var (
	isClient = oteltrace.WithSpanKind(oteltrace.SpanKindClient)
	isMySQL  = oteltrace.WithAttributes(semconv.DBSystemNameMySQL)
)

// start begins a span that an End below, or addCommit, ends.
func (t *Tracer) start(ctx context.Context, name string, opts ...oteltrace.SpanStartOption) (context.Context, oteltrace.Span) {
	return t.tracer.Start(ctx, name, opts...) //nolint:spancheck // it is ended elsewhere
}

// TraceUnitStart is of trace.UnitTracer.
func (t *Tracer) TraceUnitStart(ctx context.Context, start trace.UnitStart) context.Context {
	ctx, span := t.start(ctx, "livepool.unit", t.poolName,
		oteltrace.WithAttributes(unitNameKey.String(start.Unit), hasKeyKey.Bool(start.Key != "")))
	return context.WithValue(ctx, unitKey{}, span)
}

// TraceUnitEnd is of trace.UnitTracer.
func (t *Tracer) TraceUnitEnd(ctx context.Context, end trace.UnitEnd) {
	t.units.Record(ctx, end.Took.Seconds(), t.ofOutcome[end.Outcome]...)
	span, ok := ctx.Value(unitKey{}).(oteltrace.Span)
	if !ok {
		return
	}
	if span.IsRecording() {
		span.SetAttributes(attemptsKey.Int(end.Attempts), outcomeKey.String(string(end.Outcome)))
		switch {
		case end.Outcome == trace.Applied, end.Outcome == trace.AlreadyApplied:
		case end.Err == nil:
			span.SetStatus(codes.Error, "its function has panicked, or ended its goroutine")
		default:
			setFailed(span, end.Err)
			span.RecordError(withoutKey(end.Err))
		}
	}
	span.End()
}

// TraceAcquireStart is of trace.AcquireTracer. Its span is not made the current one, which a
// tracer of the driver may keep for the transaction and its COMMIT.
func (t *Tracer) TraceAcquireStart(ctx context.Context, start trace.AcquireStart) context.Context {
	t.pending.Add(1)
	if !oteltrace.SpanFromContext(ctx).IsRecording() { // the unit's
		return ctx
	}
	_, span := t.start(ctx, "livepool.acquire", t.poolName, oteltrace.WithAttributes(attemptKey.Int(start.Attempt)))
	return context.WithValue(ctx, acquireKey{}, span)
}

// TraceAcquireEnd is of trace.AcquireTracer.
func (t *Tracer) TraceAcquireEnd(ctx context.Context, end trace.AcquireEnd) {
	t.pending.Add(-1)
	if end.Err == nil {
		t.waits.Record(ctx, end.Took.Seconds(), t.ofPool...)
	}
	span, ok := ctx.Value(acquireKey{}).(oteltrace.Span)
	if !ok {
		return
	}
	span.SetAttributes(queueTimeKey.Float64(end.Queued.Seconds()))
	setFailed(span, end.Err)
	span.End()
}

// TraceConnectStart is of trace.ConnectTracer. What is opened for no span of the program, in the
// background, has no span.
func (t *Tracer) TraceConnectStart(ctx context.Context, start trace.ConnectStart) context.Context {
	parent := acquiring(ctx)
	if !parent.SpanContext().IsValid() {
		return ctx
	}
	ctx, span := t.start(oteltrace.ContextWithSpan(ctx, parent), "livepool.connect", isClient, t.poolName, isMySQL,
		oteltrace.WithAttributes(server(start.Addr)...))
	return context.WithValue(ctx, connectKey{}, span)
}

// TraceConnectEnd is of trace.ConnectTracer.
func (t *Tracer) TraceConnectEnd(ctx context.Context, end trace.ConnectEnd) {
	if end.Err == nil {
		t.creates.Record(ctx, end.Took.Seconds(), t.ofPool...)
	}
	span, ok := ctx.Value(connectKey{}).(oteltrace.Span)
	switch {
	case !ok:
		return
	case end.Err == nil:
		span.SetAttributes(threadIDKey.Int64(int64(end.ThreadID)))
	default:
		setFailed(span, end.Err)
		span.RecordError(end.Err)
	}
	span.End()
}

// acquiring is the span of the attempt that takes its connection under ctx, and outside of
// that the current one.
func acquiring(ctx context.Context) oteltrace.Span {
	if span, ok := ctx.Value(acquireKey{}).(oteltrace.Span); ok {
		return span
	}
	return oteltrace.SpanFromContext(ctx)
}

// TraceEvent is of trace.EventTracer. What is told without the context of a caller is in
// figures.
func (t *Tracer) TraceEvent(ctx context.Context, event trace.Event) {
	switch e := event.(type) {
	case trace.Release:
		t.uses.Record(ctx, e.Held.Seconds(), t.ofPool...)
	case trace.Commit:
		t.commits.Record(ctx, e.Took.Seconds(), t.ofPool...)
		if oteltrace.SpanFromContext(ctx).IsRecording() {
			t.addCommit(ctx, e)
		}
	case trace.Retry:
		if span := oteltrace.SpanFromContext(ctx); span.IsRecording() {
			span.AddEvent("livepool.retry", oteltrace.WithAttributes(attemptKey.Int(e.Attempt),
				retryWaitKey.Float64(e.Wait.Seconds()), causeKey.String(withoutKey(e.Cause).Error())))
		}
	case trace.Ping:
		if span := acquiring(ctx); span.IsRecording() {
			span.AddEvent("livepool.ping", oteltrace.WithAttributes(threadIDKey.Int64(int64(e.ThreadID)),
				pingTimeKey.Float64(e.Took.Seconds()), failedKey.String(e.Failed)))
		}
	}
}

// addCommit adds a span of a COMMIT after the fact.
func (t *Tracer) addCommit(ctx context.Context, c trace.Commit) {
	now := time.Now()
	_, span := t.start(ctx, "livepool.commit", t.poolName, oteltrace.WithTimestamp(now.Add(-c.Took)))
	setFailed(span, c.Err)
	span.End(oteltrace.WithTimestamp(now))
}

// setFailed says on a span that it failed with err, if it is not nil. The error itself is
// recorded where it came about (connect) and where it ends (unit).
func setFailed(span oteltrace.Span, err error) {
	if err == nil {
		return
	}
	err = withoutKey(err)
	span.SetAttributes(semconv.ErrorType(err))
	span.SetStatus(codes.Error, err.Error())
}

// withoutKey is err without what livepool.UnitError adds to its cause: what the span has as
// attributes, and a key or a statement, which may be confidential.
func withoutKey(err error) error {
	var unit *livepool.UnitError
	if errors.As(err, &unit) {
		return unit.Err
	}
	return err
}

// server is what is known of an address such as "tcp(db:3306)" or "unix(/tmp/mysql.sock)".
func server(addr string) []attribute.KeyValue {
	_, inside, ok := strings.Cut(strings.TrimSuffix(addr, ")"), "(")
	if !ok {
		return nil
	}
	host, port, err := net.SplitHostPort(inside)
	number, notNumber := strconv.Atoi(port)
	if err != nil || notNumber != nil {
		return []attribute.KeyValue{semconv.ServerAddress(inside)}
	}
	return []attribute.KeyValue{semconv.ServerAddress(host), semconv.ServerPort(number)}
}
