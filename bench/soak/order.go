// order.go is the order of units that follows from what they wrote and saw, and
// finds where there is none.

package soak

import (
	"fmt"
	"slices"
	"strings"
)

// relation is why one unit comes before another.
type relation int

const (
	wrote  relation = 1 << iota // its element is the one before the other's
	saw                         // the other has seen its element
	sawNot                      // it has not seen the other's
)

func (r relation) String() string {
	return map[relation]string{wrote: "wrote before", saw: "was seen by", sawNot: "did not see"}[r]
}

// before is one such pair, from the side of the first.
type before struct {
	other *trial
	why   relation
	list  int
}

// order is a graph of attempts that were applied.
type order struct {
	next map[*trial][]before
	all  []*trial // in the order of their first mention
}

func newOrder() order { return order{next: map[*trial][]before{}} }

func (o *order) add(first, second *trial, why relation, list int) {
	if first == second {
		return
	}
	for _, t := range []*trial{first, second} {
		if _, known := o.next[t]; !known {
			o.next[t] = nil
			o.all = append(o.all, t)
		}
	}
	o.next[first] = append(o.next[first], before{second, why, list})
}

// checkOrder reports the circles: of all units by what they wrote and saw, and by
// what they did not see of those that lock what they read. Others may have read an
// older snapshot, and a lock of a cluster holds on its own node alone.
func (c *historian) checkOrder() {
	for _, pairs := range c.graph.next {
		c.tally.Orders += len(pairs)
	}
	everybody := func(*trial) bool { return true }
	c.reportCircles(ruleListDirty, wrote|saw, everybody)
	if c.oneServer && !slices.ContainsFunc(c.found, func(v violation) bool { return v.Rule == ruleListDirty }) {
		c.reportCircles(ruleListCycle, wrote|saw|sawNot, (*trial).locksAll)
	}
}

// locksAll: nobody changes what it has read before it ends.
func (t *trial) locksAll() bool {
	return !slices.ContainsFunc(t.did, func(a access) bool { return !a.append && !a.locking })
}

func (c *historian) reportCircles(rule string, why relation, who func(*trial) bool) {
	for _, group := range c.graph.circles(why, who) {
		c.find(rule, group[0].unit, "%s", c.graph.tell(group, why))
	}
}

// circles are the groups of attempts each of which comes before each other
// (Tarjan's strongly connected components of more than one).
func (o *order) circles(why relation, who func(*trial) bool) (groups [][]*trial) {
	index, low := map[*trial]int{}, map[*trial]int{}
	var stack []*trial
	on := map[*trial]bool{}
	var visit func(t *trial)
	visit = func(t *trial) {
		index[t] = len(index) + 1
		low[t] = index[t]
		stack, on[t] = append(stack, t), true
		for _, b := range o.next[t] {
			if b.why&why == 0 || !who(b.other) {
				continue
			}
			if index[b.other] == 0 {
				visit(b.other)
				low[t] = min(low[t], low[b.other])
			} else if on[b.other] {
				low[t] = min(low[t], index[b.other])
			}
		}
		if low[t] != index[t] {
			return
		}
		var group []*trial
		for last := (*trial)(nil); last != t; {
			last = stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			delete(on, last)
			group = append(group, last)
		}
		slices.Reverse(group)
		if len(group) > 1 {
			groups = append(groups, group)
		}
	}
	for _, t := range o.all {
		if index[t] == 0 && who(t) {
			visit(t)
		}
	}
	return groups
}

// tell is a shortest circle through the first of a group.
func (o *order) tell(group []*trial, why relation) string {
	type way struct {
		from *way
		by   before
	}
	queue := []*way{{by: before{other: group[0]}}}
	seen := map[*trial]bool{}
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		for _, b := range o.next[w.by.other] {
			if b.why&why == 0 || seen[b.other] || !slices.Contains(group, b.other) {
				continue
			}
			seen[b.other] = true
			step := &way{w, b}
			if b.other != group[0] {
				queue = append(queue, step)
				continue
			}
			var steps []string
			for ; step.from != nil; step = step.from {
				steps = append(steps, fmt.Sprintf("%s (list %d) %s", step.by.why, step.by.list, step.by.other))
			}
			slices.Reverse(steps)
			return group[0].String() + ", which " + strings.Join(steps, ", which ")
		}
	}
	return fmt.Sprint(group)
}
