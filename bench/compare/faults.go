package compare

import (
	"context"
	"fmt"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/lab/server"
)

const (
	workers = 8
	pace    = 50 // ms from one job of a caller to its next
)

// jobs is the load under which faults strike.
func (s *stage) jobs(d time.Duration) order {
	return order{Kind: kindJob, Callers: workers, EveryMS: pace, Seconds: d.Seconds(), FirstID: 1, Deadline: s.scale.cap.Seconds()}
}

// under has all lanes carry out an order at the same time, and something happen meanwhile.
func under(ctx context.Context, lanes []*lane, o order, meanwhile func() error) error {
	happened := make(chan error, 1)
	go func() { happened <- meanwhile() }()
	each(lanes, func(l *lane) error {
		_, err := l.Do(ctx, o, l.tell)
		return err
	})
	return <-happened
}

func nothing() error { return nil }

// fill has the pools open their connections.
func fill(ctx context.Context, lanes []*lane) {
	each(lanes, func(l *lane) error {
		_, err := l.Do(ctx, order{Kind: kindQuery, Callers: workers, Seconds: 0.3, Deadline: 10}, func(answer) {})
		return err
	})
}

var outcomeColumns = []column{{Name: "jobs", note: true}, {Name: "failed"}, {Name: "lost"}, {Name: "twice"}, {Name: "failed, but there"}, {Name: "unknown"}, {Name: "hung"}}

const outcomesExplained = " Failed: told so, and not there. Lost: told ok, and not there. Twice: there more than once. Failed, but there: told that it failed. Unknown: told that nobody knows. Hung: told nothing."

// conclude closes the lanes and makes a table of what became of their jobs, with more cells
// for each.
func (s *stage) conclude(ctx context.Context, t table, lanes []*lane, more func(l *lane, ops []answer) []cell) (table, error) {
	closeLanes(lanes)
	clock.Wait(ctx, nil, 300*time.Millisecond) // the server rolls back what was open
	t.Columns = append(outcomeColumns[:len(outcomeColumns):len(outcomeColumns)], t.Columns...)
	t.What += outcomesExplained
	for _, l := range lanes {
		r := row{Contender: l.entry.name, Missing: l.missing, lane: l.entry}
		if l.missing == "" {
			rows, err := s.rows(ctx, l)
			if err != nil {
				return t, err
			}
			ops := l.told()
			v := judge(ops, rows)
			s.report.verdict(t.Title, l.entry, v)
			r.Cells = append([]cell{count(v.Jobs), count(v.Failed), count(v.Lost), count(v.Twice), count(v.Misreported + v.Stray), count(v.Unknown), count(v.Hung)}, more(l, ops)...)
		}
		t.Rows = append(t.Rows, r)
	}
	return t, nil
}

// idlePastWaitTimeout has the server close connections that the pools hold.
func idlePastWaitTimeout(ctx context.Context, s *stage) (_ []table, err error) {
	const waitTimeout, idle = 2, 3
	if err := s.server.SetGlobal("wait_timeout", waitTimeout); err != nil {
		return nil, err
	}
	defer s.server.SetGlobal("wait_timeout", 28800)
	lanes, err := s.open(ctx, false, workers)
	if err != nil {
		return nil, err
	}
	fill(ctx, lanes)
	clock.Wait(ctx, nil, idle*time.Second)
	o := s.jobs(time.Second)
	o.EveryMS = 80 // 100 jobs
	under(ctx, lanes, o, nothing)
	t, err := s.conclude(ctx, table{
		Title: "Idle for longer than wait_timeout",
		What:  fmt.Sprintf("wait_timeout is %d s; the pools are filled, idle for %d s, and get about 100 jobs.", waitTimeout, idle),
	}, lanes, func(*lane, []answer) []cell { return nil })
	t.charts = []int{1}
	return []table{t}, err
}

// outage is what a fault was, as the clock has it.
type outage struct{ strike, over, until time.Time }

var waits = []column{wait("first success"), wait("full rate")}

// waitsOf are the longest waits after the outages: for a first success, and for 90 % of the
// rate before.
func (s *stage) waitsOf(ops []answer, begun time.Time, outages ...outage) []cell {
	var first, whole time.Duration
	everFirst, everWhole := true, true
	for _, o := range outages {
		var seen []answer
		for _, op := range ops {
			if op.EndUS < o.until.UnixMicro() {
				seen = append(seen, op)
			}
		}
		d, ever := firstSuccess(seen, o.over)
		first, everFirst = max(first, d), everFirst && ever
		d, ever = recovery(seen, begun, outages[0].strike, o.over)
		whole, everWhole = max(whole, first, d), everWhole && ever
	}
	last := outages[len(outages)-1]
	within := last.until.Sub(last.over)
	return []cell{waited(first, everFirst, within), waited(whole, everWhole, within)}
}

// restarts kills the server under load, and starts it again.
func restarts(ctx context.Context, s *stage) ([]table, error) {
	lanes, err := s.open(ctx, true, workers)
	if err != nil {
		return nil, err
	}
	defer closeLanes(lanes)
	fill(ctx, lanes)
	const starting = 1500 * time.Millisecond
	begun := time.Now()
	var outages []outage
	err = under(ctx, lanes, s.jobs(s.scale.calm+time.Duration(s.scale.restarts)*(starting+s.scale.after)), func() error {
		clock.Wait(ctx, nil, s.scale.calm)
		for range s.scale.restarts {
			o := outage{strike: time.Now()}
			if err := s.server.Kill(); err != nil {
				return err
			}
			clock.Wait(ctx, nil, 300*time.Millisecond)
			if err := s.server.Start(); err != nil {
				return err
			}
			o.over = time.Now()
			clock.Wait(ctx, nil, s.scale.after)
			o.until = time.Now()
			outages = append(outages, o)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t, err := s.conclude(ctx, table{
		Title: fmt.Sprintf("The server is killed under load, %d times", s.scale.restarts), Columns: waits,
		What: fmt.Sprintf("%d callers, each with a job every %d ms. The waits count from when the server takes connections again, the longest of %d.", workers, pace, s.scale.restarts),
	}, lanes, func(_ *lane, ops []answer) []cell { return s.waitsOf(ops, begun, outages...) })
	t.charts = []int{1, 4, len(outcomeColumns) + 1}
	return []table{t}, err
}

// plannedSwitch has the primary become read-only, and new connections lead to the other
// server. Old connections stay open.
func plannedSwitch(ctx context.Context, s *stage) ([]table, error) {
	pair, err := server.StartPair(ctx, s.server.Kind(), serverOptions)
	if err != nil {
		return nil, err
	}
	defer pair.Close()
	before, err := newStage(s.run, pair.Primary())
	if err != nil {
		return nil, err
	}
	defer before.admin.Close()
	lanes, err := before.open(ctx, true, workers)
	if err != nil {
		return nil, err
	}
	defer closeLanes(lanes)
	fill(ctx, lanes)
	begun, o := time.Now(), outage{}
	watched := 3 * s.scale.after
	err = under(ctx, lanes, s.jobs(s.scale.calm+watched), func() error {
		clock.Wait(ctx, nil, s.scale.calm)
		o.strike = time.Now()
		if err := pair.Switch(ctx); err != nil {
			return err
		}
		for _, l := range lanes {
			l.proxy.SetUpstream(pair.Primary().Addr())
		}
		o.over, o.until = time.Now(), begun.Add(s.scale.calm+watched+s.scale.cap)
		return nil
	})
	if err != nil {
		return nil, err
	}
	o.until = begun.Add(s.scale.calm + watched)
	after, err := newStage(s.run, pair.Primary())
	if err != nil {
		return nil, err
	}
	defer after.admin.Close()
	t, err := after.conclude(ctx, table{
		Title: "A planned switch of primary and replica", Columns: waits,
		What: fmt.Sprintf("The primary becomes read-only, and new connections lead to the new one; old connections stay open. %d callers. The waits count from when the new one takes writes and connections lead there.", workers),
	}, lanes, func(_ *lane, ops []answer) []cell { return s.waitsOf(ops, begun, o) })
	t.charts = []int{1, len(outcomeColumns)}
	return []table{t}, err
}

// blackHole drops what is sent on the connections that there are, without a word. New ones
// work.
func blackHole(busy bool) func(context.Context, *stage) ([]table, error) {
	return func(ctx context.Context, s *stage) ([]table, error) {
		lanes, err := s.open(ctx, true, workers)
		if err != nil {
			return nil, err
		}
		defer closeLanes(lanes)
		fill(ctx, lanes)
		stall := func() time.Time {
			for _, l := range lanes {
				l.proxy.Stall()
			}
			return time.Now()
		}
		var o outage
		// The jobs go on for as long as a wait may last, lest one that has no end be taken
		// for one whose end nobody saw.
		begun, load := time.Now(), s.jobs(s.scale.cap)
		load.Deadline = s.scale.cap.Seconds() / 10
		if busy {
			load.Seconds += s.scale.calm.Seconds()
			under(ctx, lanes, load, func() error {
				clock.Wait(ctx, nil, s.scale.calm)
				o.strike = stall()
				return nil
			})
		} else {
			clock.Wait(ctx, nil, 1200*time.Millisecond) // longer than livepool trusts a connection without asking
			o.strike = stall()
			under(ctx, lanes, load, nothing)
		}
		return s.tellBlackHole(ctx, lanes, busy, begun, o)
	}
}

// tellBlackHole counts the waits from 50 ms after the strike, when nothing is on its way
// any more.
func (s *stage) tellBlackHole(ctx context.Context, lanes []*lane, busy bool, begun time.Time, o outage) ([]table, error) {
	o.over = o.strike.Add(50 * time.Millisecond)
	o.until = o.over.Add(s.scale.cap)
	t := table{
		Title: "Idle connections vanish without a word", Columns: waits[:1],
		What: fmt.Sprintf("The network drops what is sent on them and closes nothing; new connections work. %d callers go on for %s; what has no answer soon after that hangs.", workers, s.scale.cap),
	}
	if busy {
		t.Title, t.Columns = "Busy connections vanish without a word", waits
	}
	t, err := s.conclude(ctx, t, lanes, func(_ *lane, ops []answer) []cell { return s.waitsOf(ops, begun, o)[:len(t.Columns)] })
	t.charts = []int{1, 5, len(outcomeColumns)}
	return []table{t}, err
}
