package livepool_test

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

// outageDB is a fake server that can be away. It counts who knocks.
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

// takeDials returns when somebody knocked since the last call, and the most that
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
					p := openFake(t, &a.DB, func(c *livepool.Config) { limit.set(c); waitLong(c) })
					wait := labtest.StartUnits(n, p, t.Context(), labtest.Work)
					time.Sleep(lasts)
					times, most := a.takeDials()
					a.setFailure(nil)
					labtest.NoErrors(t, wait())

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
				p := openFake(t, &a.DB, waitLong)
				fakedb.Warm(t, p.DB, 4)
				a.Kill()
				a.setFailure(dialRefused)
				time.Sleep(time.Second) // beyond the trust of the connections that there are
				wait := labtest.StartUnits(20, p, t.Context(), labtest.Work)
				time.Sleep(tt.lasts)
				a.setFailure(nil)
				back := time.Now()
				labtest.NoErrors(t, wait())
				if took := time.Since(back); took > tt.within {
					t.Errorf("after an outage of %s all were let in after %s, want %s", tt.lasts, took, tt.within)
				}
			})
		})
	}
}

// The connection by which the server is found to be back is not thrown away: a
// unit that waits alone uses it, and no other one is opened.
func TestOutageEndsWithTheProbersOwnConnection(t *testing.T) {
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				a.setFailure(dialRefused)
				p := openFake(t, &a.DB, limit.set)
				wait := labtest.StartUnits(1, p, t.Context(), labtest.Work)
				time.Sleep(time.Second)
				a.setFailure(nil)
				labtest.NoErrors(t, wait())
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

// Waiting for the server is no attempt of the unit, as long as nothing has
// happened in it.
func TestOutageCostsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newOutageDB()
		a.setFailure(dialRefused)
		p := openFake(t, &a.DB, nil)
		wait := labtest.StartUnits(50, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
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
		labtest.NoErrors(t, wait())
	})
}

// A server that flaps is waited for again each time, and still nobody but the
// prober dials.
func TestOutageAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newOutageDB()
		a.handshake = 5 * time.Millisecond
		a.setFailure(dialRefused)
		p := openFake(t, &a.DB, waitLong)
		wait := labtest.StartUnits(1000, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
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
		labtest.NoErrors(t, wait())
		// After each return as many as have a place may have been on their way.
		if limit := 10 * (500/20 + 2 + 20); away > limit {
			t.Errorf("%d attempts in 10 outages of 500ms, want at most %d", away, limit)
		}
	})
}

// A server that accepts and says nothing is asked again before the attempts
// before have run out, but by a few at a time only.
func TestOutageInSilenceAFewAttemptsAtATime(t *testing.T) {
	for _, timeout := range []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second, time.Minute} {
		t.Run(fmt.Sprint("ConnectTimeout ", timeout), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				a.setFailure(dialSilent)
				p := openFake(t, &a.DB, func(c *livepool.Config) { waitLong(c); c.ConnectTimeout = timeout })
				wait := labtest.StartUnits(1000, p, t.Context(), labtest.Work)
				time.Sleep(5 * timeout)
				times, most := a.takeDials()
				a.setFailure(nil)
				back := time.Now()
				labtest.NoErrors(t, wait())
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
				p := openFake(t, &a.DB, func(c *livepool.Config) {
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
				p := openFake(t, &a.DB, func(c *livepool.Config) { c.KeepAlive, c.OutageWait = time.Second, 0 })
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
					for _, err := range labtest.StartUnits(100, p, ctx, labtest.Work)() {
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
				labtest.NoErrors(t, labtest.StartUnits(100, p, t.Context(), labtest.Work)())
				if took := time.Since(start); took > 100*time.Millisecond {
					t.Errorf("a unit that comes later found the server after %s", took)
				}
			})
		})
	}
}

// Statements outside units wait for the server as units do, within OutageWait and
// their contexts, and dial no more than those; a ping says at once how things are.
func TestOutagePlainStatementsWait(t *testing.T) {
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				a.setFailure(dialRefused)
				p := openFake(t, &a.DB, func(c *livepool.Config) { limit.set(c); c.OutageWait = 5 * time.Second })
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
				p := openFake(t, &a.DB, func(c *livepool.Config) { limit.set(c); waitLong(c); c.OutageWait = 0 })
				wait := labtest.StartUnits(100, p, t.Context(), labtest.Work)
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
				labtest.NoErrors(t, wait())
				fakedb.ServedBy(t, p.DB)
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
		p := openFake(t, &a.DB, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.KeepAlive = 1, 0, 30*time.Second; waitLong(c) })
		wait := labtest.StartUnits(5, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
			defer time.Sleep(100 * time.Millisecond)
			return labtest.Work(ctx, s)
		})
		time.Sleep(20 * time.Second)
		a.setFailure(nil)
		close(heal)
		time.Sleep(50 * time.Millisecond)
		most := a.OpenConns()
		labtest.NoErrors(t, wait())
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
