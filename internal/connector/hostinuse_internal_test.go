package connector

// The questions to hosts that are in use.

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/hosts"
)

// A primary that was demoted is noticed while nobody writes, and one that stays what it is costs
// one connection. A host that the pool does not use is not asked.
func TestPrimaryInUseIsAskedForItsRole(t *testing.T) {
	for _, tt := range []struct {
		name     string
		inUse    bool
		demoted  bool
		noticed  bool
		connects int64 // to ask
	}{
		{"it stays", true, false, false, 1},
		{"it is demoted", true, true, true, 1},
		{"it is demoted, and not in use", false, true, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openHosts(t, hosts.Primary, writable, readOnly)
				serve(ctr)
				ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
				if tt.inUse {
					addThread(ctr, 0, 8)
				}
				ctr.startAsking(ctr.hosts()[0])
				ctr.startAsking(ctr.hosts()[0]) // once is enough
				time.Sleep(time.Minute)
				all[0].ReadOnly.Store(tt.demoted)
				time.Sleep(2 * askEvery)
				synctest.Wait()
				_, isKnown := ctr.hostSet.Primary()
				if isKnown == tt.noticed || ctr.Outage.IsDown() != tt.noticed || (ctr.hosts()[0].generation.Load() == 1) != tt.noticed {
					t.Errorf("the primary is known: %v; an outage: %v; its connections were retired %d times", isKnown, ctr.Outage.IsDown(), ctr.hosts()[0].generation.Load())
				}
				if n := all[0].Connects.Load(); n != tt.connects {
					t.Errorf("%d connections were opened to ask, want %d", n, tt.connects)
				}
				ctr.Close()
			})
		})
	}
}

// A host that takes no connection for the questions is not tried each second.
func TestHostThatCannotBeAskedIsTriedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, all := openHosts(t, hosts.Primary, writable, readOnly)
		serve(ctr)
		ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
		addThread(ctr, 0, 8)
		var isFull atomic.Bool
		isFull.Store(true)
		all[0].OnConnect = func(context.Context, int64) error {
			if isFull.Load() {
				return errors.New("too many connections")
			}
			return nil
		}
		ctr.startAsking(ctr.hosts()[0])
		time.Sleep(time.Hour)
		if n := all[0].Connects.Load(); n < 60 || n > 70 {
			t.Errorf("it was tried %d times in an hour, want once a minute in the end", n)
		}
		isFull.Store(false)
		all[0].ReadOnly.Store(true)
		time.Sleep(watchLongest + time.Second)
		synctest.Wait()
		if _, isKnown := ctr.hostSet.Primary(); isKnown {
			t.Error("the demotion was not noticed")
		}
		ctr.Close()
	})
}

// A user whom read_only does not stop is told of once; where there is nothing to be demoted, as
// in a cluster, not at all.
func TestUserWhomReadOnlyDoesNotStopIsToldOfOnce(t *testing.T) {
	for _, tt := range []struct {
		name       string
		privileged bool
		inCluster  bool
		lines      int
	}{
		{"an ordinary user", false, false, 0},
		{"a privileged one", true, false, 1},
		{"a privileged one of a cluster", true, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctr, all := openHosts(t, hosts.Primary, writable, writable)
				log := serve(ctr)
				ctr.InCluster.Store(tt.inCluster)
				for i, h := range all {
					h.OnQuery = func(query string) ([]string, error) {
						if tt.privileged && query == bypassQuery {
							return []string{"READ_ONLY ADMIN"}, nil
						}
						return nil, errors.New("no rows")
					}
					addThread(ctr, i, 8)
					ctr.startAsking(ctr.hosts()[i])
					ctr.hostSet.TakesWrites(i, i-1, ctr.clock.Now(), ctr.clock.Now())
					time.Sleep(10 * askEvery)
				}
				synctest.Wait()
				if n := strings.Count(log.String(), "READ_ONLY ADMIN"); n != tt.lines {
					t.Errorf("%d lines, want %d:\n%s", n, tt.lines, log)
				}
				ctr.Close()
			})
		})
	}
}
