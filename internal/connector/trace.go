// trace.go tells the user's tracer what the pool does. Without one that costs a look at a
// nil interface, and nothing where a statement runs on a connection that needs no ping.

package connector

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/livepool/livepool/internal/usercode"
	"github.com/livepool/livepool/trace"
)

// Tracer is the user's tracer by its interfaces. The zero Tracer tells nobody. A panic goes
// no further, and leaves the context as it was.
type Tracer struct {
	log      *slog.Logger
	units    trace.UnitTracer
	acquires trace.AcquireTracer
	connects trace.ConnectTracer
	events   trace.EventTracer
}

// NewTracer takes the user's tracer apart, which may be nil.
func NewTracer(tracer any, log *slog.Logger) (Tracer, error) {
	t := Tracer{log: log}
	t.units, _ = tracer.(trace.UnitTracer)
	t.acquires, _ = tracer.(trace.AcquireTracer)
	t.connects, _ = tracer.(trace.ConnectTracer)
	t.events, _ = tracer.(trace.EventTracer)
	if tracer != nil && t.units == nil && t.acquires == nil && t.connects == nil && t.events == nil {
		return t, errors.New("livepool: Config.Tracer has none of the interfaces of the package trace (UnitTracer, AcquireTracer, ConnectTracer, EventTracer), " +
			"and would never be called: are its methods those of a pointer?")
	}
	return t, nil
}

func (t *Tracer) tell(f func()) { usercode.CatchPanic(t.log, "Config.Tracer", f) }

// UnitStart returns the context of the unit.
func (t *Tracer) UnitStart(ctx context.Context, start trace.UnitStart) context.Context {
	if t.units != nil {
		t.tell(func() { ctx = t.units.TraceUnitStart(ctx, start) })
	}
	return ctx
}

// UnitEnd is called for each UnitStart.
func (t *Tracer) UnitEnd(ctx context.Context, end trace.UnitEnd) {
	if t.units != nil {
		t.tell(func() { t.units.TraceUnitEnd(ctx, end) })
	}
}

// AcquireStart returns the context under which the connection is taken.
func (t *Tracer) AcquireStart(ctx context.Context, start trace.AcquireStart) context.Context {
	if t.acquires != nil {
		t.tell(func() { ctx = t.acquires.TraceAcquireStart(ctx, start) })
	}
	return ctx
}

// AcquireEnd is called for each AcquireStart.
func (t *Tracer) AcquireEnd(ctx context.Context, end trace.AcquireEnd) {
	if t.acquires != nil {
		t.tell(func() { t.acquires.TraceAcquireEnd(ctx, end) })
	}
}

// Since is time.Since, and 0 where nobody is told of units: it costs as much as the rest.
func (t *Tracer) Since(start time.Time) time.Duration {
	if t.units == nil && t.acquires == nil {
		return 0
	}
	return time.Since(start)
}

// HasEvents says whether somebody is told of events: without, they need not be made.
func (t *Tracer) HasEvents() bool { return t.events != nil }

// Event tells of an event.
func (t *Tracer) Event(ctx context.Context, event trace.Event) {
	if t.events != nil {
		t.tell(func() { t.events.TraceEvent(ctx, event) })
	}
}

// event is Event where no caller's context is at hand.
func (t *Tracer) event(event trace.Event) { t.Event(context.Background(), event) }

// traced identifies a link.
func (ctr *Connector) traced(l *link) trace.Conn {
	return trace.Conn{Addr: ctr.addr, ThreadID: l.threadID(), Age: ctr.clock.Now() - l.born}
}

// connectTraced opens a connection.
func (ctr *Connector) connectTraced(ctx context.Context) (l link, err error) {
	t := &ctr.Tracer
	if t.connects == nil {
		return ctr.connectToWorkingNode(ctx)
	}
	start := ctr.clock.Now()
	t.tell(func() { ctx = t.connects.TraceConnectStart(ctx, trace.ConnectStart{Addr: ctr.addr}) })
	l, err = ctr.connectToWorkingNode(ctx)
	end := trace.ConnectEnd{Conn: trace.Conn{Addr: ctr.addr, ThreadID: l.threadID()}, Took: ctr.clock.Now() - start, Err: err}
	t.tell(func() { t.connects.TraceConnectEnd(ctx, end) })
	return l, err
}

// pingTraced pings for a caller.
func (c *conn) pingTraced(ctx context.Context) Verdict {
	conn, start := c.ctr.traced(&c.link), c.ctr.clock.Now() // before, because an unanswered ping takes the link with it
	v := c.pingNow(ctx)
	c.ctr.Tracer.Event(ctx, trace.Ping{Conn: conn, Took: c.ctr.clock.Now() - start, Failed: v.String()})
	return v
}
