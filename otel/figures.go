package livepoolotel

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/livepool/livepool"
)

// figures are the metrics that are read when a reader asks for them, and so cost a unit
// nothing. Those of db.client have their texts from the semantic conventions.
var figures = []figure{
	{level, "db.client.connection.count", "{connection}", "The number of connections that are currently in state described by the `state` attribute.", []value{
		{semconv.DBClientConnectionStateIdle, func(n *now) int64 { return int64(n.Idle) }},
		{semconv.DBClientConnectionStateUsed, func(n *now) int64 { return int64(n.InUse) }}}},
	{level, "db.client.connection.max", "{connection}", "The maximum number of open connections allowed.", []value{
		{of: func(n *now) int64 { return n.limit() }}}},
	{level, "db.client.connection.pending_requests", "{request}", "The number of current pending requests for an open connection.", []value{
		{of: func(n *now) int64 { return n.pending }}}},
	{counter, "db.client.connection.timeouts", "{timeout}",
		"The number of connection timeouts that have occurred trying to obtain a connection from the pool.", []value{
			{of: func(n *now) int64 { return n.SessionsTimedOut }}}},

	{gauge, "livepool.outage", "1", "1 while no connection can be had, or no write is taken.", []value{
		{outageOf.String("connections"), func(n *now) int64 { return isSet(n.UnreachableSince) }},
		{outageOf.String("writes"), func(n *now) int64 { return isSet(n.WritesRefusedSince) }}}},
	{counter, "livepool.connect.failures", "{attempt}", "Attempts to open a connection that failed.", []value{
		{of: func(n *now) int64 { return n.ConnectFailed }}}},
	{counter, "livepool.deaths", "{connection}", "Connections found dead.", []value{
		{of: func(n *now) int64 { return n.Deaths }}}},
	{counter, "livepool.discards", "{connection}", "Connections closed by livepool while nobody used them, by the reason.", []value{
		{reason.String("recycle"), func(n *now) int64 { return n.ClosedByRecycle }},
		{reason.String("age"), func(n *now) int64 { return n.ClosedByAge }},
		{reason.String("silence"), func(n *now) int64 { return n.ClosedBySilence }},
		{reason.String("peek"), func(n *now) int64 { return n.ClosedByPeek }},
		{reason.String("ping"), func(n *now) int64 { return n.ClosedByPing }},
		{reason.String("driver"), func(n *now) int64 { return n.ClosedByDriver }},
		{reason.String("caller"), func(n *now) int64 { return n.ClosedByCaller }}}},
	{counter, "livepool.kills", "{connection}", "Abandoned connections that were looked for on the server, by what became of them.", []value{
		{outcomeKey.String("killed"), func(n *now) int64 { return n.Killed }},
		{outcomeKey.String("gone"), func(n *now) int64 { return n.KillUnneeded }},
		{outcomeKey.String("unproved"), func(n *now) int64 { return n.KillUnproved }},
		{outcomeKey.String("failed"), func(n *now) int64 { return n.KillFailed }}}},
	{counter, "livepool.retries", "{attempt}", "Attempts of units of work after the first.", []value{
		{of: func(n *now) int64 { return n.Retried }}}},
	{counter, "livepool.resends", "{statement}", "Failures after which a statement was sent again.", []value{
		{of: func(n *now) int64 { return n.Resent }}}},
	{counter, "livepool.commits.unknown", "{commit}", "COMMITs whose answer was lost, of units and of plain transactions.", []value{
		{of: func(n *now) int64 { return n.CommitsUnknown }}}},
	{counter, "livepool.leaks", "{connection}", "Connections held for longer than LeakAfter.", []value{
		{of: func(n *now) int64 { return n.Leaks }}}},
}

const (
	reason   = attribute.Key("livepool.reason")
	outageOf = attribute.Key("livepool.outage.of")
)

// figure is an instrument with what it has values of, which attr tells apart.
type figure struct {
	kind             kind
	name, unit, text string
	values           []value
}

type value struct {
	attr attribute.KeyValue
	of   func(*now) int64 // negative: there is none
}

// now is a pool when it is asked.
type now struct {
	livepool.Stats
	pending int64
}

// limit is how many connections there may be, -1 for no limit.
func (n *now) limit() int64 {
	if n.MaxOpenConnections == 0 {
		return -1
	}
	return int64(n.MaxOpenConnections)
}

func isSet(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return 1
}

type kind int

const (
	level kind = iota
	counter
	gauge
)

func (f *figure) instrument(m metric.Meter) (metric.Int64Observable, error) {
	unit, text := metric.WithUnit(f.unit), metric.WithDescription(f.text)
	switch f.kind {
	case counter:
		return m.Int64ObservableCounter(f.name, unit, text)
	case gauge:
		return m.Int64ObservableGauge(f.name, unit, text)
	default:
		return m.Int64ObservableUpDownCounter(f.name, unit, text)
	}
}

// reading is one value as it is observed.
type reading struct {
	instrument metric.Int64Observable
	attrs      []metric.ObserveOption
	of         func(*now) int64
}

func (t *Tracer) makeReadings(pool attribute.KeyValue) error {
	errs := make([]error, 0, len(figures))
	for _, f := range figures {
		instrument, err := f.instrument(t.meter)
		errs = append(errs, err)
		for _, v := range f.values {
			attrs := []attribute.KeyValue{pool}
			if v.attr.Valid() {
				attrs = append(attrs, v.attr)
			}
			t.readings = append(t.readings, reading{instrument, []metric.ObserveOption{metric.WithAttributes(attrs...)}, v.of})
		}
	}
	return errors.Join(errs...)
}

// Watch has the metrics that are read from the pool's Stats, once the pool is open, until the
// registration is undone: after the pool is closed. It asks the server nothing.
func (t *Tracer) Watch(p *livepool.Pool) (metric.Registration, error) {
	instruments := make([]metric.Observable, 0, len(t.readings))
	for _, r := range t.readings {
		instruments = append(instruments, r.instrument)
	}
	return t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		n := now{p.Stats(), t.pending.Load()}
		for _, r := range t.readings {
			if v := r.of(&n); v >= 0 {
				o.ObserveInt64(r.instrument, v, r.attrs...)
			}
		}
		return nil
	}, instruments...)
}
