// cause.go asks of what has failed whether a fault is to blame.

package soak

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
)

const ruleWaits = "a unit waits for a server that is full or read-only, until its time is used up"

// aftermath is for how long a connection may be lost without its pool's having
// noticed.
const aftermath = 6 * time.Second

// lossy says whether a fault that loses connections or answers struck between
// two moments, or so shortly before that it may still be met.
func (n *nemesis) lossy(from, to time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		if e.lossy && e.from < to && e.to > from-aftermath {
			return true
		}
	}
	return false
}

// patience is for how long a unit waits at least, its MaxElapsed less what its
// last wait and attempt may take.
const patience = 20 * time.Second

// killedServer says whether the server was killed between two moments, or soon after them.
func (n *nemesis) killedServer(from, to time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.events, func(e event) bool {
		return e.deadly && e.from < to+time.Second && e.to > from
	})
}

// judgeCauses looks for units that failed, or whose outcome is unknown, without
// need.
func judgeCauses(all []*delivery, lossy func(from, to time.Duration) bool) (vs []violation) {
	for _, d := range all {
		if d.runs() || d.plainSQL || d.err == nil || d.ends > 0 || d.hasty >= 0 {
			continue
		}
		text := fmt.Sprintf("delivery %d, after %s: %v", d.delivery, d.ended-d.started, d.err)
		switch {
		case errors.Is(d.err, livepool.ErrCommitUnknown) && !lossy(d.started, d.ended):
			vs = append(vs, violation{Rule: ruleCause, Unit: d.unit, Text: text})
		case d.fate == succeeds && refused(d.err) && d.ended-d.started < patience:
			vs = append(vs, violation{Rule: ruleWaits, Unit: d.unit, Text: text})
		}
	}
	return vs
}

// refused: the server does no work now, or none for more connections.
func refused(err error) bool {
	var my *mysql.MySQLError
	if !errors.As(err, &my) {
		return false
	}
	switch my.Number {
	case 1040, 1203, 1290, 1836: // too many connections, of this user; read-only, twice
		return true
	}
	return false
}
