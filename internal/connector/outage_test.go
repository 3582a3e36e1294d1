package connector_test

// A server that cannot be reached, and the sessions that wait for it: who
// dials, how often, how long they wait, and how they are let in again.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// How a server can be unreachable, as a connect sees it.
var (
	errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

	dialRefused = func(context.Context) error { return errRefused }
	dialSilent  = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
)

// outageDB is a fake server that can be away. It counts the dials.
type outageDB struct {
	fakedb.DB
	handshake time.Duration // how long one takes when the server is there

	mu         sync.Mutex
	fail       func(ctx context.Context) error // nil: it is there
	dials      []time.Time
	dialing    int // attempts under way
	maxDialing int
}

func newOutageDB() *outageDB {
	a := &outageDB{}
	a.OnConnect = func(ctx context.Context, _ int64) error {
		a.mu.Lock()
		a.dials = append(a.dials, time.Now())
		a.dialing++
		a.maxDialing = max(a.maxDialing, a.dialing)
		why := a.fail
		a.mu.Unlock()
		defer func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.dialing--
		}()
		if why != nil {
			return why(ctx)
		}
		if a.handshake == 0 {
			return nil
		}
		select {
		case <-time.After(a.handshake):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return a
}

// setFailure has the server go away, or come back if why is nil.
func (a *outageDB) setFailure(why func(ctx context.Context) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = why
}

// takeDials returns when somebody dialed since the last call, and the most that
// did at a time.
func (a *outageDB) takeDials() (times []time.Time, most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	times, most = a.dials, a.maxDialing
	a.dials, a.maxDialing = nil, a.dialing
	return times, most
}

// The pools of which a promise is to hold: sessions wait for a place where there
// is a limit, and all of them for the server where there is none.
var limits = []struct {
	name   string
	places int
	set    func(*livepool.Config)
}{
	{"pool of 10 to 20", 20, func(*livepool.Config) {}},
	{"pool of one", 1, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 }},
	{"pool without limit", math.MaxInt, func(c *livepool.Config) { c.MaxOverflow = -1 }},
}

// waitLong lets units wait for as long as a test's outage lasts.
func waitLong(c *livepool.Config) { c.PoolTimeout, c.MaxElapsed = time.Hour, time.Hour }

// Thousands of waiting units dial no more than one does: one attempt after the
// other, at short intervals that are not all the same.
func TestOutageThousandsOfUnitsDialLikeOne(t *testing.T) {
	const lasts = 10 * time.Second
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			dials := map[int]int{}
			for _, n := range []int{1, 2_000} {
				synctest.Test(t, func(t *testing.T) {
					a := newOutageDB()
					a.setFailure(dialRefused)
					p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { limit.set(c); waitLong(c) })
					wait := labtest.StartUnits(t.Context(), n, p, labtest.Work)
					time.Sleep(lasts)
					times, most := a.takeDials()
					a.setFailure(nil)
					labtest.CheckNoErrors(t, wait())

					// The outage is found by a unit's own attempt, or by two: as many
					// handshakes may be under way at first. Then the prober begins.
					found := min(n, 2, limit.places)
					dials[n] = len(times)
					if most > found {
						t.Errorf("%d units: %d attempts at the same time", n, most)
					}
					if len(times) < found+2 {
						t.Fatalf("%d units: %d attempts in %s", n, len(times), lasts)
					}
					shortest, longest := lasts, time.Duration(0)
					early := map[time.Duration]bool{}
					for i := found + 1; i < len(times); i++ {
						d := times[i].Sub(times[i-1])
						shortest, longest = min(shortest, d), max(longest, d)
						if i < 50 {
							early[d] = true
						}
					}
					t.Logf("%d units: %d attempts in %s, %s to %s apart", n, len(times), lasts, shortest, longest)
					if shortest < 20*time.Millisecond || longest > 350*time.Millisecond || len(early) < 20 {
						t.Errorf("%d units: attempts %s to %s apart", n, shortest, longest)
					}
					if st := p.Stats(); st.Outages != 1 || st.Retried != 0 || st.SessionsTimedOut != 0 {
						t.Errorf("%d units: Outages %d, want 1; Retried %d, SessionsTimedOut %d, want 0", n, st.Outages, st.Retried, st.SessionsTimedOut)
					}
				})
			}
			if one, many := dials[1], dials[2_000]; many > one+one/10+2 {
				t.Errorf("one unit had %d attempts made, two thousand %d", one, many)
			}
		})
	}
}

// Whoever has waited is let in at the first attempt after the server is back,
// which comes the sooner the shorter the outage was.
func TestOutageEndsForAllAtTheNextAttempt(t *testing.T) {
	for _, tt := range []struct{ lasts, within time.Duration }{
		{100 * time.Millisecond, 26 * time.Millisecond},
		{time.Second, 26 * time.Millisecond},
		{10 * time.Second, 85 * time.Millisecond},
		{time.Minute, 300 * time.Millisecond},
		{10 * time.Minute, 300 * time.Millisecond},
	} {
		t.Run(fmt.Sprint(tt.lasts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				p := labtest.OpenFake(t, &a.DB, waitLong)
				fakedb.Warm(t, p.DB, 4)
				a.Kill()
				a.setFailure(dialRefused)
				time.Sleep(time.Second) // beyond the trust of the connections that there are
				wait := labtest.StartUnits(t.Context(), 20, p, labtest.Work)
				time.Sleep(tt.lasts)
				a.setFailure(nil)
				back := time.Now()
				labtest.CheckNoErrors(t, wait())
				if took := time.Since(back); took > tt.within {
					t.Errorf("after an outage of %s all were let in after %s, want %s", tt.lasts, took, tt.within)
				}
			})
		})
	}
}

// Waiting for the server is no attempt of the unit, as long as nothing has
// happened in it.
func TestOutageCostsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newOutageDB()
		a.setFailure(dialRefused)
		p := labtest.OpenFake(t, &a.DB, nil)
		wait := labtest.StartUnits(t.Context(), 50, p, func(ctx context.Context, s *livepool.Session) error {
			if err := labtest.Work(ctx, s); err != nil {
				return err
			}
			if s.Attempt() != 1 {
				t.Errorf("attempt %d", s.Attempt())
			}
			return nil
		}, livepool.MaxAttempts(1))
		time.Sleep(20 * time.Second)
		a.setFailure(nil)
		labtest.CheckNoErrors(t, wait())
	})
}

// A server that flaps is waited for again each time, and still nobody but the
// prober dials.
func TestOutageAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newOutageDB()
		a.handshake = 5 * time.Millisecond
		a.setFailure(dialRefused)
		p := labtest.OpenFake(t, &a.DB, waitLong)
		wait := labtest.StartUnits(t.Context(), 1000, p, func(ctx context.Context, s *livepool.Session) error {
			time.Sleep(10 * time.Millisecond)
			return labtest.Work(ctx, s)
		})
		away := 0
		for range 10 {
			time.Sleep(500 * time.Millisecond)
			times, _ := a.takeDials()
			away += len(times)
			a.setFailure(nil)
			time.Sleep(24 * time.Millisecond)
			a.setFailure(dialRefused)
			a.Kill()
			a.takeDials()
		}
		a.setFailure(nil)
		labtest.CheckNoErrors(t, wait())
		// After each return as many as have a place may have been on their way.
		if limit := 10 * (500/20 + 2 + 20); away > limit {
			t.Errorf("%d attempts in 10 outages of 500ms, want at most %d", away, limit)
		}
	})
}

// Statements outside units wait for the server as units do, within OutageWait and
// their contexts, and dial no more than those; a ping says at once how things are.
func TestOutagePlainStatementsWait(t *testing.T) {
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				a.setFailure(dialRefused)
				p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { limit.set(c); c.OutageWait = 5 * time.Second })
				start := time.Now()
				_, err := p.ExecContext(t.Context(), "DO 1")
				if took := time.Since(start); took != 5*time.Second || !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "pool_outage_wait") {
					t.Errorf("after %s: %v, want the refusal after OutageWait", took, err)
				}
				for _, ended := range []error{context.Canceled, context.DeadlineExceeded} {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					if ended == context.Canceled {
						time.AfterFunc(time.Second/2, cancel)
					}
					if _, err := p.ExecContext(ctx, "DO 1"); err != ended {
						t.Errorf("got %v, want exactly %v", err, ended)
					}
					if _, err := p.BeginTx(ctx, nil); err != ended {
						t.Errorf("got %v, want exactly %v", err, ended)
					}
					cancel()
				}
				for range 5 {
					start = time.Now()
					err := p.PingContext(t.Context())
					if took := time.Since(start); took > probeWait || !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("a ping returned after %s: %v, want the refusal at once", took, err)
					}
					time.Sleep(700 * time.Millisecond)
				}

				a.takeDials()
				var wg sync.WaitGroup
				for range 50 {
					wg.Go(func() {
						if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
							t.Error(err)
						}
						tx, err := p.Begin()
						if err != nil {
							t.Error(err)
							return
						}
						tx.Rollback()
					})
				}
				time.Sleep(4 * time.Second)
				times, most := a.takeDials()
				if most > 1 || len(times) > 4*50 {
					t.Errorf("%d attempts in 4s, %d at a time", len(times), most)
				}
				a.setFailure(nil)
				wg.Wait()
				if err := p.PingContext(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// probeWait is more than what is between two attempts of the prober.
const probeWait = 310 * time.Millisecond

// Without OutageWait each statement has its answer as soon as anyone has it.
func TestOutagePlainStatementsThatDoNotWait(t *testing.T) {
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				a.setFailure(dialRefused)
				p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { limit.set(c); waitLong(c); c.OutageWait = 0 })
				wait := labtest.StartUnits(t.Context(), 100, p, labtest.Work)
				time.Sleep(2 * time.Minute) // attempts are at least 250ms apart by now
				for range 10 {
					start := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
					_, err := p.ExecContext(ctx, "DO 1")
					cancel()
					if took := time.Since(start); took > probeWait || !errors.Is(err, syscall.ECONNREFUSED) {
						t.Fatalf("after %s: %v, want the refusal at once", took, err)
					}
				}
				a.setFailure(nil)
				labtest.CheckNoErrors(t, wait())
				fakedb.ServedBy(t, p.DB)
			})
		})
	}
}
