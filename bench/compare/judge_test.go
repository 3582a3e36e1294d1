package compare

import (
	"testing"
	"time"
)

func TestJudgeHoldsRowsAgainstReports(t *testing.T) {
	for _, tt := range []struct {
		name    string
		outcome string // "": it was never told of
		rows    int
		want    verdict
	}{
		{"told ok and there", outcomeOK, 1, verdict{Jobs: 1, OK: 1}},
		{"told ok and not there", outcomeOK, 0, verdict{Jobs: 1, Lost: 1}},
		{"told ok and there twice", outcomeOK, 2, verdict{Jobs: 1, OK: 1, Twice: 1}},
		{"told that it failed, and so it is", outcomeFailed, 0, verdict{Jobs: 1, Failed: 1}},
		{"told that it failed, and there", outcomeFailed, 1, verdict{Jobs: 1, Misreported: 1}},
		{"told that it failed, and there twice", outcomeFailed, 3, verdict{Jobs: 1, Misreported: 1, Twice: 1}},
		{"told that nobody knows, and there", outcomeUnknown, 1, verdict{Jobs: 1, Unknown: 1}},
		{"told that nobody knows, and not there", outcomeUnknown, 0, verdict{Jobs: 1, Unknown: 1}},
		{"hung, and there", outcomeHung, 1, verdict{Jobs: 1, Hung: 1}},
		{"hung, and not there", outcomeHung, 0, verdict{Jobs: 1, Hung: 1}},
		{"never told of, and there", "", 1, verdict{Stray: 1}},
	} {
		var ops []answer
		if tt.outcome != "" {
			ops = append(ops, answer{ID: 7, Outcome: tt.outcome})
		}
		rows := map[int64]int{}
		if tt.rows > 0 {
			rows[7] = tt.rows
		}
		if got := judge(ops, rows); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestEachJobIsCountedOnce(t *testing.T) {
	var ops []answer
	rows := map[int64]int{}
	for id := range int64(100) {
		ops = append(ops, answer{ID: id, Outcome: []string{outcomeOK, outcomeFailed, outcomeUnknown, outcomeHung}[id%4]})
		if id%3 == 0 {
			rows[id] = 1
		}
	}
	v := judge(ops, rows)
	if sum := v.OK + v.Failed + v.Lost + v.Misreported + v.Unknown + v.Hung; v.Jobs != 100 || sum != 100 {
		t.Errorf("%d jobs, %d counted: %+v", v.Jobs, sum, v)
	}
}

// paced are jobs that come back well every so often between two moments.
func paced(from, to time.Time, every time.Duration) (ops []answer) {
	for at := from; at.Before(to); at = at.Add(every) {
		ops = append(ops, answer{StartUS: at.Add(-every).UnixMicro(), EndUS: at.UnixMicro(), Outcome: outcomeOK})
	}
	return ops
}

func TestWaitsAfterAnOutage(t *testing.T) {
	begun := time.Unix(1000, 0)
	at := func(s float64) time.Time { return begun.Add(seconds(s)) }
	ops := paced(begun, at(2), 10*time.Millisecond)
	ops = append(ops, answer{EndUS: at(2.1).UnixMicro(), Outcome: outcomeFailed})
	ops = append(ops, paced(at(3), at(4), 50*time.Millisecond)...)  // a fifth of the rate
	ops = append(ops, paced(at(4), at(10), 10*time.Millisecond)...) // all of it

	if d, ever := firstSuccess(ops, at(2.5)); !ever || d != 500*time.Millisecond {
		t.Errorf("first success after %s, %t", d, ever)
	}
	if d, ever := recovery(ops, begun, at(2), at(2.5)); !ever || d < 1400*time.Millisecond || d > 1600*time.Millisecond {
		t.Errorf("full rate after %s, %t", d, ever)
	}
	if d, ever := recovery(ops[:220], begun, at(2), at(2.5)); ever {
		t.Errorf("full rate after %s, of jobs that never had it again", d)
	}
	if _, ever := firstSuccess(ops, at(11)); ever {
		t.Error("a success after the last job")
	}
	if d := slowest(ops); d != 50*time.Millisecond {
		t.Errorf("the slowest took %s", d)
	}
}

func TestLongestWaitOfSeveralOutages(t *testing.T) {
	begun := time.Unix(1000, 0)
	at := func(s float64) time.Time { return begun.Add(seconds(s)) }
	ops := append(paced(begun, at(2), 10*time.Millisecond), paced(at(3), at(5), 10*time.Millisecond)...)
	ops = append(ops, paced(at(8), at(10), 10*time.Millisecond)...)
	s := &stage{run: &run{}}
	first, second := outage{at(2), at(2.5), at(5)}, outage{at(5), at(6), at(10)}
	if cells := s.waitsOf(ops, begun, first, second); *cells[0].Value != 2 || *cells[1].Value < 1.9 {
		t.Errorf("waits %+v, want those of the second outage", cells)
	}
	second.until = at(7)
	if cells := s.waitsOf(ops, begun, first, second); cells[0].Text != "no end within 1 s" {
		t.Errorf("waits %+v, though nothing came until the end", cells)
	}
}
