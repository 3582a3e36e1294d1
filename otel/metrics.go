package livepoolotel

import (
	"errors"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/livepool/livepool/trace"
)

// metrics are the histograms of what the tracer is told, and how the figures are read.
type metrics struct {
	units, commits, creates, waits, uses metric.Float64Histogram
	ofPool                               []metric.RecordOption
	ofOutcome                            map[trace.Outcome][]metric.RecordOption

	pending  atomic.Int64 // attempts that have asked for a connection, and have none yet
	readings []reading
}

// seconds are from a round trip within a machine room to the default of PoolTimeout.
var seconds = metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30)

func (t *Tracer) makeHistograms(pool attribute.KeyValue) error {
	var errs []error
	histogram := func(name, text string) metric.Float64Histogram {
		h, err := t.meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(text), seconds)
		errs = append(errs, err)
		return h
	}
	t.creates = histogram("db.client.connection.create_time", "The time it took to create a new connection.")
	t.waits = histogram("db.client.connection.wait_time", "The time it took to obtain an open connection from the pool.")
	t.uses = histogram("db.client.connection.use_time", "The time between borrowing a connection and returning it to the pool.")
	t.units = histogram("livepool.unit.duration", "How long units of work took, with all their attempts, by what became of them.")
	t.commits = histogram("livepool.commit.duration", "How long the COMMIT of units took, those whose answer was lost among them.")
	t.ofPool = []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(pool))}
	t.ofOutcome = map[trace.Outcome][]metric.RecordOption{}
	for _, o := range []trace.Outcome{trace.Applied, trace.NotApplied, trace.AlreadyApplied, trace.Unknown} {
		t.ofOutcome[o] = []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(pool, outcomeKey.String(string(o))))}
	}
	return errors.Join(errs...)
}
