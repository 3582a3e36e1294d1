// trace.go tells the user's tracers what the pool does. Without one that costs a look at an
// empty list, and nothing where a statement runs on a connection that needs no ping.

package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/livepool/livepool/internal/usercode"
	"github.com/livepool/livepool/trace"
)

// Tracer is the user's tracers by their interfaces. A panic of one goes no further, and is not
// told to the others.
type Tracer struct {
	log      *slog.Logger
	units    []trace.UnitTracer
	acquires []trace.AcquireTracer
	connects []trace.ConnectTracer
	events   []trace.EventTracer
}

// NewTracer takes apart what the user has set, which may be nil.
func NewTracer(tracer any, log *slog.Logger) (Tracer, error) {
	t := Tracer{log: log}
	all, ok := tracer.(trace.All)
	if !ok && tracer != nil {
		all = trace.All{tracer}
	}
	for _, tracer := range all {
		unit, isUnit := tracer.(trace.UnitTracer)
		acquire, isAcquire := tracer.(trace.AcquireTracer)
		connect, isConnect := tracer.(trace.ConnectTracer)
		event, isEvent := tracer.(trace.EventTracer)
		if isUnit {
			t.units = append(t.units, unit)
		}
		if isAcquire {
			t.acquires = append(t.acquires, acquire)
		}
		if isConnect {
			t.connects = append(t.connects, connect)
		}
		if isEvent {
			t.events = append(t.events, event)
		}
		if !isUnit && !isAcquire && !isConnect && !isEvent {
			return t, fmt.Errorf("livepool: Config.Tracer: a %T has none of the interfaces of the package trace "+
				"(UnitTracer, AcquireTracer, ConnectTracer, EventTracer), and would never be called: are its methods those of a pointer?", tracer)
		}
	}
	return t, nil
}

func (t *Tracer) tell(f func()) { usercode.CatchPanic(t.log, "Config.Tracer", f) }

// UnitStart returns the context of the unit.
func (t *Tracer) UnitStart(ctx context.Context, start trace.UnitStart) context.Context {
	for _, tracer := range t.units {
		ctx = t.within(ctx, func(ctx context.Context) context.Context { return tracer.TraceUnitStart(ctx, start) }) //nolint:fatcontext // one in the other
	}
	return ctx
}

// within returns the context that start makes of ctx; ctx itself if it panics or makes none.
func (t *Tracer) within(ctx context.Context, start func(context.Context) context.Context) context.Context {
	started := ctx
	t.tell(func() { started = start(ctx) }) //nolint:fatcontext // the same
	if started == nil {
		return ctx
	}
	return started
}

// UnitEnd is called for each UnitStart.
func (t *Tracer) UnitEnd(ctx context.Context, end trace.UnitEnd) {
	for _, tracer := range t.units {
		t.tell(func() { tracer.TraceUnitEnd(ctx, end) })
	}
}

// AcquireStart returns the context under which the connection is taken.
func (t *Tracer) AcquireStart(ctx context.Context, start trace.AcquireStart) context.Context {
	for _, tracer := range t.acquires {
		ctx = t.within(ctx, func(ctx context.Context) context.Context { return tracer.TraceAcquireStart(ctx, start) }) //nolint:fatcontext // the same
	}
	return ctx
}

// AcquireEnd is called for each AcquireStart.
func (t *Tracer) AcquireEnd(ctx context.Context, end trace.AcquireEnd) {
	for _, tracer := range t.acquires {
		t.tell(func() { tracer.TraceAcquireEnd(ctx, end) })
	}
}

// ErrNotReturned is what is told of a step that a panic of the driver's has ended.
var ErrNotReturned = errors.New("the driver has panicked")

// Since is time.Since, and 0 where nobody is told of units: it costs as much as the rest.
func (t *Tracer) Since(start time.Time) time.Duration {
	if t.units == nil && t.acquires == nil {
		return 0
	}
	return time.Since(start)
}

// HasEvents says whether somebody is told of events: without, they need not be made.
func (t *Tracer) HasEvents() bool { return t.events != nil }

// Event tells of an event that happens to a caller.
func (t *Tracer) Event(ctx context.Context, event trace.Event) {
	for _, tracer := range t.events {
		t.tell(func() { tracer.TraceEvent(ctx, event) })
	}
}

// backgroundEvent is Event where no caller's context is at hand.
func (t *Tracer) backgroundEvent(event trace.Event) { t.Event(context.Background(), event) }

// traced identifies a link.
func (ctr *Connector) traced(l *link) trace.Conn {
	return trace.Conn{Addr: ctr.addrOf(l), ThreadID: l.threadID(), Age: ctr.clock.Now() - l.born}
}

// connectTraced opens a connection.
func (ctr *Connector) connectTraced(ctx context.Context) (l link, err error) {
	t := &ctr.Tracer
	if t.connects == nil {
		return ctr.connectToWorkingNode(ctx)
	}
	start := ctr.clock.Now()
	for _, tracer := range t.connects {
		ctx = t.within(ctx, func(ctx context.Context) context.Context { //nolint:fatcontext // the same
			return tracer.TraceConnectStart(ctx, trace.ConnectStart{Addr: ctr.addr})
		})
	}
	l, err = ctr.connectToWorkingNode(ctx)
	end := trace.ConnectEnd{Conn: trace.Conn{Addr: ctr.addrOf(&l), ThreadID: l.threadID()}, Took: ctr.clock.Now() - start, Err: err}
	for _, tracer := range t.connects {
		t.tell(func() { tracer.TraceConnectEnd(ctx, end) })
	}
	return l, err
}

// pingTraced pings for a caller.
func (c *conn) pingTraced(ctx context.Context) Verdict {
	conn, start := c.ctr.traced(&c.link), c.ctr.clock.Now() // before, because an unanswered ping takes the link with it
	v := c.pingNow(ctx)
	c.ctr.Tracer.Event(ctx, trace.Ping{Conn: conn, Took: c.ctr.clock.Now() - start, Failed: v.String()})
	return v
}
