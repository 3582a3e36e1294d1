// check.go holds what the units were told against what the tables say. It asks
// nobody: what it is given decides.

package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/clock"
)

// violation is a promise that was not kept.
type violation struct {
	Rule  string `json:"rule"`           // what should be
	Unit  int64  `json:"unit,omitempty"` // 0: of none in particular
	Text  string `json:"text"`           // what is
	Story string `json:"story,omitempty"`
}

// The promises about one unit.
const (
	ruleTwice      = "no unit is applied twice"
	ruleLost       = "what was reported to be applied is there"
	ruleFailedUnit = "what was reported not to be applied is not there"
	ruleStranger   = "no row is of a unit that was never begun"
	ruleUndone     = "an inner unit that failed leaves nothing"
	ruleInner      = "an inner unit is applied with the one around it"
	ruleAttempt    = "what is there is of the last attempt"
	ruleHook       = "AfterCommit functions run once after a commit, and never without one"
	ruleResolved   = "with a key an outcome is unknown only if the time to look it up was over"
	ruleGaveUp     = "a unit is run again if its cause may pass, until its attempts or its time are used up"
	ruleSeen       = "a unit sees its own transaction and no other"
)

// The promises about all of them together.
const (
	ruleMoney   = "the accounts hold what the ledger says"
	ruleCounter = "the counter is the number of units in the ledger"
	ruleSame    = "all servers have the same rows"
)

// judge holds all deliveries against the books.
func judge(all []*delivery, b *books) (vs []violation) {
	of, rows := byUnit(all), rowsByUnit(b.rows)
	for unit := range rows {
		if of[unit] == nil {
			vs = append(vs, violation{Rule: ruleStranger, Unit: unit, Text: fmt.Sprint(rows[unit])})
		}
	}
	for _, unit := range slices.Sorted(maps.Keys(of)) {
		if !slices.ContainsFunc(of[unit], (*delivery).runs) { // one that hangs has been told of
			vs = append(vs, judgeUnit(of[unit], rows[unit])...)
		}
	}
	return append(vs, judgeSums(b)...)
}

func byUnit(all []*delivery) map[int64][]*delivery {
	of := map[int64][]*delivery{}
	for _, d := range all {
		of[d.unit] = append(of[d.unit], d)
	}
	return of
}

func rowsByUnit(all []row) map[int64][]row {
	of := map[int64][]row{}
	for _, r := range all {
		of[r.unit] = append(of[r.unit], r)
	}
	return of
}

// judgeUnit holds the deliveries of one unit, all of which have ended, against
// its rows.
func judgeUnit(ds []*delivery, rows []row) (vs []violation) {
	find := func(rule, format string, args ...any) {
		vs = append(vs, violation{Rule: rule, Unit: ds[0].unit, Text: fmt.Sprintf(format, args...)})
	}
	var parts [3][]row
	for _, r := range rows {
		parts[r.part] = append(parts[r.part], r)
	}
	own := parts[partUnit]
	if n := len(own); n > 1 {
		find(ruleTwice, "%d times: %+v", n, own)
	}
	if n := len(parts[partUndone]); n > 0 {
		find(ruleUndone, "%d rows: %+v", n, parts[partUndone])
	}
	if want, n := innersOf(ds, own), len(parts[partInner]); n != want {
		find(ruleInner, "%d rows of inner units where there should be %d: %+v", n, want, parts[partInner])
	}
	for _, d := range ds {
		for _, w := range d.wrong {
			find(ruleSeen, "%s", w)
		}
		if d.err == nil && d.writes() && len(own) == 0 {
			find(ruleLost, "delivery %d was reported to be applied; there is no row", d.delivery)
		}
		if errors.Is(d.err, livepool.ErrCommitUnknown) && d.mode.keyed() && d.ends == 0 && d.ended-d.started < resolvable {
			find(ruleResolved, "delivery %d, after %s: %v", d.delivery, d.ended-d.started, d.err)
		}
	}
	for _, d := range ds {
		if d.gaveUpEarly() {
			find(ruleGaveUp, "delivery %d, after %s: %v", d.delivery, d.ended-d.started, d.err)
		}
	}
	for _, r := range own {
		d := deliveryOf(ds, r)
		switch {
		case d == nil || !d.writes():
			find(ruleStranger, "%+v", r)
		case d.err != nil && !errors.Is(d.err, livepool.ErrCommitUnknown):
			find(ruleFailedUnit, "delivery %d, attempt %d, is in the ledger; it was reported as %v", d.delivery, r.attempt, d.err)
		case r.attempt != d.lastAttempt() && !d.mayBeOvertaken(r.attempt):
			find(ruleAttempt, "attempt %d of delivery %d is in the ledger; the last was attempt %d", r.attempt, d.delivery, d.lastAttempt())
		}
	}
	for _, d := range ds {
		if text := d.judgeHooks(own); text != "" {
			find(ruleHook, "delivery %d: %s", d.delivery, text)
		}
	}
	return vs
}

// resolvable is how long a unit has at least to look up a lost COMMIT: the
// pool's MaxElapsed, less what a last wait and attempt may take.
const resolvable = 20 * time.Second

func deliveryOf(ds []*delivery, r row) *delivery {
	for _, d := range ds {
		if d.delivery == r.delivery {
			return d
		}
	}
	return nil
}

// gaveUpEarly: it ended with an error for which it should have been run again.
func (d *delivery) gaveUpEarly() bool {
	switch err := d.err; {
	case err == nil, d.plainSQL, d.fate != succeeds, d.ends > 0, d.hasty >= 0:
		return false // it had a reason of its own
	case errors.Is(err, livepool.ErrCommitUnknown), errors.Is(err, livepool.ErrPoolTimeout):
		return false
	case strings.Contains(err.Error(), "pool_max_attempts"), strings.Contains(err.Error(), "pool_max_elapsed"):
		return false
	case strings.Contains(err.Error(), lostTwice):
		return !d.lostTwiceInARow() // which two faults may do to a statement that is to blame for neither
	default:
		return livepool.Classify(err)&livepool.Retry != 0
	}
}

// lostTwice is how a unit says that a statement seems to end its connections.
const lostTwice = "lost twice in a row"

// lostTwiceInARow: its last two attempts met an error in the same step. Those of which nothing
// ran are no attempts of that step: their connection was dead before.
func (d *delivery) lostTwiceInARow() bool {
	var steps []string
	for _, a := range slices.Backward(d.attempts) {
		if len(a.notes) == 0 || len(steps) == 2 {
			break
		}
		step, text, _ := strings.Cut(a.notes[len(a.notes)-1], ":")
		if !strings.Contains(text, "was given up before the statement ran") {
			steps = append(steps, step)
		}
	}
	return len(steps) == 2 && steps[0] == steps[1]
}

// lastAttempt is the last one in which the function was run.
func (d *delivery) lastAttempt() int {
	if len(d.attempts) == 0 {
		return 0
	}
	return d.attempts[len(d.attempts)-1].number
}

// mayBeOvertaken: that attempt came to its end, and its COMMIT may have been on its
// way from one node to the others when a later attempt was begun on one of them.
// That one's key conflicts only later, so that nothing of it stays.
func (d *delivery) mayBeOvertaken(number int) bool {
	return d.onCluster && d.mode.keyed() && d.wasWhole(number)
}

func (d *delivery) wasWhole(number int) bool {
	return slices.ContainsFunc(d.attempts, func(a attempt) bool { return a.number == number && a.whole })
}

// innersOf is how many inner rows there should be beside the unit's own.
func innersOf(ds []*delivery, own []row) (n int) {
	for _, r := range own {
		if d := deliveryOf(ds, r); d != nil && d.has(stepInner) && !d.plainSQL {
			n++
		}
	}
	return n
}

// judgeHooks says what is wrong with the AfterCommit functions of a delivery.
func (d *delivery) judgeHooks(own []row) string {
	if d.plainSQL {
		return ""
	}
	applied := 0 // the attempt that is in the ledger, if it is this delivery's
	for _, r := range own {
		if r.delivery == d.delivery {
			applied = r.attempt
		}
	}
	switch {
	case d.err != nil && len(d.hooks) > 0:
		return fmt.Sprintf("it failed, and the functions of attempts %v have run", d.hooks)
	case d.err != nil:
		return ""
	case len(d.hooks) > 1:
		return fmt.Sprintf("the functions of attempts %v have run", d.hooks)
	case d.mode == readOnly && len(d.hooks) == 0:
		return "it succeeded, and no function has run"
	case applied != 0 && !slices.Equal(d.hooks, []int{applied}):
		return fmt.Sprintf("attempt %d is in the ledger, and the functions of attempts %v have run", applied, d.hooks)
	case d.writes() && applied == 0 && len(own) > 0 && len(d.hooks) > 0 && !d.mayHaveLostCommit(d.hooks[0]):
		return fmt.Sprintf("another delivery is in the ledger, and the functions of attempt %d have run, whose COMMIT cannot have been lost", d.hooks[0])
	}
	return ""
}

// mayHaveLostCommit: that attempt came to its end, so that COMMIT was sent, and
// another delivery of the same key may have been taken for it. That is a limit
// which the documentation tells.
func (d *delivery) mayHaveLostCommit(number int) bool { return d.of > 1 && d.wasWhole(number) }

// judgeSums holds accounts and counter against the ledger, and all the money
// against what there was.
func judgeSums(b *books) (vs []violation) {
	var balances [accounts]int64
	var counters [shards]int64
	for id := range balances {
		balances[id] = openingBalance
	}
	for _, r := range b.rows {
		balances[r.src] -= int64(r.amount)
		balances[r.dst] += int64(r.amount)
		if r.part == partUnit {
			counters[r.unit%shards]++
		}
	}
	sum := int64(0)
	var wrong []string
	for id, want := range balances {
		sum += b.balances[id]
		if got := b.balances[id]; got != want {
			wrong = append(wrong, fmt.Sprintf("account %d has %d, the ledger says %d", id, got, want))
		}
	}
	if sum != accounts*openingBalance {
		wrong = append(wrong, fmt.Sprintf("all accounts have %d, there were %d", sum, accounts*openingBalance))
	}
	if wrong != nil {
		vs = append(vs, violation{Rule: ruleMoney, Text: strings.Join(wrong, "; ")})
	}
	if b.counters != counters {
		vs = append(vs, violation{Rule: ruleCounter, Text: fmt.Sprintf("counted %v, the ledger has %v", b.counters, counters)})
	}
	return vs
}

// watch checks while the units run, cheaply: the money, and the units that have
// ended lately. It returns at the first violation, or when ctx ends.
func (r *run) watch(ctx context.Context) {
	checked := map[int64]bool{}
	for ctx.Err() == nil {
		clock.Wait(ctx, nil, time.Second)
		if vs := r.look(ctx, checked); vs != nil {
			r.violated(vs...)
			return
		}
	}
}

const lookAtOnce = 300

// look is one such check. A server that cannot be asked is asked next time.
func (r *run) look(ctx context.Context, checked map[int64]bool) (vs []violation) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	t := r.work.lane.tables
	ended := r.work.endedUnits(checked, lookAtOnce) // before it is decided who is asked
	witness := r.ground.witness()
	var sum int64
	// With a lock, for a snapshot of MariaDB is no proof: see body.same.
	if witness.admin.QueryRowContext(ctx, "SELECT SUM(balance) FROM "+t.account+" LOCK IN SHARE MODE").Scan(&sum) == nil && sum != accounts*openingBalance {
		vs = append(vs, violation{Rule: ruleMoney, Text: fmt.Sprintf("all accounts have %d, there were %d", sum, accounts*openingBalance)})
	}
	if len(ended) == 0 {
		return vs
	}
	ids := strings.Trim(strings.ReplaceAll(fmt.Sprint(slices.Sorted(maps.Keys(ended))), " ", ","), "[]")
	all, err := readRows(ctx, witness.admin, t, "WHERE unit IN ("+ids+")")
	if err != nil || r.ground.shape.is(pairs) && witness != r.ground.truth() { // a replica by now
		return vs
	}
	rows := rowsByUnit(all)
	for unit, ds := range ended {
		checked[unit] = true
		vs = append(vs, judgeUnit(ds, rows[unit])...)
	}
	return vs
}

// endedUnits returns some units that have not been checked, and all of whose
// deliveries have ended.
func (w *work) endedUnits(checked map[int64]bool, limit int) map[int64][]*delivery {
	ended := map[int64][]*delivery{}
	for unit, ds := range byUnit(w.recent(4 * limit)) {
		if len(ended) < limit && !checked[unit] && len(ds) == ds[0].of && !slices.ContainsFunc(ds, (*delivery).runs) {
			ended[unit] = ds
		}
	}
	return ended
}

// recent are the deliveries begun last.
func (r *roster) recent(n int) []*delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all[max(0, len(r.all)-n):])
}

func (d *delivery) runs() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended == 0
}
