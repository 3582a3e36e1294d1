// lists.go is the units that read and append to lists, whose history history.go
// checks.

package soak

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/clock"
)

const (
	listWorkers  = 4
	listsAtOnce  = 4   // among which the units of a time choose
	unitsOfATime = 300 // then come other lists, lest they grow long
	listCount    = 4000
)

// listStep is what a unit does with a list.
type listStep int

const (
	listRead    listStep = iota
	listLock             // a read that excludes others
	listAppend           // by the server
	listReplace          // by the unit: what it has read under a lock, and one more
	listUndone           // in a unit inside it that fails
)

var listStepNames = [...]string{"read", "lock", "append", "replace", "undone"}

func (s listStep) String() string { return listStepNames[s] }

// listUnit is one unit, as seen from outside the pool.
type listUnit struct {
	unit     int64
	mode     mode
	level    sql.IsolationLevel
	spelled  bool // its statements have no arguments
	steps    []listStep
	on       []int // the list of each step
	fails    bool
	careless bool
	ends     time.Duration // its context does, 0 for never
	think    time.Duration

	trials         []*trial // written by the unit's function, one attempt after the other
	wholes         []bool
	notes          []string
	err            error
	started, ended time.Duration
}

// planList is what a unit does.
func planList(seed uint64, unit int64) *listUnit {
	rng := rand.New(rand.NewPCG(seed^0x11575, uint64(unit)))
	u := &listUnit{
		unit: unit, mode: pick(rng, []mode{plain, once, verify}, 1, 1, 1),
		level:   pick(rng, []sql.IsolationLevel{sql.LevelDefault, sql.LevelRepeatableRead, sql.LevelReadCommitted, sql.LevelSerializable}, 35, 10, 20, 35),
		spelled: chance(rng, 0.5), fails: chance(rng, 0.06), careless: chance(rng, 0.08),
		think: time.Duration(rng.IntN(15)) * time.Millisecond,
	}
	first := int(unit/unitsOfATime) * listsAtOnce
	for range 1 + rng.IntN(4) {
		u.steps = append(u.steps, pick(rng, []listStep{listRead, listLock, listAppend, listReplace, listUndone}, 30, 20, 25, 20, 5))
		u.on = append(u.on, (first+rng.IntN(listsAtOnce))%listCount)
	}
	if chance(rng, 0.1) {
		u.ends = time.Duration(5+rng.IntN(400)) * time.Millisecond
	}
	return u
}

func (u *listUnit) name() string { return fmt.Sprint("list unit ", u.unit) }

func (u *listUnit) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %s:", u.name(), u.mode, u.level)
	for i, s := range u.steps {
		fmt.Fprintf(&b, " %s %d", s, u.on[i])
	}
	if u.careless {
		b.WriteString(", swallows errors")
	}
	return b.String()
}

// listWork is those who run them.
type listWork struct {
	run  *run
	pool *livepool.Pool
	t    tables
	next atomic.Int64
	elem atomic.Int64
	done sync.WaitGroup

	mu     sync.Mutex // guards what follows
	all    []*listUnit
	trunks map[int][]int64 // the longest that was read of each list, which all reads share
}

func newListWork(r *run, l *lane) *listWork {
	return &listWork{run: r, pool: r.pool, t: l.tables, trunks: map[int][]int64{}}
}

func (w *listWork) begin(ctx context.Context) {
	for range listWorkers {
		w.done.Go(func() {
			for ctx.Err() == nil {
				w.run.work.rest(ctx)
				u := planList(w.run.set.seed, w.next.Add(1))
				u.spelled = u.spelled || w.run.ground.shape.is(clusters) // see roster.plan
				w.mu.Lock()
				w.all = append(w.all, u)
				w.mu.Unlock()
				w.deliver(u)
				clock.Wait(ctx, nil, u.think)
			}
		})
	}
}

func (w *listWork) finish(patience time.Duration) []violation {
	return within(patience, "every list unit ends", func() error { w.done.Wait(); return nil })
}

func (w *listWork) deliver(u *listUnit) {
	ctx, cancel := context.WithCancel(context.Background())
	if u.ends > 0 {
		ctx, cancel = context.WithTimeout(ctx, u.ends)
	}
	defer cancel()
	options := []livepool.SessionOption{livepool.Name(u.name()), livepool.Isolation(u.level)}
	switch u.mode {
	case once:
		options = append(options, livepool.Once(u.name()))
	case verify:
		options = append(options, livepool.VerifyCommit())
	}
	u.started = w.run.now()
	u.err = w.pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error { return w.unit(ctx, s, u) }, options...)
	u.ended = w.run.now()
}

// unit is the function of u.
func (w *listWork) unit(ctx context.Context, s *livepool.Session, u *listUnit) error {
	t := &trial{unit: u.unit, number: s.Attempt()}
	u.trials, u.wholes = append(u.trials, t), append(u.wholes, false)
	for i, step := range u.steps {
		if err := w.do(ctx, s, u, t, step, u.on[i]); err != nil {
			u.notes = append(u.notes, fmt.Sprintf("attempt %d, %s %d: %v", t.number, step, u.on[i], err))
			if !u.careless {
				return err
			}
		}
	}
	u.wholes[len(u.wholes)-1] = true
	if u.fails {
		return errOwn
	}
	return nil
}

func (w *listWork) do(ctx context.Context, s *livepool.Session, u *listUnit, t *trial, step listStep, list int) error {
	switch step {
	case listRead:
		_, err := w.read(ctx, s, u, t, list, "", access{list: list, locking: u.level == sql.LevelSerializable, fixed: u.level != sql.LevelReadCommitted})
		return err
	case listLock:
		_, err := w.read(ctx, s, u, t, list, " FOR UPDATE", access{list: list, locking: true})
		return err
	case listAppend:
		return w.append(ctx, s, u, t, list, false)
	case listReplace:
		text, err := w.read(ctx, s, u, t, list, " FOR UPDATE", access{list: list, locking: true})
		if err != nil {
			return err
		}
		elem := w.elem.Add(1)
		return w.write(ctx, s, u, t, access{list: list, append: true, elem: elem}, "UPDATE "+w.t.list+" SET v = ? WHERE id = ?", fmt.Sprint(text, elem, ","), list)
	}
	err := w.pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		if err := w.append(ctx, s, u, t, list, true); err != nil {
			return err
		}
		return errUndone
	}, livepool.Name(u.name()+", undone"))
	if errors.Is(err, errUndone) {
		return nil
	}
	return err
}

func (w *listWork) append(ctx context.Context, s *livepool.Session, u *listUnit, t *trial, list int, undone bool) error {
	elem := w.elem.Add(1)
	return w.write(ctx, s, u, t, access{list: list, append: true, elem: elem, undone: undone},
		"UPDATE "+w.t.list+" SET v = CONCAT(v, ?) WHERE id = ?", fmt.Sprint(elem, ","), list)
}

// write notes the append before it is sent.
func (w *listWork) write(ctx context.Context, s *livepool.Session, u *listUnit, t *trial, a access, query, text string, list int) error {
	t.did = append(t.did, a)
	var err error
	if u.spelled {
		_, err = s.ExecContext(ctx, strings.Replace(spelled(strings.Replace(query, "?", "'@'", 1), []int{list}), "@", text, 1))
	} else {
		_, err = s.ExecContext(ctx, query, text, list)
	}
	t.did[len(t.did)-1].acked = err == nil
	return err
}

// read returns the text of a list, and notes what is in it.
func (w *listWork) read(ctx context.Context, s *livepool.Session, u *listUnit, t *trial, list int, lock string, a access) (text string, err error) {
	query, args := "SELECT v FROM "+w.t.list+" WHERE id = ?"+lock, []any{list}
	if u.spelled {
		query, args = spelled(query, []int{list}), nil
	}
	if err := s.QueryRowContext(ctx, query, args...).Scan(&text); err != nil {
		return "", err
	}
	elems, err := parseList(text)
	if err != nil {
		return "", err
	}
	n := len(elems)
	for n > 0 && slices.ContainsFunc(t.did, func(a access) bool { return a.append && !a.undone && a.elem == elems[n-1] }) {
		n--
	}
	a.base, a.own = w.shared(list, elems[:n:n]), elems[n:]
	t.did = append(t.did, a)
	return text, nil
}

func parseList(text string) (elems []int64, err error) {
	for elem := range strings.SplitSeq(strings.TrimSuffix(text, ","), ",") {
		if elem == "" {
			continue
		}
		n, err := strconv.ParseInt(elem, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("a list has %q: %w", elem, err)
		}
		elems = append(elems, n)
	}
	return elems, nil
}

// shared returns the same elements, in memory that all reads of the list share.
func (w *listWork) shared(list int, elems []int64) []int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	trunk := w.trunks[list]
	n := min(len(trunk), len(elems))
	if !slices.Equal(trunk[:n], elems[:n]) {
		return elems
	}
	if len(elems) > n {
		trunk = append(trunk, elems[n:]...)
		w.trunks[list] = trunk
	}
	return trunk[:len(elems):len(elems)]
}

// history is what the units were told, and what the lists are.
func (w *listWork) history(b *books) (*history, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	onCluster := w.run.ground.shape.is(clusters)
	h := &history{lists: map[int][]int64{}, oneServer: !onCluster}
	for list, text := range b.lists {
		elems, err := parseList(text)
		if err != nil {
			return nil, err
		}
		h.lists[list] = elems
	}
	for _, u := range w.all {
		killed := w.run.nem.killedServer(u.started, u.ended)
		for _, t := range u.told(onCluster) {
			t.killed = killed
			h.trials = append(h.trials, t)
		}
	}
	return h, nil
}

// told marks the attempts by what the unit was told. In a cluster an earlier one
// whose COMMIT was under way may have been in time: see mayBeOvertaken.
func (u *listUnit) told(onCluster bool) []*trial {
	last := len(u.trials) - 1
	for i, t := range u.trials {
		said := u.err == nil || errors.Is(u.err, livepool.ErrCommitUnknown)
		overtaken := onCluster && u.mode.keyed() && u.wholes[i]
		t.possible = said && (i == last || overtaken)
		t.must = u.err == nil && i == last
	}
	return u.trials
}

// judge checks the history, and adds to each violation what is known of its unit.
func (w *listWork) judge(b *books) ([]violation, tally, error) {
	h, err := w.history(b)
	if err != nil {
		return nil, tally{}, err
	}
	found, counts := h.check()
	of := map[int64]*listUnit{}
	for _, u := range w.all {
		of[u.unit] = u
	}
	for i, v := range found {
		if u := of[v.Unit]; u != nil {
			found[i].Story = w.run.storyOfList(u)
		}
	}
	return found, counts, nil
}

func (r *run) storyOfList(u *listUnit) string {
	return fmt.Sprintf("  %s\n    %s to %s: %v\n    %s\n%s", u, at(u.started), at(u.ended), u.err,
		strings.Join(append(slices.Clone(u.notes), "no other error"), "\n    "), r.faultsAround(u.started, u.ended))
}
