package compare

import (
	"slices"
	"time"
)

// verdict is what became of the jobs of a lane. Each is one of OK, Failed, Lost, Misreported,
// Unknown and Hung; Twice counts those that are in the table more than once besides.
type verdict struct {
	Jobs        int `json:"jobs"`
	OK          int `json:"ok"`
	Failed      int `json:"failed"`      // told that it failed, and not there
	Lost        int `json:"lost"`        // told ok, and not there
	Twice       int `json:"twice"`       // there more than once
	Misreported int `json:"misreported"` // told that it failed, and there
	Unknown     int `json:"unknown"`     // told that nobody knows
	Hung        int `json:"hung"`        // told nothing until the deadline
	Stray       int `json:"stray"`       // there, and never told of
}

// judge holds what the jobs were told against the rows.
func judge(ops []answer, rows map[int64]int) (v verdict) {
	told := map[int64]bool{}
	for _, op := range ops {
		told[op.ID] = true
		there := rows[op.ID] > 0
		v.Jobs++
		switch {
		case op.Outcome == outcomeHung:
			v.Hung++
		case op.Outcome == outcomeOK && there:
			v.OK++
		case op.Outcome == outcomeOK:
			v.Lost++
		case op.Outcome == outcomeUnknown:
			v.Unknown++
		case there:
			v.Misreported++
		default:
			v.Failed++
		}
	}
	for id, n := range rows {
		if n > 1 {
			v.Twice++
		}
		if !told[id] {
			v.Stray++
		}
	}
	return v
}

// broken: what no unit of livepool's may do.
func (v verdict) broken() bool { return v.Lost > 0 || v.Twice > 0 }

// firstSuccess is how long after a moment the first job came back well.
func firstSuccess(ops []answer, from time.Time) (d time.Duration, ever bool) {
	for _, end := range successes(ops) {
		if !end.Before(from) {
			return end.Sub(from), true
		}
	}
	return 0, false
}

const (
	window   = 500 * time.Millisecond
	fullRate = 0.9
)

// recovery is how long after a moment the jobs came back well at 90 % of the rate that
// they had between two earlier moments.
func recovery(ops []answer, before, strike, from time.Time) (d time.Duration, ever bool) {
	ends := successes(ops)
	within := func(a, b time.Time) int {
		at := func(t time.Time) int { i, _ := slices.BinarySearchFunc(ends, t, time.Time.Compare); return i }
		return at(b) - at(a)
	}
	want := fullRate * float64(within(before, strike)) * float64(window) / float64(strike.Sub(before))
	if want <= 0 || len(ends) == 0 {
		return 0, false
	}
	last := ends[len(ends)-1].Add(-window)
	for at := from; !at.After(last); at = at.Add(window / 10) {
		if float64(within(at, at.Add(window))) >= want {
			return at.Sub(from), true
		}
	}
	return 0, false
}

// successes are when jobs came back well, in order.
func successes(ops []answer) (ends []time.Time) {
	for _, op := range ops {
		if op.Outcome == outcomeOK {
			ends = append(ends, time.UnixMicro(op.EndUS))
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	return ends
}

// slowest is the greatest latency of the jobs that came back well.
func slowest(ops []answer) (most time.Duration) {
	for _, op := range ops {
		if op.Outcome == outcomeOK {
			most = max(most, time.Duration(op.EndUS-op.StartUS)*time.Microsecond)
		}
	}
	return most
}
