package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

var errNone = errors.New("has no such thing")

// recycleUnderLoad has the pools replace all their connections while jobs run.
func recycleUnderLoad(ctx context.Context, s *stage) ([]table, error) {
	size, callers := s.scale.recycled, min(64, s.scale.recycled)
	t := table{
		Title:   fmt.Sprintf("All of %d connections are replaced under load", size),
		What:    fmt.Sprintf("As after a planned switch, or a change of the password. %d callers, each with a job every %d ms. Time until the last old connection is closed.", callers, pace),
		Columns: []column{{Name: "connections", note: true}, wait("replaced after"), {Name: "failed jobs"}, {Name: "slowest job", Unit: "ms", near: 0.2, by: 50}},
		charts:  []int{1, 3},
	}
	var err error
	t.Rows, err = s.alone(ctx, t.Title, true, size, func(l *lane) ([]cell, error) {
		if a, err := l.Do(ctx, order{Kind: kindRecycle}, l.tell); err != nil || a.Unsupported {
			return nil, errors.Join(err, errNone)
		}
		l.proxy.Delay(20 * time.Millisecond) // so that so many are needed at a time
		for range 10 {
			if _, err := l.Do(ctx, order{Kind: kindExec, Callers: size, Seconds: 1, Deadline: 20}, l.tell); err != nil || l.proxy.Conns() >= size {
				break
			}
		}
		l.proxy.Delay(0)
		had := l.proxy.Conns()
		if had < size*9/10 {
			return nil, fmt.Errorf("no comparison: only %d of %d connections were open", had, size)
		}
		var recycled time.Duration
		var ever bool
		load := s.scale.calm + s.scale.after
		o := s.jobs(load)
		o.Callers = callers
		failed := 0
		err := under(ctx, []*lane{l}, o, func() (err error) {
			clock.Wait(ctx, nil, s.scale.calm/2)
			recycled, ever, err = s.recycle(ctx, l)
			return err
		})
		if l.missing != "" {
			err = errors.Join(err, errors.New(l.missing))
		}
		for _, op := range l.told() {
			if op.Outcome != outcomeOK {
				failed++
			}
		}
		return []cell{count(had), waited(recycled, ever, s.scale.cap), count(failed), number(float64(slowest(l.told()).Microseconds())/1000, "%.0f ms")}, err
	})
	return []table{t}, err
}

// recycle waits until no connection is left that is older than the order.
func (s *stage) recycle(ctx context.Context, l *lane) (time.Duration, bool, error) {
	begun := time.Now()
	if _, err := l.Do(ctx, order{Kind: kindRecycle}, l.tell); err != nil {
		return 0, false, err
	}
	for time.Since(begun) < s.scale.cap && ctx.Err() == nil {
		old := false
		for _, c := range l.proxy.Lifetimes() {
			old = old || c.Opened.Before(begun) && c.Closed.IsZero()
		}
		if !old {
			return time.Since(begun), true, nil
		}
		clock.Wait(ctx, nil, 10*time.Millisecond)
	}
	return 0, false, nil
}

// crowd has far more callers than there are connections.
func crowd(ctx context.Context, s *stage) ([]table, error) {
	t := table{
		Title:   fmt.Sprintf("%d callers on %d connections", s.scale.crowd, s.scale.few),
		What:    fmt.Sprintf("Each does a job as soon as its last one is done, for %s. Memory is what the program needs beyond what it had: the callers, their waiting and the pool.", s.scale.calm),
		Columns: []column{{Name: "jobs per second", more: true, near: 0.1}, {Name: "median", Unit: "ms", near: 0.1}, {Name: "p99", Unit: "ms", near: 0.1}, {Name: "failed"}, {Name: "memory", Unit: "MB", near: 0.2, by: 5}},
		charts:  []int{0, 2, 4},
	}
	var err error
	t.Rows, err = s.alone(ctx, t.Title, false, s.scale.few, func(l *lane) ([]cell, error) {
		if l.entry.name == "plain" {
			return nil, errors.New("has no limit: it would open as many connections as there are callers")
		}
		before := l.Memory()
		sampled, stop := make(chan int64, 1), make(chan struct{})
		go func() { sampled <- peak(l, stop) }()
		start := time.Now()
		a, err := l.Do(ctx, order{Kind: kindJob, Callers: s.scale.crowd, Seconds: s.scale.calm.Seconds(), FirstID: 1, Deadline: s.scale.cap.Seconds()}, func(answer) {})
		elapsed := time.Since(start)
		close(stop)
		most := <-sampled
		switch {
		case err != nil:
			return nil, err
		case a.Unsupported:
			return nil, errNone
		case a.Operations < s.scale.crowd: // its queue was shorter than that of the others
			return nil, fmt.Errorf("no comparison: only %d jobs of %d callers began within %s", a.Operations, s.scale.crowd, s.scale.calm)
		}
		return []cell{
			number(float64(a.Operations-a.Failed)/elapsed.Seconds(), "%.0f"), number(a.P50US/1000, "%.0f ms"), number(a.P99US/1000, "%.0f ms"),
			count(a.Failed), number(float64(most-before)/(1<<20), "%.0f MB"),
		}, nil
	})
	return []table{t}, err
}

// peak is the most memory until stop is closed.
func peak(l *lane, stop chan struct{}) (most int64) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		most = max(most, l.Memory())
		select {
		case <-stop:
			return most
		case <-tick.C:
		}
	}
}
