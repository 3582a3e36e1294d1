// history.go checks isolation, after the idea of Elle (Kingsbury and Alvaro, 2020):
// units read lists and append elements that nobody else appends. A list tells in
// which order it was written, and what has been read of it at which moment; from
// that follows which unit came before which, and whether any order would do. It
// asks nobody: what it is given decides.

package soak

import (
	"fmt"
	"maps"
	"slices"
)

// What is promised about the lists, with the names that the literature has.
const (
	ruleListLost     = "an element whose append was acknowledged stays in its list (lost update)"
	ruleListTwice    = "no element is in its list twice, and no unit by two of its attempts (duplicate)"
	ruleListStranger = "no list has an element that nobody appended"
	ruleListUndone   = "nobody sees what was undone (aborted read, G1a)"
	ruleListHalf     = "nobody sees a part of what a unit appended (intermediate read, G1b)"
	ruleListOrder    = "all see the elements of a list in the same order (incompatible order)"
	ruleListOwn      = "a unit sees its own appends, and what it has locked does not change (internal)"
	ruleListDirty    = "no unit comes before one that came before it, by what it wrote and saw (G0, G1c)"
	ruleListCycle    = "units that lock what they read can be put into one order (G2)"
)

// access is one thing that an attempt did with a list: an append or a read.
type access struct {
	list   int
	append bool
	elem   int64 // that was appended
	acked  bool  // the append was acknowledged
	undone bool  // by the attempt itself, which went on

	base    []int64 // that was read: others' elements,
	own     []int64 // and the attempt's own behind them
	locking bool    // nobody may change the list before the attempt's end
	fixed   bool    // the read is of a snapshot that all plain reads of the attempt share
}

// trial is one attempt.
type trial struct {
	unit     int64
	number   int
	possible bool // what the unit was told allows that this attempt was applied
	must     bool // the unit was told nil, and this attempt is its last
	killed   bool // the server was killed while its unit ran, or just afterwards
	did      []access

	applied bool // found by the check
}

func (t *trial) String() string { return fmt.Sprintf("attempt %d of list unit %d", t.number, t.unit) }

// history is all that is known when all is over.
type history struct {
	trials    []*trial
	lists     map[int][]int64
	oneServer bool // a lock holds against everybody
}

// tally is how much was checked.
type tally struct {
	Units   int `json:"units"`
	Lists   int `json:"lists"`
	Reads   int `json:"reads"`
	Appends int `json:"appends"`
	Orders  int `json:"orders"` // pairs of units of which it is known which came first
}

// writing is an element's append.
type writing struct {
	by *trial
	*access
}

// historian checks a history.
type historian struct {
	*history
	writer map[int64]writing
	found  []violation
	tally  tally
	graph  order
}

// check returns what must not be, and how much it has looked at.
func (h *history) check() ([]violation, tally) {
	c := &historian{history: h, writer: map[int64]writing{}, graph: newOrder()}
	units := map[int64][]*trial{}
	for _, t := range h.trials {
		units[t.unit] = append(units[t.unit], t)
		for i := range t.did {
			if a := &t.did[i]; a.append {
				c.writer[a.elem] = writing{t, a}
				c.tally.Appends++
			}
		}
	}
	c.tally.Units, c.tally.Lists = len(units), len(h.lists)
	there := c.checkLists()
	for _, unit := range slices.Sorted(maps.Keys(units)) {
		c.checkUnit(units[unit], there)
	}
	for _, t := range h.trials {
		c.checkReads(t)
	}
	c.checkOrder()
	return c.found, c.tally
}

func (c *historian) find(rule string, unit int64, format string, args ...any) {
	c.found = append(c.found, violation{Rule: rule, Unit: unit, Text: fmt.Sprintf(format, args...)})
}

// checkLists looks at what the lists hold in the end, and returns all of it.
func (c *historian) checkLists() map[int64]bool {
	there := map[int64]bool{}
	for _, list := range slices.Sorted(maps.Keys(c.lists)) {
		for i, elem := range c.lists[list] {
			w, known := c.writer[elem]
			switch {
			case !known:
				c.find(ruleListStranger, 0, "element %d of list %d", elem, list)
				continue
			case there[elem]:
				c.find(ruleListTwice, w.by.unit, "element %d of %s is in list %d twice", elem, w.by, list)
			case w.undone:
				c.find(ruleListUndone, w.by.unit, "element %d, which %s undid, is in list %d", elem, w.by, list)
			}
			there[elem] = true
			w.by.applied = w.by.applied || !w.undone
			if i > 0 {
				if before, known := c.writer[c.lists[list][i-1]]; known {
					c.graph.add(before.by, w.by, wrote, list)
				}
			}
		}
	}
	return there
}

// checkUnit holds what a unit was told against what is there.
func (c *historian) checkUnit(trials []*trial, there map[int64]bool) {
	var applied []*trial
	for _, t := range trials {
		if t.applied {
			applied = append(applied, t)
		}
	}
	for _, t := range applied {
		if !t.possible {
			c.find(ruleListUndone, t.unit, "%s was reported not to be applied, and is there", t)
		}
	}
	if len(applied) > 1 {
		c.find(ruleListTwice, trials[0].unit, "%v are there", applied)
	}
	for _, t := range trials {
		if t.must && len(applied) == 0 {
			t.applied = true // or all that it should have left has been lost
		}
		if !t.applied {
			continue
		}
		for _, a := range t.did {
			if a.append && a.acked && !a.undone && !there[a.elem] {
				c.find(ruleListLost, t.unit, "element %d, which %s appended to list %d", a.elem, t, a.list)
			}
		}
	}
}

// checkReads looks at what an attempt has read, and when it was applied notes
// after and before whom it came.
func (c *historian) checkReads(t *trial) {
	mine := newMemory(c, t)
	for i := range t.did {
		a := &t.did[i]
		if a.append {
			mine.appended(a)
			continue
		}
		c.tally.Reads++
		if !c.fits(t, a) {
			continue
		}
		mine.compare(a)
		list := c.lists[a.list]
		if n := len(a.base); n > 0 {
			before := c.writer[list[n-1]].by
			if n < len(list) && before != nil && before != t && c.writer[list[n]].by == before {
				c.find(ruleListHalf, t.unit, "%s has read list %d up to element %d of %s, which appended %d behind it", t, a.list, list[n-1], before, list[n])
			}
			if t.applied && before != nil {
				c.graph.add(before, t, saw, a.list)
			}
		}
		if n := len(a.base); t.applied && n < len(list) {
			if after := c.writer[list[n]].by; after != nil {
				c.graph.add(t, after, sawNot, a.list)
			}
		}
	}
}

// fits says whether what was read is what the list was at some moment, and
// reports why not.
func (c *historian) fits(t *trial, a *access) bool {
	list := c.lists[a.list]
	n := len(a.base)
	if n <= len(list) && slices.Equal(a.base, list[:n]) {
		if behind := list[n:]; t.applied && (len(a.own) > len(behind) || !slices.Equal(a.own, behind[:len(a.own)])) {
			c.find(ruleListOrder, t.unit, "%s has read its own %v behind element %d of list %d, where in the end others are", t, a.own, n, a.list)
			return false
		}
		return true
	}
	seen := map[int64]bool{}
	for i, elem := range a.base {
		w, known := c.writer[elem]
		rule := ""
		switch {
		case seen[elem]:
			rule = ruleListTwice
		case !known:
			rule = ruleListStranger
		case !t.applied && t.killed && !w.undone && !w.by.applied:
			return false // InnoDB shows a commit before it is durable; the reader went down with it
		case w.undone || !w.by.applied:
			rule = ruleListUndone
		case !slices.Contains(list, elem):
			rule = ruleListLost
		case i >= len(list) || list[i] != elem:
			rule = ruleListOrder
		}
		if rule != "" {
			c.find(rule, t.unit, "%s has read element %d in place %d of list %d: %s", t, elem, i, a.list, around(list, i))
			return false
		}
		seen[elem] = true
	}
	return false
}

// around is what a list has near a place.
func around(list []int64, i int) string {
	from, to := max(0, min(i-2, len(list))), min(len(list), i+3)
	return fmt.Sprintf("in the end it has %v in places %d to %d of %d", list[from:to], from, to-1, len(list))
}

// memory is what an attempt knows of the lists by itself.
type memory struct {
	*historian
	t       *trial
	own     map[int][]int64
	clouded map[int]bool // an append was not acknowledged
	locked  map[int]int  // how long the list was before the attempt's own elements
	shot    map[int]int  // and how long in its snapshot
}

func newMemory(c *historian, t *trial) *memory {
	return &memory{c, t, map[int][]int64{}, map[int]bool{}, map[int]int{}, map[int]int{}}
}

func (m *memory) appended(a *access) {
	switch {
	case a.undone:
	case a.acked:
		m.own[a.list] = append(m.own[a.list], a.elem)
	default:
		m.clouded[a.list] = true
	}
}

// compare holds a read against what was read and appended before.
func (m *memory) compare(a *access) {
	if m.clouded[a.list] {
		return
	}
	if !slices.Equal(a.own, m.own[a.list]) {
		m.find(ruleListOwn, m.t.unit, "%s has appended %v to list %d, and sees %v", m.t, m.own[a.list], a.list, a.own)
		return
	}
	lengths := m.locked
	switch {
	case a.locking || len(a.own) > 0:
	case a.fixed:
		lengths = m.shot
	default:
		return
	}
	if before, ok := lengths[a.list]; ok && before != len(a.base) {
		m.find(ruleListOwn, m.t.unit, "%s has read %d elements of list %d, and then %d", m.t, before, a.list, len(a.base))
	}
	lengths[a.list] = len(a.base)
}
