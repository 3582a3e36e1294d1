package compare

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/bench/gauge"
)

// inProcess has a pool of this process carry out orders.
type inProcess struct {
	name string
	pool pool
}

func (p *inProcess) Name() string { return p.name }
func (p *inProcess) Close() error { return p.pool.close() }

// Memory is what is in use in the whole program, of which only one contender works when
// this is asked.
func (p *inProcess) Memory() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func (p *inProcess) Do(ctx context.Context, o order, tell func(answer)) (answer, error) {
	closing := answer{Done: true, Kind: o.Kind}
	switch o.Kind {
	case kindQuery, kindExec, kindJob:
		return p.load(ctx, o, tell), nil
	case kindRecycle:
		closing.Unsupported = !p.pool.recycle()
	case kindLock:
		closing.Failed = p.hold(ctx, o, tell)
	default:
		closing.Unsupported = true
	}
	return closing, nil
}

// caller is one of those that work at the same time.
type caller struct {
	mu      sync.Mutex // guards what follows
	running bool
	over    bool // the order has ended without it
	id      int64
	start   time.Time
	took    []time.Duration // by what came back without an error
	failed  int
}

// load has the callers work, and returns when all is done or hangs.
func (p *inProcess) load(ctx context.Context, o order, tell func(answer)) answer {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // for those that hang
	if o.endless {
		ctx = context.Background()
	}
	begun := time.Now()
	until := begun.Add(seconds(o.Seconds))
	var next atomic.Int64
	next.Store(o.FirstID)
	callers := make([]*caller, o.Callers)
	var wg sync.WaitGroup
	for i := range callers {
		c := &caller{}
		callers[i] = c
		every := time.Duration(o.EveryMS) * time.Millisecond
		due := begun.Add(every * time.Duration(i) / time.Duration(o.Callers))
		wg.Go(func() {
			for ; due.Before(until); due = latest(due.Add(every), time.Now()) {
				if every > 0 {
					time.Sleep(time.Until(due))
				}
				if !c.begin(&next) {
					return
				}
				c.end(o.Kind, p.run(ctx, o.Kind, c.id), tell)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Until(until) + seconds(o.Deadline)):
	case <-ctx.Done():
	}
	return sum(callers, o.Kind, tell)
}

// latest keeps to the pace, and makes up for nothing.
func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// run is one operation.
func (p *inProcess) run(ctx context.Context, kind string, id int64) error {
	switch kind {
	case kindQuery:
		return p.pool.query(ctx, 1+id%points)
	case kindExec:
		return p.pool.exec(ctx)
	default:
		return p.pool.transact(ctx, func(ctx context.Context, exec execFunc) error {
			return exec(ctx, "INSERT INTO bench_job (id) VALUES (?)", id)
		})
	}
}

// begin takes the next id, unless the order has ended.
func (c *caller) begin(next *atomic.Int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	c.running, c.id, c.start = true, next.Add(1)-1, time.Now()
	return true
}

// end notes what an operation was told, unless it was given up for hung.
func (c *caller) end(kind string, err error, tell func(answer)) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = false
	switch {
	case c.over:
		return
	case err == nil:
		c.took = append(c.took, now.Sub(c.start))
	default:
		c.failed++
	}
	if kind == kindJob {
		tell(answer{ID: c.id, StartUS: c.start.UnixMicro(), EndUS: now.UnixMicro(), Outcome: outcomeOf(err), Error: firstLine(err)})
	}
}

func outcomeOf(err error) string {
	switch {
	case err == nil:
		return outcomeOK
	case errors.Is(err, livepool.ErrCommitUnknown):
		return outcomeUnknown
	}
	return outcomeFailed
}

func firstLine(err error) string {
	if err == nil {
		return ""
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line[:min(len(line), 200)]
}

// sum ends the order, and tells of what hangs.
func sum(callers []*caller, kind string, tell func(answer)) answer {
	closing := answer{Done: true, Kind: kind}
	var took []time.Duration
	now := time.Now()
	for _, c := range callers {
		c.mu.Lock()
		c.over = true
		took = append(took, c.took...)
		closing.Operations += len(c.took) + c.failed
		closing.Failed += c.failed
		if c.running {
			closing.Operations++
			closing.Failed++
			if kind == kindJob {
				tell(answer{ID: c.id, StartUS: c.start.UnixMicro(), EndUS: now.UnixMicro(), Outcome: outcomeHung})
			}
		}
		c.mu.Unlock()
	}
	closing.P50US, closing.P99US = micros(gauge.Quantile(took, 0.5)), micros(gauge.Quantile(took, 0.99))
	return closing
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// hold takes the lock of the row, and has its caller's context end in the middle of the
// next statement. It waits for the pool no longer than it is told to.
func (p *inProcess) hold(ctx context.Context, o order, tell func(answer)) (failed int) {
	ctx, cancel := context.WithCancel(ctx)
	back := make(chan error, 1)
	go func() {
		back <- p.pool.transact(ctx, func(ctx context.Context, exec execFunc) error {
			if err := exec(ctx, "UPDATE bench_lock SET v = v + 1 WHERE id = 1"); err != nil {
				return err
			}
			tell(answer{Held: true})
			pause := time.Duration(o.PauseMS) * time.Millisecond
			time.AfterFunc(pause+seconds(o.Timeout), cancel)
			time.Sleep(pause)
			return exec(ctx, o.Statement)
		})
	}()
	defer cancel()
	select {
	case err := <-back:
		if err != nil {
			return 1
		}
		return 0
	case <-time.After(seconds(o.Seconds)):
		return 1
	}
}
