// run.go plays the plan: the same jobs on all lanes at the same time, phase
// after phase, and the audit at the end. What a phase does is faults.go's
// affair, what comes of it report.go's.

package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/lab/proxy"
)

// load is how much work a phase brings.
type load struct {
	jobs int           // in each burst
	span time.Duration // over which they arrive
	seed uint64
}

var defaultLoad = load{jobs: 96, span: 2 * time.Second, seed: 1}

// run is one run under way.
type run struct {
	site  *site
	lanes []*lane
	admin *sql.DB // straight to the server, and never an old connection
	load  load
	start time.Time
	cuts  []*proxy.Cut // those that wait for their command

	mu    sync.Mutex
	phase string // for the progress line
	marks []mark
}

// mark is when something happened, since the run began.
type mark struct {
	phase      int
	begin, end time.Duration // of the phase
	from, to   time.Duration // of the fault; both 0 without one
}

// outcome is all that is known after a run.
type outcome struct {
	site    *site
	phases  []phase
	skipped []string
	marks   []mark
	took    time.Duration
	lanes   []laneOutcome
}

type laneOutcome struct {
	contender
	samples []sample
	audit   audit
	conns   int // connections opened
}

// newRun opens the lanes and makes their tables.
func newRun(ctx context.Context, site *site, load load) (*run, error) {
	admin, err := sql.Open("mysql", site.mysql.FormatDSN())
	if err != nil {
		return nil, err
	}
	admin.SetMaxIdleConns(-1)
	r := &run{site: site, admin: admin, load: load, start: time.Now()}
	for _, c := range contenders {
		if c.name == "units" && site.firstLook != "" {
			continue // the embedded server keeps no promise on which units could build
		}
		l, err := openLane(ctx, c, site, r.start)
		if err != nil {
			r.close()
			return nil, err
		}
		r.lanes = append(r.lanes, l)
		if err := l.tables.create(ctx, admin); err != nil {
			r.close()
			return nil, fmt.Errorf("making the tables: %w", err)
		}
		if l.pool.units == nil {
			continue
		}
		if err := l.pool.units.CreateCommitTable(ctx); err != nil {
			r.close()
			return nil, err
		}
	}
	return r, nil
}

// close drops the tables and closes the lanes.
func (r *run) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, l := range r.lanes {
		l.close()
		l.tables.drop(ctx, r.admin) // what cannot be dropped now is dropped by the next run
	}
	r.admin.Close()
}

// play plays the phases and audits what the jobs left.
func (r *run) play(ctx context.Context, phases []phase) ([]mark, error) {
	rng := rand.New(rand.NewPCG(r.load.seed, 0))
	for i, p := range phases {
		r.enter(fmt.Sprintf("%d/%d %s", i+1, len(phases), p.name))
		jobs := makeJobs(rng, 1+i*r.load.jobs, r.load.jobs)
		m := mark{phase: i, begin: r.now()}
		if err := r.playPhase(ctx, p, jobs, &m); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		m.end = r.now()
		r.marks = append(r.marks, m)
	}
	return r.marks, nil
}

func (r *run) now() time.Duration { return time.Since(r.start) }

func (r *run) enter(phase string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase = phase
}

// playPhase idles, strikes and brings the jobs, and returns when all lanes have
// done them.
func (r *run) playPhase(ctx context.Context, p phase, jobs []job, m *mark) error {
	if p.heal != nil {
		defer func() {
			p.heal(r)
			m.to = r.now()
		}()
	}
	strike := func() error {
		if p.strike == nil {
			return nil
		}
		m.from = r.now()
		err := p.strike(ctx, r)
		m.to = r.now()
		return err
	}
	if err := wait(ctx, p.idle/2); err != nil {
		return err
	}
	if !p.atWork {
		if err := strike(); err != nil {
			return err
		}
	}
	if err := wait(ctx, p.idle-p.idle/2); err != nil {
		return err
	}
	struck := make(chan error, 1)
	go func() {
		if !p.atWork {
			struck <- nil
			return
		}
		if err := wait(ctx, r.load.span/3); err != nil {
			struck <- err
			return
		}
		struck <- strike()
	}()
	if err := r.burst(ctx, jobs, m.phase); err != nil {
		return err
	}
	return <-struck
}

// burst brings the jobs to every lane: as many at once as there are workers,
// so that all of a pool's connections are wanted, the others spread evenly. It
// returns when all are done.
func (r *run) burst(ctx context.Context, jobs []job, phase int) error {
	pause := r.load.span / time.Duration(max(1, len(jobs)-workers))
	for i, j := range jobs {
		if i >= workers {
			if err := wait(ctx, pause); err != nil {
				return err
			}
		}
		for _, l := range r.lanes {
			l.arrive(j, phase)
		}
	}
	done := make(chan struct{})
	go func() {
		for _, l := range r.lanes {
			l.working.Wait()
		}
		close(done)
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-done:
		return nil
	}
}

// audit holds what the jobs were told against the rows.
func (r *run) audit(ctx context.Context) ([]laneOutcome, error) {
	var lanes []laneOutcome
	for _, l := range r.lanes {
		a, err := auditLane(ctx, r.admin, l.tables, l.samples)
		if err != nil {
			return nil, fmt.Errorf("auditing %s: %w", l.name, err)
		}
		lanes = append(lanes, laneOutcome{l.contender, l.samples, a, l.proxy.Counts().Conns})
	}
	return lanes, nil
}

func wait(ctx context.Context, d time.Duration) error {
	clock.Wait(ctx, nil, d)
	return ctx.Err()
}
