package connector

// The questions to hosts that are in use.

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
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
		{"it is demoted", true, true, true, 2}, // a new one confirms it
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

// movedAddress is an address that leads to another server from some time on; connections stay.
type movedAddress struct{ to atomic.Pointer[fakedb.Host] }

func (m *movedAddress) Driver() driver.Driver { return nil }
func (m *movedAddress) Connect(ctx context.Context) (driver.Conn, error) {
	return m.to.Load().Connect(ctx)
}

// Behind an address that has moved, old connections lead to the server from before: what that says
// goes for none of the new ones.
func TestAnswerOfTheServerFromBeforeIsNoDemotion(t *testing.T) {
	for _, tt := range []struct {
		name         string
		poolMoved    bool // the pool's connections are new, too
		before, here bool // read-only in the end
		demoted      bool
		retired      uint64
	}{
		{"the server from before is a replica now, and the pool is still there", false, true, false, false, 1},
		{"the server from before is a replica now", true, true, false, false, 0},
		{"the server that is used is demoted, and the one from before is not", true, false, true, true, 1},
		{"both are read-only", false, true, true, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				before, here, m := writable(), writable(), &movedAddress{}
				m.to.Store(before)
				cfg := defaults()
				cfg.MySQL = &mysql.Config{User: "app"}
				cfg.Target, cfg.AsksRole, cfg.Addrs = hosts.Primary, true, []string{"a:3306"}
				cfg.Wrap = func(driver.Connector) driver.Connector { return m }
				ctr, err := New(nil, cfg)
				if err != nil {
					t.Fatal(err)
				}
				serve(ctr)
				ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
				addThread(ctr, 0, 8)
				ctr.startAsking(ctr.hosts()[0])
				time.Sleep(10 * time.Second)
				m.to.Store(here)
				if tt.poolMoved {
					for _, c := range ctr.snapshot() {
						ctr.forget(c)
					}
					w := &proclist.Thread{Conn: wire.Wrap(addrConn{}), BornAt: ctr.clock.Now()}
					ctr.register(&conn{ctr: ctr}).currentThread.Store(w)
				}
				time.Sleep(10 * time.Second)
				before.ReadOnly.Store(tt.before)
				here.ReadOnly.Store(tt.here)
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if _, known := ctr.hostSet.Primary(); known == tt.demoted || ctr.hosts()[0].generation.Load() != tt.retired {
					t.Errorf("the primary is known: %v; retired %d times, want %d", known, ctr.hosts()[0].generation.Load(), tt.retired)
				}
				ctr.Close()
			})
		})
	}
}

// Servers with different roles behind one address, which answer in turn, are not retired each second.
func TestAddressWithServersOfDifferentRolesIsNotRetiredEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctr, all := openHosts(t, hosts.Primary, writable, down)
		n := 0
		all[0].OnRole = func(context.Context) error { n++; all[0].ReadOnly.Store(n%3 == 0); return nil }
		serve(ctr)
		ctr.hostSet.TakesWrites(0, -1, ctr.clock.Now(), ctr.clock.Now())
		addThread(ctr, 0, 8)
		ctr.startAsking(ctr.hosts()[0])
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := ctr.hosts()[0].generation.Load(); n == 0 || n > 11 || ctr.Outage.Outages.Load() > 0 {
			t.Errorf("in ten minutes retired %d times, with %d outages; want once a minute at most, and none", n, ctr.Outage.Outages.Load())
		}
		ctr.Close()
	})
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
		if n, want := all[0].Connects.Load(), int64(time.Hour/askSeldom); n < want || n > want+10 {
			t.Errorf("it was tried %d times in an hour, want %d", n, want)
		}
		isFull.Store(false)
		all[0].ReadOnly.Store(true)
		time.Sleep(2 * askSeldom)
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
