package connector

import (
	"testing"
	"time"
)

// The pool is replaced once a demotion, and again, less and less often, where the
// address still leads to a server that takes no writes.
func TestDemotionIsHandledOnce(t *testing.T) {
	var d demotion
	for _, tt := range []struct {
		born, now  time.Duration // seconds
		ends       bool
		leave, all bool
	}{
		{born: 0, now: 100, leave: true, all: true},
		{born: 50, now: 100, leave: true}, // another one of before, which is replaced already
		{born: 101, now: 102},
		{born: 101, now: 109},
		{born: 109, now: 110, leave: true, all: true}, // it is time for another look
		{born: 111, now: 129},
		{born: 111, now: 131, leave: true, all: true},
		{born: 132, now: 170},
		{born: 132, now: 140, ends: true, leave: true, all: true}, // demoted, taken back, demoted
		{born: 141, now: 149},
		{born: 141, now: 1000, leave: true, all: true},
		{born: 1001, now: 1009},
		{born: 1001, now: 1011, leave: true, all: true},
	} {
		if tt.ends {
			d.clear()
		}
		if leave, all := d.record(tt.born*time.Second, tt.now*time.Second); leave != tt.leave || all != tt.all {
			t.Errorf("opened at %d, refused at %d: leave %v, all %v, want %v, %v", tt.born, tt.now, leave, all, tt.leave, tt.all)
		}
	}
}
