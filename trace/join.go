package trace

import "context"

// Join returns a tracer that tells each of the given ones, in their order: a context goes
// from one to the next.
func Join(tracers ...any) any { return joined(tracers) }

type joined []any

func (j joined) TraceUnitStart(ctx context.Context, start UnitStart) context.Context {
	return chain(j, ctx, func(t UnitTracer, ctx context.Context) context.Context { return t.TraceUnitStart(ctx, start) })
}

func (j joined) TraceUnitEnd(ctx context.Context, end UnitEnd) {
	each(j, func(t UnitTracer) { t.TraceUnitEnd(ctx, end) })
}

func (j joined) TraceAcquireStart(ctx context.Context, start AcquireStart) context.Context {
	return chain(j, ctx, func(t AcquireTracer, ctx context.Context) context.Context { return t.TraceAcquireStart(ctx, start) })
}

func (j joined) TraceAcquireEnd(ctx context.Context, end AcquireEnd) {
	each(j, func(t AcquireTracer) { t.TraceAcquireEnd(ctx, end) })
}

func (j joined) TraceConnectStart(ctx context.Context, start ConnectStart) context.Context {
	return chain(j, ctx, func(t ConnectTracer, ctx context.Context) context.Context { return t.TraceConnectStart(ctx, start) })
}

func (j joined) TraceConnectEnd(ctx context.Context, end ConnectEnd) {
	each(j, func(t ConnectTracer) { t.TraceConnectEnd(ctx, end) })
}

func (j joined) TraceEvent(ctx context.Context, event Event) {
	each(j, func(t EventTracer) { t.TraceEvent(ctx, event) })
}

// each calls f for those tracers that have the interface T.
func each[T any](j joined, f func(T)) {
	for _, tracer := range j {
		if t, ok := tracer.(T); ok {
			f(t)
		}
	}
}

// chain is each, where a context goes from one to the next.
func chain[T any](j joined, ctx context.Context, f func(T, context.Context) context.Context) context.Context {
	each(j, func(t T) { ctx = f(t, ctx) })
	return ctx
}
