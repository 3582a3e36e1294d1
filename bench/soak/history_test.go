package soak

import (
	"slices"
	"testing"
	"time"
)

// tried is an attempt of a unit that was told nil.
func tried(unit int64, did ...access) *trial {
	return &trial{unit: unit, number: 1, possible: true, must: true, did: did}
}

// undone is one of a unit that was told of an error.
func undone(unit int64, did ...access) *trial { return &trial{unit: unit, number: 1, did: did} }

// unclear is one of a unit that was told that nothing is known.
func unclear(unit int64, did ...access) *trial {
	return &trial{unit: unit, number: 1, possible: true, did: did}
}

func appended(list int, elem int64) access {
	return access{list: list, append: true, elem: elem, acked: true}
}

func read(list int, base ...int64) access { return access{list: list, base: base} }

func locked(list int, base ...int64) access { return access{list: list, base: base, locking: true} }

func snapshot(list int, base ...int64) access { return access{list: list, base: base, fixed: true} }

// mine is a read of others' elements, and of one of its own.
func mine(list int, own int64, base ...int64) access {
	return access{list: list, base: base, own: []int64{own}, locking: true}
}

type lists = map[int][]int64

func TestHistoryFindsWhatIsPlanted(t *testing.T) {
	rolledBack := appended(1, 3)
	rolledBack.undone = true
	unacked := appended(1, 3)
	unacked.acked = false
	again := func() *trial {
		t := tried(1, appended(1, 2))
		t.number = 2
		return t
	}
	for _, tt := range []struct {
		name   string
		trials []*trial
		lists  lists
		want   []string
	}{
		{"all is well", []*trial{tried(1, locked(1), appended(1, 1), mine(1, 1)), tried(2, read(1, 1), appended(1, 2), appended(2, 9)), tried(3, snapshot(1, 1, 2), snapshot(2, 9), snapshot(1, 1, 2))},
			lists{1: {1, 2}, 2: {9}}, nil},
		{"two statements of one unit see different things, without a lock", []*trial{tried(1, appended(1, 1)), tried(2, read(1), read(1, 1))}, lists{1: {1}}, nil},
		{"unknown, and applied", []*trial{unclear(1, appended(1, 1)), tried(2, read(1, 1))}, lists{1: {1}}, nil},
		{"unknown, and not applied", []*trial{unclear(1, appended(1, 1)), tried(2, read(1))}, lists{1: nil}, nil},
		{"undone, and nobody has seen it", []*trial{undone(1, appended(1, 1)), tried(2, locked(1), appended(1, 2))}, lists{1: {2}}, nil},
		{"an append that was not acknowledged is not there", []*trial{tried(1, unacked, appended(1, 4))}, lists{1: {4}}, nil},
		{"it is there", []*trial{tried(1, unacked, appended(1, 4), locked(1))}, lists{1: {3, 4}}, nil},
		{"a part of it was undone by the unit itself", []*trial{tried(1, rolledBack, appended(1, 4), mine(1, 4))}, lists{1: {4}}, nil},
		{"write skew of units that lock nothing", []*trial{tried(1, snapshot(1), appended(2, 1)), tried(2, snapshot(2), appended(1, 2))}, lists{1: {2}, 2: {1}}, nil},

		{"lost update", []*trial{tried(1, locked(1), appended(1, 1)), tried(2, locked(1), appended(1, 2))}, lists{1: {2}}, []string{ruleListLost}},
		{"half of a unit is lost", []*trial{tried(1, appended(1, 1), appended(2, 2))}, lists{1: {1}, 2: nil}, []string{ruleListLost}},
		{"half of an unknown unit", []*trial{unclear(1, appended(1, 1), appended(2, 2))}, lists{1: nil, 2: {2}}, []string{ruleListLost}},
		{"read and then overwritten", []*trial{tried(1, appended(1, 1), appended(2, 7)), tried(2, read(1, 1)), tried(3, appended(1, 3))}, lists{1: {3}, 2: {7}},
			[]string{ruleListLost, ruleListLost}},
		{"an element twice", []*trial{tried(1, appended(1, 1))}, lists{1: {1, 1}}, []string{ruleListTwice}},
		{"an element read twice", []*trial{tried(1, appended(1, 1)), tried(2, read(1, 1, 1))}, lists{1: {1}}, []string{ruleListTwice}},
		{"two attempts", []*trial{unclear(1, appended(1, 1)), again()}, lists{1: {1, 2}}, []string{ruleListTwice}},
		{"an earlier attempt", []*trial{undone(1, appended(1, 1)), again()}, lists{1: {1}}, []string{ruleListUndone}},
		{"an element of nobody", nil, lists{1: {1}}, []string{ruleListStranger}},
		{"undone, and there", []*trial{undone(1, appended(1, 1))}, lists{1: {1}}, []string{ruleListUndone}},
		{"undone by the unit itself, and there", []*trial{tried(1, rolledBack)}, lists{1: {3}}, []string{ruleListUndone}},
		{"aborted read", []*trial{undone(1, appended(1, 1)), tried(2, read(1, 1))}, lists{1: nil}, []string{ruleListUndone}},
		{"read of a commit that went down with the server, by a unit that did, too", []*trial{unclear(1, appended(1, 1)), {unit: 2, number: 1, killed: true, did: []access{read(1, 1)}}}, lists{1: nil}, nil},
		{"the same, by a unit that was applied", []*trial{unclear(1, appended(1, 1)), {unit: 2, number: 1, possible: true, must: true, killed: true, did: []access{read(1, 1), appended(1, 2)}}}, lists{1: {2}}, []string{ruleListUndone}},
		{"aborted read by a unit that failed", []*trial{undone(1, appended(1, 1)), undone(2, read(1, 1))}, lists{1: nil}, []string{ruleListUndone}},
		{"intermediate read", []*trial{tried(1, appended(1, 1), appended(1, 2)), tried(2, read(1, 1))}, lists{1: {1, 2}}, []string{ruleListHalf}},
		{"another order", []*trial{tried(1, appended(1, 1)), tried(2, appended(1, 2)), tried(3, read(1, 2, 1))}, lists{1: {1, 2}}, []string{ruleListOrder}},
		{"somebody between lock and append", []*trial{tried(1, locked(1), appended(1, 1), mine(1, 1)), tried(2, appended(1, 2))}, lists{1: {2, 1}}, []string{ruleListOrder, ruleListCycle}},
		{"its own append is gone", []*trial{tried(1, appended(1, 1), locked(1))}, lists{1: {1}}, []string{ruleListOwn}},
		{"a locked list changes", []*trial{tried(1, locked(1), locked(1, 2)), tried(2, appended(1, 2))}, lists{1: {2}}, []string{ruleListOwn, ruleListCycle}},
		{"a snapshot changes", []*trial{tried(1, snapshot(1), snapshot(1, 2)), tried(2, appended(1, 2))}, lists{1: {2}}, []string{ruleListOwn}},
		{"dirty write (G0)", []*trial{tried(1, appended(1, 1), appended(2, 3)), tried(2, appended(1, 2), appended(2, 4))}, lists{1: {1, 2}, 2: {4, 3}}, []string{ruleListDirty}},
		{"circular information flow (G1c)", []*trial{tried(1, appended(1, 1), read(2, 2)), tried(2, appended(2, 2), read(1, 1))}, lists{1: {1}, 2: {2}}, []string{ruleListDirty}},
		{"write skew (G2)", []*trial{tried(1, locked(1), appended(2, 1)), tried(2, locked(2), appended(1, 2))}, lists{1: {2}, 2: {1}}, []string{ruleListCycle}},
		{"a skewed read (G-single) of a unit that locks", []*trial{tried(1, locked(1), locked(2, 2)), tried(2, appended(1, 1), appended(2, 2))}, lists{1: {1}, 2: {2}}, []string{ruleListCycle}},
	} {
		found, tally := (&history{trials: tt.trials, lists: tt.lists, oneServer: true}).check()
		var rules []string
		for _, v := range found {
			rules = append(rules, v.Rule)
		}
		if !slices.Equal(rules, tt.want) {
			t.Errorf("%s: found %q, want %q", tt.name, found, tt.want)
		}
		if tally.Lists != len(tt.lists) || len(tt.trials) > 0 && tally.Reads+tally.Appends == 0 {
			t.Errorf("%s: %+v", tt.name, tally)
		}
	}
}

// In a cluster a lock holds on one node only.
func TestHistoryOfAClusterAsksNoLocks(t *testing.T) {
	skew := []*trial{tried(1, locked(1), appended(2, 1)), tried(2, locked(2), appended(1, 2))}
	if found, _ := (&history{trials: skew, lists: lists{1: {2}, 2: {1}}}).check(); found != nil {
		t.Errorf("found %q", found)
	}
}

// A circle is told by its shortest way, and a long history is checked in no time.
func TestHistoryTellsOfACircleAmongMany(t *testing.T) {
	const units = 5_000
	h := &history{lists: lists{1: nil, 2: {units}}, oneServer: true}
	for unit := range int64(units) {
		h.lists[1] = append(h.lists[1], unit)
		h.trials = append(h.trials, tried(unit, locked(1, h.lists[1][:unit]...), appended(1, unit)))
	}
	h.trials = append(h.trials, tried(units, appended(2, units), locked(1, h.lists[1][:8]...)))
	h.trials[7].did = append(h.trials[7].did, locked(2, units))
	began := time.Now()
	found, tally := h.check()
	if len(found) != 1 || found[0].Rule != ruleListDirty || tally.Units != units+1 {
		t.Fatalf("%.300q, %+v", found, tally)
	}
	if want := "attempt 1 of list unit 7, which was seen by (list 1) attempt 1 of list unit 5000, which was seen by (list 2) attempt 1 of list unit 7"; found[0].Text != want {
		t.Errorf("told as %q, want %q", found[0].Text, want)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
}
