package storm

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/livepool/livepool"
)

const workers = 8

// A ledger is what the workers were told. Each piece of work has four values: those of a
// unit, of its transaction that is undone, of the one that is not, and of a plain insert.
type ledger struct {
	t    *testing.T
	all  []*opened
	mu   sync.Mutex
	told []entry
}

// entry is what one piece of work was told. Its values are at, at+1, at+2 and at+3.
type entry struct {
	mode        string
	at          int64
	unit, plain error
}

// lastValue is of all ledgers, because they share a table.
var lastValue atomic.Int64

func newLedger(t *testing.T, all []*opened) *ledger { return &ledger{t: t, all: all} }

// work does one piece of work, every fifth of which has its unit refused by its own
// function, and returns what the plain insert says. A unit has nothing to complain of.
func (l *ledger) work() error {
	at := lastValue.Add(4) + 1000
	ctx, o, n := l.t.Context(), l.all[int(at/4)%len(l.all)], at/4
	_, unit := o.unit(ctx, func(ctx context.Context, _ *livepool.Session, db DB) error {
		return firstOf(
			func() error { return db.Insert(ctx, newItem(at)) },
			func() error { return refused(ctx, db, func(db DB) error { return db.Insert(ctx, newItem(at+1)) }) },
			func() error {
				return db.Transaction(ctx, func(db DB) error { return db.Insert(ctx, newItem(at+2)) })
			},
			func() error { return mustHave(ctx, db, map[int64]int{at: 1, at + 1: 0, at + 2: 1}) },
			func() error {
				if n%5 == 0 {
					return errRefused
				}
				return nil
			})
	})
	plain := o.onPool.Insert(ctx, newItem(at+3))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, entry{o.name, at, unit, plain})
	return plain
}

// everybodyWorks has each worker, in each mode, do a piece of work at the same time. It
// returns how many plain inserts failed.
func (l *ledger) everybodyWorks() (failed int64) {
	var wg sync.WaitGroup
	var n atomic.Int64
	for range workers * len(l.all) {
		wg.Go(func() {
			if l.work() != nil {
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return n.Load()
}

// check holds the table against what was told.
func (l *ledger) check(rows map[int64]int) {
	l.t.Helper()
	failed, refusals := 0, 0
	for _, e := range l.told {
		applied := 1
		switch {
		case errors.Is(e.unit, errRefused):
			applied = 0
			refusals++
		case e.unit != nil:
			l.t.Errorf("%s: unit %d failed: %v", e.mode, e.at, e.unit)
			continue
		}
		if rows[e.at] != applied || rows[e.at+1] != 0 || rows[e.at+2] != applied {
			l.t.Errorf("%s: unit %d was told %v, and has %d rows, %d of what it undid, %d of its transaction",
				e.mode, e.at, e.unit, rows[e.at], rows[e.at+1], rows[e.at+2])
		}
		if e.plain != nil {
			failed++
			applied = 0
		} else {
			applied = 1
		}
		if n := rows[e.at+3]; n > 1 || n < applied {
			l.t.Errorf("%s: the insert %d was told %v, and has %d rows", e.mode, e.at+3, e.plain, n)
		}
	}
	l.t.Logf("%d units, of which %d refused by themselves; %d plain inserts, of which %d failed", len(l.told), refusals, len(l.told), failed)
	if len(l.told) == 0 || refusals == 0 {
		l.t.Error("too little was done to show anything")
	}
}
