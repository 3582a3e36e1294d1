package connector_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// The connection by which the server is found to be back is not thrown away: a
// unit that waits alone uses it, and no other one is opened.
func TestOutageEndsWithTheProbersOwnConnection(t *testing.T) {
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				a.setFailure(dialRefused)
				p := labtest.OpenFake(t, &a.DB, limit.set)
				wait := labtest.StartUnits(t.Context(), 1, p, labtest.Work)
				time.Sleep(time.Second)
				a.setFailure(nil)
				labtest.CheckNoErrors(t, wait())
				if n := len(a.Conns()); n != 1 {
					t.Errorf("%d connections were opened for one unit, want 1", n)
				}
				fakedb.ServedBy(t, p.DB)
				if n := len(a.Conns()); n != 1 {
					t.Errorf("%d connections after the next statement, want the same one", n)
				}
			})
		})
	}
}

// A server that accepts and says nothing is asked again before the attempts
// before have run out, but by a few at a time only.
func TestOutageInSilenceAFewAttemptsAtATime(t *testing.T) {
	for _, timeout := range []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second, time.Minute} {
		t.Run(fmt.Sprint("ConnectTimeout ", timeout), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				a.setFailure(dialSilent)
				p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { waitLong(c); c.ConnectTimeout = timeout })
				wait := labtest.StartUnits(t.Context(), 1000, p, labtest.Work)
				time.Sleep(5 * timeout)
				times, most := a.takeDials()
				a.setFailure(nil)
				back := time.Now()
				labtest.CheckNoErrors(t, wait())
				t.Logf("%d attempts in %s, at most %d at a time; all let in %s after the end", len(times), 5*timeout, most, time.Since(back))
				if most > 10 || len(times) > int(5*timeout/(20*time.Millisecond)) {
					t.Errorf("%d attempts in %s, %d at a time", len(times), 5*timeout, most)
				}
				// An attempt of which nothing is left on the server is made when the
				// silence has lasted half as long again, and within 15s.
				if took, want := time.Since(back), min(max(800*time.Millisecond, timeout/8+300*time.Millisecond, 5*timeout/2), 16*time.Second); took > want {
					t.Errorf("let in after %s, want %s", took, want)
				}
			})
		})
	}
}

// When the server is back there are no more handshakes at a time than
// ConnectLimit says or the pool can use, and the units go in about in the order in
// which they came.
func TestOutageHandshakesAtATime(t *testing.T) {
	for _, tt := range []struct {
		name           string
		size, overflow int
		limit          int
		least, most    int
		ordered        bool
	}{
		{"pool of 4 to 6", 4, 2, 16, 2, 6, true},
		{"pool of one", 1, 0, 16, 1, 1, true},
		{"pool of 40, limit of 3", 40, 0, 3, 3, 3, false},
		{"pool without limit", 4, -1, 16, 16, 16, false},
		{"pool that keeps none, without limit", 0, -1, 1, 1, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const units = 500
				a := newOutageDB()
				a.handshake = 50 * time.Millisecond
				a.setFailure(dialRefused)
				p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) {
					waitLong(c)
					c.PoolSize, c.MaxOverflow, c.ConnectLimit = tt.size, tt.overflow, tt.limit
				})
				var mu sync.Mutex
				var order []int
				var wg sync.WaitGroup
				for i := range units {
					wg.Go(func() {
						err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
							if err := labtest.Work(ctx, s); err != nil {
								return err
							}
							mu.Lock()
							order = append(order, i)
							mu.Unlock()
							time.Sleep(2 * a.handshake)
							return nil
						})
						if err != nil {
							t.Error(err)
						}
					})
					time.Sleep(time.Millisecond)
				}
				time.Sleep(time.Second)
				a.takeDials()
				a.setFailure(nil)
				wg.Wait()
				_, most := a.takeDials()
				// The prober's connection may have taken one place.
				if most > tt.most || most < tt.least-1 {
					t.Errorf("%d handshakes at a time, want %d to %d", most, tt.least, tt.most)
				}
				late := 0
				for at, i := range order {
					late = max(late, at-i)
				}
				t.Logf("%d connections for %d units, %d handshakes at a time; a unit was overtaken by at most %d", len(a.Conns()), units, most, late)
				if tt.ordered && late > 2*max(tt.most, 2) {
					t.Errorf("a unit was overtaken by %d others", late)
				}
			})
		})
	}
}

// Nobody waits, nobody dials: a dead server is left alone by a pool without
// waiting units, and again when the last has given up.
func TestOutageNobodyWaitsNobodyDials(t *testing.T) {
	for name, why := range map[string]func(context.Context) error{"refused": dialRefused, "silent": dialSilent} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { c.KeepAlive, c.OutageWait = time.Second, 0 })
				fakedb.Warm(t, p.DB, 10)
				a.Kill()
				a.setFailure(why)
				a.takeDials()
				time.Sleep(time.Minute) // in which the keep-alive finds them dead
				if times, _ := a.takeDials(); len(times) > 0 {
					t.Errorf("%d attempts by a pool that nobody uses", len(times))
				}

				if _, err := p.ExecContext(t.Context(), "DO 1"); err == nil {
					t.Fatal("a statement succeeded")
				}
				times, _ := a.takeDials()
				if len(times) == 0 || len(times) > 3 {
					t.Errorf("%d attempts for a statement", len(times))
				}
				time.Sleep(time.Minute)
				if times, _ := a.takeDials(); len(times) > 0 {
					t.Errorf("%d attempts by a pool in which no unit waits", len(times))
				}

				for range 2 {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					for _, err := range labtest.StartUnits(ctx, 100, p, labtest.Work)() {
						if !errors.Is(err, livepool.ErrSessionDone) {
							t.Fatal(err)
						}
					}
					cancel()
					if times, _ := a.takeDials(); len(times) < 1 {
						t.Errorf("%d attempts in 10s in which units waited", len(times))
					}
					time.Sleep(time.Second) // the last attempt may be under way
					a.takeDials()
					time.Sleep(time.Minute)
					if times, _ := a.takeDials(); len(times) > 0 {
						t.Errorf("%d attempts after the last unit has given up", len(times))
					}
				}

				a.setFailure(nil)
				start := time.Now()
				labtest.CheckNoErrors(t, labtest.StartUnits(t.Context(), 100, p, labtest.Work)())
				if took := time.Since(start); took > 100*time.Millisecond {
					t.Errorf("a unit that comes later found the server after %s", took)
				}
			})
		})
	}
}

// However many attempts get through together at the end of a silence, the pool
// does not go far beyond its limit, and what is too much is closed soon.
func TestOutageTheEndOfASilenceLeavesNoSurplus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newOutageDB()
		heal := make(chan struct{})
		a.setFailure(func(ctx context.Context) error {
			select {
			case <-heal:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.KeepAlive = 1, 0, 30*time.Second; waitLong(c) })
		wait := labtest.StartUnits(t.Context(), 5, p, func(ctx context.Context, s *livepool.Session) error {
			defer time.Sleep(100 * time.Millisecond)
			return labtest.Work(ctx, s)
		})
		time.Sleep(20 * time.Second)
		a.setFailure(nil)
		close(heal)
		time.Sleep(50 * time.Millisecond)
		most := a.OpenConns()
		labtest.CheckNoErrors(t, wait())
		for _, after := range []time.Duration{5, 10, 20, 40} {
			time.Sleep(after * time.Second)
			t.Logf("a pool of one had %d connections when the silence ended, and has %d after %s", most, a.OpenConns(), after*time.Second)
			if n := a.OpenConns(); n > 1 {
				t.Errorf("%d connections are left open by a pool of one", n)
			}
		}
		if most > 10 {
			t.Errorf("%d connections at the end of the silence", most)
		}
	})
}
