package livepool_test

// A server that cannot be reached, and the sessions that wait for it: who
// dials, how often, how long they wait, and how they are let in again.

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/loopback"
	"github.com/livepool/livepool/internal/proxy"
	"github.com/livepool/livepool/internal/server"
	"github.com/livepool/livepool/internal/server/servertest"
)

// How a server can be unreachable, as a connect sees it.
var (
	errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

	refused = func(context.Context) error { return errRefused }
	silent  = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
)

var quiet = slog.New(slog.DiscardHandler)

// absent is a fake server that can be away. It counts who knocks.
type absent struct {
	fake
	handshake time.Duration // how long one takes when the server is there

	mu     sync.Mutex
	why    func(ctx context.Context) error // nil: it is there
	knocks []time.Time
	inside int // attempts under way
	most   int
}

func newAbsent() *absent {
	a := &absent{}
	a.onConnect = func(ctx context.Context, _ int64) error {
		a.mu.Lock()
		a.knocks = append(a.knocks, time.Now())
		a.inside++
		a.most = max(a.most, a.inside)
		why := a.why
		a.mu.Unlock()
		defer func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.inside--
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

// goes has the server go away, or come back if why is nil.
func (a *absent) goes(why func(ctx context.Context) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.why = why
}

// knocked returns when somebody knocked since the last call, and the most that
// did at a time.
func (a *absent) knocked() (times []time.Time, most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	times, most = a.knocks, a.most
	a.knocks, a.most = nil, a.inside
	return times, most
}

// work is a unit of one statement.
func work(ctx context.Context, s *livepool.Session) error {
	_, err := s.ExecContext(ctx, "DO 1")
	return err
}

// waitingUnits starts n units and returns a function that waits for them and returns
// their errors.
func waitingUnits(n int, p *livepool.Pool, ctx context.Context, fn fn, opts ...livepool.SessionOption) (wait func() []error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = p.WithSession(ctx, fn, opts...) })
	}
	return func() []error { wg.Wait(); return errs }
}

// noErrors tells how many there are, and the first.
func noErrors(t *testing.T, errs []error) {
	t.Helper()
	var first error
	n := 0
	for _, err := range errs {
		if err != nil {
			n++
			if first == nil {
				first = err
			}
		}
	}
	if n > 0 {
		t.Errorf("%d of %d units failed, the first with: %v", n, len(errs), first)
	}
}

// The pools of which a promise is to hold: sessions wait for a place where there
// is a limit, and all of them for the server where there is none.
var limits = []struct {
	name string
	set  func(*livepool.Config)
}{
	{"pool of 10 to 20", func(*livepool.Config) {}},
	{"pool of one", func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 }},
	{"pool without limit", func(c *livepool.Config) { c.MaxOverflow = -1 }},
}

// patient lets units wait for as long as a test's outage lasts.
func patient(c *livepool.Config) { c.PoolTimeout, c.MaxElapsed = time.Hour, time.Hour }

// Thousands of waiting units dial no more than one does: one attempt after the
// other, at short intervals that are not all the same.
func TestOutageThousandsOfUnitsDialLikeOne(t *testing.T) {
	const lasts = 10 * time.Second
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			dials := map[int]int{}
			for _, n := range []int{1, 2_000} {
				synctest.Test(t, func(t *testing.T) {
					a := newAbsent()
					a.goes(refused)
					p := openFake(t, &a.fake, func(c *livepool.Config) { limit.set(c); patient(c) })
					wait := waitingUnits(n, p, t.Context(), work)
					time.Sleep(lasts)
					times, most := a.knocked()
					a.goes(nil)
					noErrors(t, wait())

					dials[n] = len(times)
					if most != 1 {
						t.Errorf("%d units: %d attempts at the same time", n, most)
					}
					// The first is a unit's own, by which the outage is found.
					if len(times) < 3 {
						t.Fatalf("%d units: %d attempts in %s", n, len(times), lasts)
					}
					shortest, longest := lasts, time.Duration(0)
					early := map[time.Duration]bool{}
					for i := 2; i < len(times); i++ {
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
				a := newAbsent()
				p := openFake(t, &a.fake, patient)
				warm(t, p.DB, 4)
				a.kill()
				a.goes(refused)
				time.Sleep(time.Second) // beyond the trust of the connections that there are
				wait := waitingUnits(20, p, t.Context(), work)
				time.Sleep(tt.lasts)
				a.goes(nil)
				back := time.Now()
				noErrors(t, wait())
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
				a := newAbsent()
				a.goes(refused)
				p := openFake(t, &a.fake, limit.set)
				wait := waitingUnits(1, p, t.Context(), work)
				time.Sleep(time.Second)
				a.goes(nil)
				noErrors(t, wait())
				if n := len(a.all()); n != 1 {
					t.Errorf("%d connections were opened for one unit, want 1", n)
				}
				servedBy(t, p.DB)
				if n := len(a.all()); n != 1 {
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
		a := newAbsent()
		a.goes(refused)
		p := openFake(t, &a.fake, nil)
		wait := waitingUnits(50, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
			if err := work(ctx, s); err != nil {
				return err
			}
			if s.Attempt() != 1 {
				t.Errorf("attempt %d", s.Attempt())
			}
			return nil
		}, livepool.MaxAttempts(1))
		time.Sleep(20 * time.Second)
		a.goes(nil)
		noErrors(t, wait())
	})
}

// A server that flaps is waited for again each time, and still nobody but the
// prober dials.
func TestOutageAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.handshake = 5 * time.Millisecond
		a.goes(refused)
		p := openFake(t, &a.fake, patient)
		wait := waitingUnits(1000, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
			time.Sleep(10 * time.Millisecond)
			return work(ctx, s)
		})
		away := 0
		for range 10 {
			time.Sleep(500 * time.Millisecond)
			times, _ := a.knocked()
			away += len(times)
			a.goes(nil)
			time.Sleep(24 * time.Millisecond)
			a.goes(refused)
			a.kill()
			a.knocked()
		}
		a.goes(nil)
		noErrors(t, wait())
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
				a := newAbsent()
				a.goes(silent)
				p := openFake(t, &a.fake, func(c *livepool.Config) { patient(c); c.ConnectTimeout = timeout })
				wait := waitingUnits(1000, p, t.Context(), work)
				time.Sleep(5 * timeout)
				times, most := a.knocked()
				a.goes(nil)
				back := time.Now()
				noErrors(t, wait())
				t.Logf("%d attempts in %s, at most %d at a time; all let in %s after the end", len(times), 5*timeout, most, time.Since(back))
				if most > 10 || len(times) > int(5*timeout/(20*time.Millisecond)) {
					t.Errorf("%d attempts in %s, %d at a time", len(times), 5*timeout, most)
				}
				if took, want := time.Since(back), max(800*time.Millisecond, timeout/8+300*time.Millisecond); took > want {
					t.Errorf("let in after %s, want %s", took, want)
				}
			})
		})
	}
}

// Every wait is bounded: by the unit's own context, by PoolTimeout and by
// MaxElapsed, to the moment, and the error says which it was and what was the
// matter with the database. It holds for the units that have a place as for
// those that wait for one.
func TestOutageBoundsOfTheWait(t *testing.T) {
	for _, tt := range []struct {
		name        string
		patience    time.Duration // of the context
		poolTimeout time.Duration
		maxElapsed  time.Duration
		after       time.Duration
		is          []error
		isNot       []error
		says        []string
	}{
		{"its context", 3 * time.Second, time.Minute, time.Minute, 3 * time.Second,
			[]error{livepool.ErrSessionDone, context.DeadlineExceeded}, []error{livepool.ErrPoolTimeout}, nil},
		{"PoolTimeout", time.Hour, 2 * time.Second, time.Minute, 2 * time.Second,
			[]error{livepool.ErrPoolTimeout}, []error{context.DeadlineExceeded, livepool.ErrSessionDone},
			[]string{"pool_timeout", "waited 2s", "the database cannot be reached", "connection refused"}},
		{"PoolTimeout of nothing", time.Hour, 0, time.Minute, 0,
			[]error{livepool.ErrPoolTimeout}, []error{context.DeadlineExceeded},
			[]string{"the database cannot be reached", "connection refused"}},
		{"PoolTimeout without MaxElapsed", time.Hour, 40 * time.Second, 0, 40 * time.Second,
			[]error{livepool.ErrPoolTimeout}, nil, []string{"the database cannot be reached"}},
		{"MaxElapsed", time.Hour, time.Minute, 2 * time.Second, 2 * time.Second,
			nil, []error{livepool.ErrPoolTimeout, context.DeadlineExceeded},
			[]string{"pool_max_elapsed", "the server cannot be reached", "connection refused"}},
	} {
		for _, limit := range limits {
			t.Run(tt.name+", "+limit.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAbsent()
					a.goes(refused)
					p := openFake(t, &a.fake, func(c *livepool.Config) {
						limit.set(c)
						c.PoolTimeout, c.MaxElapsed = tt.poolTimeout, tt.maxElapsed
					})
					_, _ = p.ExecContext(t.Context(), "DO 1") // so that the outage is known
					start := time.Now()
					var wg sync.WaitGroup
					for i := range 50 {
						wg.Go(func() {
							ctx, cancel := context.WithTimeout(t.Context(), tt.patience)
							defer cancel()
							err := p.WithSession(ctx, work)
							if took := time.Since(start); took != tt.after {
								t.Errorf("unit %d returned after %s, want %s", i, took, tt.after)
							}
							for _, want := range tt.is {
								if !errors.Is(err, want) {
									t.Errorf("unit %d: %v, want %v", i, err, want)
								}
							}
							for _, not := range tt.isNot {
								if errors.Is(err, not) {
									t.Errorf("unit %d: %v, which is %v", i, err, not)
								}
							}
							for _, text := range tt.says {
								if err == nil || !strings.Contains(err.Error(), text) {
									t.Errorf("unit %d: %v, does not say %q", i, err, text)
								}
							}
						})
					}
					wg.Wait()
					if n := p.Stats().InUse; n != 0 {
						t.Errorf("%d connections in use after all have given up", n)
					}
				})
			})
		}
	}
}

// PoolTimeout holds for those, too, by whose attempts the silence is found.
func TestOutageBoundsOfTheWaitForTheFirst(t *testing.T) {
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAbsent()
				a.goes(silent)
				p := openFake(t, &a.fake, func(c *livepool.Config) { limit.set(c); c.PoolTimeout = time.Second })
				start := time.Now()
				for _, err := range waitingUnits(50, p, t.Context(), work)() {
					if !errors.Is(err, livepool.ErrPoolTimeout) {
						t.Errorf("%v, want ErrPoolTimeout", err)
					}
				}
				if took := time.Since(start); took > 1100*time.Millisecond {
					t.Errorf("with a PoolTimeout of 1s and a ConnectTimeout of 5s the last unit returned after %s", took)
				}
			})
		})
	}
}

// A statement's own context bounds its wait, if it is the unit's first.
func TestOutageBoundByTheFirstStatementsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.goes(refused)
		p := openFake(t, &a.fake, nil)
		start := time.Now()
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return work(ctx, s)
		})
		if took := time.Since(start); took != time.Second || err == nil {
			t.Errorf("after %s: %v, want 1s", took, err)
		}
	})
}

// A PoolTimeout too short to wait for the prober does not lock the units out
// for ever: once the server is back, one of the next gets through.
func TestOutageWithoutPatienceIsNotForEver(t *testing.T) {
	for _, patience := range []time.Duration{0, time.Nanosecond, time.Millisecond} {
		for _, limit := range limits {
			t.Run(fmt.Sprintf("PoolTimeout %s, %s", patience, limit.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAbsent()
					a.goes(refused)
					p := openFake(t, &a.fake, func(c *livepool.Config) { limit.set(c); c.PoolTimeout = patience })
					for range 10 {
						if err := p.WithSession(t.Context(), work); !errors.Is(err, livepool.ErrPoolTimeout) {
							t.Fatalf("%v, want ErrPoolTimeout", err)
						}
						time.Sleep(100 * time.Millisecond)
					}
					a.goes(nil)
					back := time.Now()
					for p.WithSession(t.Context(), work) != nil {
						if time.Since(back) > time.Minute {
							t.Fatal("the server has been back for a minute, and no unit gets through")
						}
						time.Sleep(100 * time.Millisecond)
					}
					if took := time.Since(back); took > 300*time.Millisecond {
						t.Errorf("the first unit got through %s after the server was back", took)
					}
				})
			})
		}
	}
}

// Where the number of connections has no limit, PoolTimeout bounds the wait for
// a turn to open one too.
func TestOutageTheWaitForAHandshakeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.handshake = time.Second
		a.goes(refused)
		p := openFake(t, &a.fake, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, -1, 5*time.Second })
		start := time.Now()
		wait := waitingUnits(60, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
			if err := work(ctx, s); err != nil {
				return err
			}
			time.Sleep(time.Minute) // so that no connection is given back meanwhile
			return nil
		})
		time.Sleep(time.Second)
		a.goes(nil)
		let := 0
		for _, err := range wait() {
			switch {
			case err == nil:
				let++
			case !errors.Is(err, livepool.ErrPoolTimeout):
				t.Errorf("%v, want ErrPoolTimeout", err)
			}
		}
		// The last turn may begin just before the time is up.
		if let > 7 {
			t.Errorf("with a handshake of 1s, one at a time, and a PoolTimeout of 5s %d units were let in; all was over after %s", let, time.Since(start))
		}
	})
}

// Close ends every wait at once, and leaves no goroutine behind (or the bubble
// would not end).
func TestOutageCloseEndsTheWait(t *testing.T) {
	for _, limit := range limits {
		for name, why := range map[string]func(context.Context) error{"refused": refused, "silent": silent} {
			t.Run(limit.name+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAbsent()
					a.goes(why)
					p := openFake(t, &a.fake, limit.set)
					wait := waitingUnits(100, p, t.Context(), work)
					time.Sleep(10 * time.Second)
					start := time.Now()
					if err := p.Close(); err != nil {
						t.Error(err)
					}
					closed := time.Since(start)
					for _, err := range wait() {
						if err == nil || errors.Is(err, livepool.ErrPoolTimeout) {
							t.Fatalf("%v, want the error of a pool that is closed", err)
						}
					}
					if took := time.Since(start); closed > 100*time.Millisecond || took > 500*time.Millisecond {
						t.Errorf("Close took %s, and the last unit returned %s after its beginning", closed, took)
					}
					a.knocked()
					time.Sleep(time.Minute)
					if times, _ := a.knocked(); len(times) > 0 {
						t.Errorf("%d attempts after Close", len(times))
					}
				})
			})
		}
	}
}

// When the server is back there are no more handshakes at a time than the pool
// can use, and the units go in about in the order in which they came.
func TestOutageHandshakesAtATime(t *testing.T) {
	for _, tt := range []struct {
		name           string
		size, overflow int
		most           int
		ordered        bool
	}{
		{"pool of 4 to 6", 4, 2, 6, true},
		{"pool of one", 1, 0, 1, true},
		{"pool without limit", 4, -1, 4, false},
		{"pool that keeps none, without limit", 0, -1, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const units = 500
				a := newAbsent()
				a.handshake = 50 * time.Millisecond
				a.goes(refused)
				p := openFake(t, &a.fake, func(c *livepool.Config) { patient(c); c.PoolSize, c.MaxOverflow = tt.size, tt.overflow })
				var mu sync.Mutex
				var order []int
				var wg sync.WaitGroup
				for i := range units {
					wg.Go(func() {
						err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
							if err := work(ctx, s); err != nil {
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
				a.knocked()
				a.goes(nil)
				wg.Wait()
				_, most := a.knocked()
				// The prober's connection may have taken one place.
				if most > tt.most || most < tt.most-1 {
					t.Errorf("%d handshakes at a time, want %d", most, tt.most)
				}
				late := 0
				for at, i := range order {
					late = max(late, at-i)
				}
				t.Logf("%d connections for %d units, %d handshakes at a time; a unit was overtaken by at most %d", len(a.all()), units, most, late)
				if tt.ordered && late > 2*tt.most {
					t.Errorf("a unit was overtaken by %d others", late)
				}
			})
		})
	}
}

// Nobody waits, nobody dials: a dead server is left alone by a pool without
// waiting units, and again when the last has given up.
func TestOutageNobodyWaitsNobodyDials(t *testing.T) {
	for name, why := range map[string]func(context.Context) error{"refused": refused, "silent": silent} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAbsent()
				p := openFake(t, &a.fake, func(c *livepool.Config) { c.KeepAlive = time.Second })
				warm(t, p.DB, 10)
				a.kill()
				a.goes(why)
				a.knocked()
				time.Sleep(time.Minute) // in which the keep-alive finds them dead
				if times, _ := a.knocked(); len(times) > 0 {
					t.Errorf("%d attempts by a pool that nobody uses", len(times))
				}

				if _, err := p.ExecContext(t.Context(), "DO 1"); err == nil {
					t.Fatal("a statement succeeded")
				}
				times, _ := a.knocked()
				if len(times) == 0 || len(times) > 3 {
					t.Errorf("%d attempts for a statement", len(times))
				}
				time.Sleep(time.Minute)
				if times, _ := a.knocked(); len(times) > 0 {
					t.Errorf("%d attempts by a pool in which no unit waits", len(times))
				}

				for range 2 {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					for _, err := range waitingUnits(100, p, ctx, work)() {
						if !errors.Is(err, livepool.ErrSessionDone) {
							t.Fatal(err)
						}
					}
					cancel()
					if times, _ := a.knocked(); len(times) < 5 {
						t.Errorf("%d attempts in 10s in which units waited", len(times))
					}
					time.Sleep(time.Second) // the last attempt may be under way
					a.knocked()
					time.Sleep(time.Minute)
					if times, _ := a.knocked(); len(times) > 0 {
						t.Errorf("%d attempts after the last unit has given up", len(times))
					}
				}

				a.goes(nil)
				start := time.Now()
				noErrors(t, waitingUnits(100, p, t.Context(), work)())
				if took := time.Since(start); took > 100*time.Millisecond {
					t.Errorf("a unit that comes later found the server after %s", took)
				}
			})
		})
	}
}

// Statements outside units are not held back: each has its own answer, while
// units wait, and what a statement finds out is news for them.
func TestOutagePlainStatementsAreNotHeldBack(t *testing.T) {
	for _, limit := range limits {
		t.Run(limit.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAbsent()
				a.goes(refused)
				p := openFake(t, &a.fake, func(c *livepool.Config) { limit.set(c); patient(c) })
				wait := waitingUnits(100, p, t.Context(), work)
				time.Sleep(2 * time.Minute) // attempts are at least 250ms apart by now
				for range 10 {
					start := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
					_, err := p.ExecContext(ctx, "DO 1")
					cancel()
					if took := time.Since(start); took != 0 || !errors.Is(err, syscall.ECONNREFUSED) {
						t.Fatalf("after %s: %v, want the refusal at once", took, err)
					}
				}
				a.goes(nil)
				start := time.Now()
				servedBy(t, p.DB)
				noErrors(t, wait())
				if took := time.Since(start); took != 0 {
					t.Errorf("a statement found that the server is back, and the units were let in %s later", took)
				}
			})
		})
	}
}

// A server that refuses can be reached: nobody waits for what will not pass.
func TestOutageIsNotAccessDenied(t *testing.T) {
	denied := func(context.Context) error { return serverError(1045, "Access denied for user 'app'@'%'") }
	t.Run("from the start", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAbsent()
			a.goes(denied)
			p := openFake(t, &a.fake, nil)
			start := time.Now()
			for _, err := range waitingUnits(100, p, t.Context(), work)() {
				if !isServerError(err, 1045) {
					t.Fatalf("%v, want error 1045", err)
				}
			}
			times, _ := a.knocked()
			if took := time.Since(start); took > 10*time.Millisecond || len(times) != 100 {
				t.Errorf("100 units were refused after %s and %d attempts, want one each, at once", took, len(times))
			}
			if n := p.Stats().Outages; n != 0 {
				t.Errorf("%d outages", n)
			}
		})
	})
	t.Run("after an outage", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAbsent()
			a.goes(refused)
			p := openFake(t, &a.fake, nil)
			wait := waitingUnits(100, p, t.Context(), work)
			time.Sleep(time.Second)
			a.goes(denied)
			start := time.Now()
			for _, err := range wait() {
				if !isServerError(err, 1045) {
					t.Errorf("%v, want error 1045", err)
					break
				}
			}
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Errorf("the server has been refusing for %s when the last unit was told", took)
			}
		})
	})
}

// Too many connections is a server that can be reached: the unit backs off and
// tries again by itself, and gets in when there is room.
func TestOutageIsNotTooManyConnections(t *testing.T) {
	full := func(context.Context) error { return serverError(1040, "Too many connections") }
	for name, before := range map[string]func(context.Context) error{"from the start": nil, "after an outage": refused} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAbsent()
				p := openFake(t, &a.fake, nil)
				if before != nil {
					a.goes(before)
				} else {
					a.goes(full)
				}
				wait := waitingUnits(5, p, t.Context(), work)
				time.Sleep(100 * time.Millisecond)
				a.goes(full)
				time.Sleep(400 * time.Millisecond)
				late := waitingUnits(5, p, t.Context(), work)
				time.Sleep(100 * time.Millisecond)
				a.goes(nil)
				back := time.Now()
				noErrors(t, wait())
				noErrors(t, late())
				if took := time.Since(back); took > 2500*time.Millisecond {
					t.Errorf("the last unit got in %s after there was room", took)
				}
			})
		})
	}
}

// A failure is what the dialer says it is: a name that does not resolve, a
// network that is down and a time limit of the dialer's own are outages, however
// they are put.
func TestOutageInTheWordsOfADialer(t *testing.T) {
	resolver := &net.DNSError{Err: "no such host", Name: "db", IsNotFound: true}
	for name, why := range map[string]func(context.Context) error{
		"DNS, as net.Dialer puts it": func(context.Context) error { return &net.OpError{Op: "dial", Net: "tcp", Err: resolver} },
		"DNS, as net.Resolver puts it": func(context.Context) error {
			return fmt.Errorf("looking up the primary: %w", resolver)
		},
		"reset":      func(context.Context) error { return syscall.ECONNRESET },
		"refused":    func(context.Context) error { return syscall.ECONNREFUSED },
		"no route":   func(context.Context) error { return fmt.Errorf("dialling: %w", syscall.EHOSTUNREACH) },
		"ErrBadConn": func(context.Context) error { return driver.ErrBadConn },
		"the driver's word for a connection that was lost": func(context.Context) error { return mysql.ErrInvalidConn },
		"a server that is shutting down":                   func(context.Context) error { return serverError(1053, "Server shutdown in progress") },
		"its own time limit": func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			<-ctx.Done()
			return fmt.Errorf("dialling: %w", ctx.Err())
		},
		"its own time limit, as net.Dialer puts it": func(ctx context.Context) error {
			time.Sleep(300 * time.Millisecond)
			return &net.OpError{Op: "dial", Net: "tcp", Err: netTimeout{}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAbsent()
				a.goes(why)
				p := openFake(t, &a.fake, nil)
				wait := waitingUnits(50, p, t.Context(), work)
				time.Sleep(20 * time.Second)
				times, most := a.knocked()
				a.goes(nil)
				noErrors(t, wait())
				if len(times) > 1000 || most > 5 {
					t.Errorf("%d attempts in 20s, %d at a time", len(times), most)
				}
			})
		})
	}
}

// netTimeout is what net.Dialer makes of a deadline: it is a
// context.DeadlineExceeded, whosoever deadline it was.
type netTimeout struct{}

func (netTimeout) Error() string     { return "i/o timeout" }
func (netTimeout) Timeout() bool     { return true }
func (netTimeout) Temporary() bool   { return true }
func (netTimeout) Is(err error) bool { return err == context.DeadlineExceeded }

// The driver's own timeout parameter makes an outage of a host that swallows
// what is sent to it.
func TestOutageByTheDriversTimeout(t *testing.T) {
	var away atomic.Bool
	away.Store(true)
	s := servertest.Run(t, server.MariaDB)
	p := openWith(t, withParams(s.DSN(), "timeout=100ms"), func(c *livepool.Config) {
		c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if away.Load() {
				<-ctx.Done()
				return nil, &net.OpError{Op: "dial", Net: network, Err: netTimeout{}}
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	wait := waitingUnits(10, p, t.Context(), work)
	time.Sleep(500 * time.Millisecond)
	away.Store(false)
	noErrors(t, wait())
}

// Somebody else's patience is not the unit's: while the server is silent,
// statements with little of it fail, and units that begin meanwhile wait.
func TestOutageSomebodyElsesContextIsNotTheUnits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.goes(silent)
		p := openFake(t, &a.fake, func(c *livepool.Config) { patient(c); c.ConnectTimeout = time.Second })
		early := waitingUnits(5, p, t.Context(), work)
		time.Sleep(3 * time.Second)
		var waits []func() []error
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			waits = append(waits, waitingUnits(1, p, t.Context(), work))
			time.Sleep(10 * time.Millisecond)
		}
		a.goes(nil)
		noErrors(t, early())
		for _, wait := range waits {
			noErrors(t, wait())
		}
	})
}

// A caller without patience says nothing of the server.
func TestOutageIsNotACallersPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.goes(silent)
		p := openFake(t, &a.fake, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if n := p.Stats().Outages; n != 0 {
			t.Errorf("%d outages after a caller gave up within a second", n)
		}
	})
}

// An attempt that began before the server came back, and fails after it, is no
// news: it says nothing of the server as it is now.
func TestOutageIsNotFoundByAttemptsOfYesterday(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.goes(silent)
		p := openFake(t, &a.fake, patient)
		wait := waitingUnits(5, p, t.Context(), work)
		time.Sleep(20 * time.Second)
		a.goes(nil) // for new ones: those under way stay silent until ConnectTimeout
		noErrors(t, wait())
		before := p.Stats()
		time.Sleep(20 * time.Second)
		if after := p.Stats(); after.Outages != before.Outages {
			t.Errorf("%d outages were found after the end of one, without any", after.Outages-before.Outages)
		}
	})
}

// However many attempts get through together at the end of a silence, the pool
// does not go far beyond its limit, and what is too much is closed soon.
func TestOutageTheEndOfASilenceLeavesNoSurplus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		heal := make(chan struct{})
		a.goes(func(ctx context.Context) error {
			select {
			case <-heal:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		p := openFake(t, &a.fake, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.KeepAlive = 1, 0, 30*time.Second; patient(c) })
		wait := waitingUnits(5, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
			defer time.Sleep(100 * time.Millisecond)
			return work(ctx, s)
		})
		time.Sleep(20 * time.Second)
		a.goes(nil)
		close(heal)
		time.Sleep(50 * time.Millisecond)
		most := a.open()
		noErrors(t, wait())
		for _, after := range []time.Duration{5, 10, 20, 40} {
			time.Sleep(after * time.Second)
			t.Logf("a pool of one had %d connections when the silence ended, and has %d after %s", most, a.open(), after*time.Second)
			if n := a.open(); n > 1 {
				t.Errorf("%d connections are left open by a pool of one", n)
			}
		}
		if most > 10 {
			t.Errorf("%d connections at the end of the silence", most)
		}
	})
}

// counted opens a pool that counts its attempts to connect, refused ones too.
func counted(t *testing.T, dsn string, change func(*livepool.Config)) (*livepool.Pool, *knocker) {
	t.Helper()
	k := &knocker{}
	p := openWith(t, dsn, func(c *livepool.Config) {
		c.Logger = quiet
		c.MySQL.DialFunc = k.dial
		if change != nil {
			change(c)
		}
	})
	return p, k
}

type knocker struct {
	mu    sync.Mutex
	times []time.Time
	fail  func() error // in place of dialling, if it returns an error
}

func (k *knocker) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	k.mu.Lock()
	k.times = append(k.times, time.Now())
	fail := k.fail
	k.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return nil, err
		}
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// between counts the attempts in a time.
func (k *knocker) between(from, to time.Time) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, at := range k.times {
		if !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}

// eachOnce reports if the table has not one row for each of n units.
func eachOnce(t *testing.T, s *server.Server, n int) {
	t.Helper()
	rows, distinct := count(t, s, "t"), 0
	if err := s.QueryRow("SELECT COUNT(DISTINCT v) FROM test.t", &distinct); err != nil {
		t.Fatal(err)
	}
	if rows != n || distinct != n {
		t.Errorf("%d rows of %d of %d units, want every one's once", rows, distinct, n)
	}
}

// A server is killed under its units and started again after three seconds. No
// unit fails, each is applied once, and the attempts to connect are as many for
// two thousand units as for eight.
func TestOutageKilledServer(t *testing.T) {
	for _, tt := range []struct {
		kind  server.Kind
		units int
	}{{server.MariaDB, 8}, {server.MariaDB, 2000}, {server.MySQL, 500}} {
		t.Run(fmt.Sprintf("%s, %d units", tt.kind, tt.units), func(t *testing.T) {
			t.Parallel()
			s, _ := ledger(t, tt.kind)
			p, k := counted(t, s.DSN(), nil)
			errs := make([]error, tt.units)
			dead := make(chan struct{})
			var wg sync.WaitGroup
			unit := func(i int) {
				wg.Go(func() {
					errs[i] = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						if err := insert(i)(ctx, s); err != nil {
							return err
						}
						select { // let it be killed in the middle of some
						case <-dead:
						case <-time.After(200 * time.Millisecond):
						}
						_, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = ?", i%9+1)
						return err
					}, livepool.VerifyCommit())
				})
			}
			for i := range tt.units / 2 {
				unit(i)
			}
			time.Sleep(100 * time.Millisecond)
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			close(dead)
			for i := tt.units / 2; i < tt.units; i++ {
				unit(i)
				if (i-tt.units/2)%(tt.units/20+1) == 0 {
					time.Sleep(100 * time.Millisecond)
				}
			}
			time.Sleep(time.Until(began.Add(3 * time.Second)))
			starting := time.Now()
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			ready := time.Now()
			wg.Wait()
			noErrors(t, errs)
			eachOnce(t, s, tt.units)
			total := 0
			if err := s.QueryRow("SELECT SUM(balance) FROM test.account", &total); err != nil || total != tt.units {
				t.Errorf("the balances are %d together, %v; want %d", total, err, tt.units)
			}
			dials, away := k.between(began, starting), starting.Sub(began)
			st := p.Stats()
			t.Logf("%d attempts in an outage of %s, one per %s; the server took %s to start, the units %s more; %d retried, %d commits resolved",
				dials, away.Round(time.Millisecond), (away / time.Duration(max(dials, 1))).Round(time.Millisecond),
				ready.Sub(starting).Round(time.Millisecond), time.Since(ready).Round(time.Millisecond), st.Retried, st.CommitsResolved)
			// Those that had a place may each have found out by themselves, and
			// what the killed units left behind is looked after on the side.
			if most := int(away/(20*time.Millisecond)) + 30; dials > most {
				t.Errorf("%d attempts, want at most %d", dials, most)
			}
			if dials < 20 {
				t.Errorf("%d attempts: nobody looked for the server", dials)
			}
		})
	}
}

// After an outage whose end is known to the moment, the first unit is applied at
// once, and soon after every worker is back at work.
func TestOutageBackAtWorkAtOnce(t *testing.T) {
	const workers, outages = 8, 10
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
	p, k := counted(t, s.DSNVia(via.Addr()), nil)
	var stop atomic.Bool
	var mu sync.Mutex
	done := map[int][]time.Time{} // by worker
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for !stop.Load() {
				if err := p.WithSession(t.Context(), insert(w), livepool.VerifyCommit()); err != nil {
					t.Errorf("a unit failed: %v", err)
					return
				}
				mu.Lock()
				done[w] = append(done[w], time.Now())
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	var ends []time.Time
	dials := 0
	for range outages {
		via.Refuse()
		via.RST()
		began := time.Now()
		time.Sleep(500 * time.Millisecond)
		if err := via.Reopen(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, time.Now())
		dials += k.between(began, ends[len(ends)-1])
		time.Sleep(150 * time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	if t.Failed() {
		return
	}
	var first, all []time.Duration
	for _, end := range ends {
		earliest, latest := time.Hour, time.Duration(0)
		for _, times := range done {
			took := time.Hour
			if i := slices.IndexFunc(times, func(at time.Time) bool { return at.After(end) }); i >= 0 {
				took = times[i].Sub(end)
			}
			earliest, latest = min(earliest, took), max(latest, took)
		}
		first, all = append(first, earliest), append(all, latest)
	}
	slices.Sort(first)
	slices.Sort(all)
	t.Logf("after the end of an outage of 500ms: the first unit after %s (median; %s to %s), all %d workers after %s (median; %s to %s); %d attempts in each outage",
		first[outages/2], first[0], first[outages-1], workers, all[outages/2], all[0], all[outages-1], dials/outages)
	if first[outages/2] > time.Second || all[outages/2] > 2*time.Second {
		t.Error("that is too long")
	}
	if dials > outages*(500/20+workers+5) {
		t.Errorf("%d attempts in %d outages", dials, outages)
	}
}

// Whatever sort of outage it is: the units that wait, and those that come
// meanwhile, go on at its end, and the attempts under way are few.
func TestOutagesOfEachSort(t *testing.T) {
	t.Parallel()
	s, _ := ledger(t, server.MariaDB)
	for _, tt := range []struct {
		name       string
		begin, end func(via *proxy.Proxy, k *knocker) error
	}{
		{"refused",
			func(via *proxy.Proxy, _ *knocker) error { via.Refuse(); via.RST(); return nil },
			func(via *proxy.Proxy, _ *knocker) error { return via.Reopen() }},
		{"accepted and reset",
			func(via *proxy.Proxy, _ *knocker) error { via.SetUpstreams(); via.RST(); return nil },
			func(via *proxy.Proxy, _ *knocker) error { via.SetUpstream(s.Addr()); return nil }},
		{"accepted and silent, for new connections only",
			func(via *proxy.Proxy, _ *knocker) error { via.FIN(); via.HangNew(true); return nil },
			func(via *proxy.Proxy, _ *knocker) error { via.HangNew(false); return nil }},
		{"a black hole",
			func(via *proxy.Proxy, _ *knocker) error { via.HangNew(true); via.Stall(); return nil },
			func(via *proxy.Proxy, _ *knocker) error { via.Heal(); return nil }},
		{"SIGSTOP",
			func(*proxy.Proxy, *knocker) error { return s.Pause() },
			func(*proxy.Proxy, *knocker) error { return s.Resume() }},
		{"a name that does not resolve",
			func(via *proxy.Proxy, k *knocker) error {
				k.mu.Lock()
				defer k.mu.Unlock()
				k.fail = func() error {
					return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "db"}}
				}
				via.RST()
				return nil
			},
			func(_ *proxy.Proxy, k *knocker) error {
				k.mu.Lock()
				defer k.mu.Unlock()
				k.fail = nil
				return nil
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const units = 100
			if err := s.Exec("TRUNCATE test.t"); err != nil {
				t.Fatal(err)
			}
			via := front(t, s)
			p, k := counted(t, s.DSNVia(via.Addr()), func(c *livepool.Config) {
				c.ConnectTimeout, c.PingTimeout, c.CommitTimeout = 300*time.Millisecond, 200*time.Millisecond, 300*time.Millisecond
			})
			warmReal(t, p.DB, 4)
			time.Sleep(550 * time.Millisecond) // beyond the trust of a recent round trip
			if err := tt.begin(via, k); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			errs := make([]error, units)
			var wg sync.WaitGroup
			for i := range units {
				wg.Go(func() { errs[i] = p.WithSession(t.Context(), insert(i), livepool.VerifyCommit()) })
				if i%10 == 0 {
					time.Sleep(100 * time.Millisecond)
				}
			}
			time.Sleep(time.Until(began.Add(1200 * time.Millisecond)))
			dials, open := k.between(began, time.Now()), via.Conns()
			most := int(time.Since(began)/(20*time.Millisecond)) + 25
			if err := tt.end(via, k); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			wg.Wait()
			took := time.Since(back)
			noErrors(t, errs)
			eachOnce(t, s, units)
			t.Logf("%d attempts in 1.2s, %d connections open at its end; all %d units done %s after it", dials, open, units, took.Round(time.Millisecond))
			if dials > most || open > 30 {
				t.Errorf("%d attempts, %d connections", dials, open)
			}
			if took > 15*time.Second {
				t.Errorf("the units took %s", took)
			}
		})
	}
}

// Statements outside units fail as fast as they would without them, and
// succeed as soon as the server is back.
func TestOutagePlainStatementsOnARealServer(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	for _, params := range []string{"pool_size=4&pool_max_overflow=2", "pool_size=4&pool_max_overflow=-1"} {
		t.Run(params, func(t *testing.T) {
			via := front(t, s)
			p, _ := counted(t, withParams(s.DSNVia(via.Addr()), params), nil)
			via.Refuse()
			wait := waitingUnits(100, p, t.Context(), insert(1))
			eventually(t, "the outage is known", func() bool { return p.Stats().Outages == 1 })
			var longest time.Duration
			for range 20 {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				_, err := p.ExecContext(ctx, "DO 1")
				cancel()
				longest = max(longest, time.Since(start))
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%v, want the refusal", err)
				}
			}
			if err := via.Reopen(); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
				t.Error(err)
			}
			t.Logf("a statement failed within %s, and succeeded %s after the end", longest, time.Since(start))
			noErrors(t, wait())
		})
	}
}

// A server that refuses, for real: access denied is told at once, and for too
// many connections the unit backs off until there is room.
func TestOutageIsNotARefusalOnARealServer(t *testing.T) {
	s, _ := ledger(t, server.MariaDB, "--max-connections=10")
	t.Run("access denied", func(t *testing.T) {
		p, k := counted(t, strings.Replace(s.DSN(), ":"+server.Password+"@", ":wrong@", 1), nil)
		start := time.Now()
		for _, err := range waitingUnits(20, p, t.Context(), insert(1))() {
			if !isServerError(err, 1045) {
				t.Errorf("%v, want error 1045", err)
			}
		}
		if n := k.between(start, time.Now()); n != 20 {
			t.Errorf("20 units took %d attempts, want one each", n)
		}
	})
	t.Run("too many connections", func(t *testing.T) {
		plain := openPlain(t, s.DSN())
		var held []func() error
		for len(held) < 30 {
			c, err := plain.Conn(t.Context())
			if err != nil {
				break
			}
			held = append(held, c.Close)
		}
		p, _ := counted(t, s.DSN(), nil)
		wait := waitingUnits(3, p, t.Context(), insert(1))
		time.Sleep(200 * time.Millisecond)
		if n := p.Stats().ConnectFailed; n == 0 {
			t.Error("the server had room: the test shows nothing")
		}
		for _, back := range held {
			back()
		}
		plain.Close()
		start := time.Now()
		noErrors(t, wait())
		st := p.Stats()
		t.Logf("in %s after there was room; %d attempts failed, %d retried", time.Since(start), st.ConnectFailed, st.Retried)
		if st.Outages != 0 {
			t.Errorf("%d outages", st.Outages)
		}
	})
}

// A unit in the middle of its transaction when the server dies is run again
// after the outage, as a whole, and applied once; MaxElapsed counts, the
// outage costs one attempt.
func TestOutageInTheMiddleOfATransaction(t *testing.T) {
	const units = 10
	s, _ := ledger(t, server.MariaDB)
	p, _ := counted(t, s.DSN(), nil)
	var inside sync.WaitGroup
	inside.Add(units)
	dead := make(chan struct{})
	runs := make([]atomic.Int32, units)
	errs := make([]error, units)
	var wg sync.WaitGroup
	for i := range units {
		wg.Go(func() {
			errs[i] = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				first := runs[i].Add(1) == 1
				if err := insert(i)(ctx, s); err != nil {
					return err
				}
				if first {
					inside.Done()
					<-dead
				}
				_, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = ?", i%9+1)
				return err
			})
		})
	}
	inside.Wait()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	close(dead)
	time.Sleep(700 * time.Millisecond)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	noErrors(t, errs)
	eachOnce(t, s, units)
	total := 0
	if err := s.QueryRow("SELECT SUM(balance) FROM test.account", &total); err != nil || total != units {
		t.Errorf("the balances are %d together, %v; want %d", total, err, units)
	}
	for i := range runs {
		// The first attempt died, the second waited for the server.
		if n := runs[i].Load(); n != 2 {
			t.Errorf("unit %d was run %d times, want 2", i, n)
		}
	}
}

// cutInTheMiddle returns units all of which are in their transactions when the
// network goes away.
func cutInTheMiddle(t *testing.T, units int, p *livepool.Pool, via *proxy.Proxy) (wait func() []error) {
	t.Helper()
	var inside sync.WaitGroup
	inside.Add(units)
	gone := make(chan struct{})
	wait = waitingUnits(units, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if err := insert(1)(ctx, s); err != nil {
			return err
		}
		if s.Attempt() == 1 {
			inside.Done()
			<-gone
		}
		return insert(1)(ctx, s)
	})
	inside.Wait()
	via.Refuse()
	via.RST()
	close(gone)
	return wait
}

// Also where all units were in the middle of their transactions, so that nobody
// was about to connect, they go on at once when the server is back.
func TestOutageThatMeetsEveryUnitInTheMiddle(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	var late []time.Duration
	for _, lasts := range []time.Duration{200, 400, 600, 800, 1100} {
		via := front(t, s)
		p, k := counted(t, s.DSNVia(via.Addr()), nil)
		began := time.Now()
		wait := cutInTheMiddle(t, 8, p, via)
		time.Sleep(lasts * time.Millisecond)
		dials := k.between(began, time.Now())
		if err := via.Reopen(); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		noErrors(t, wait())
		late = append(late, time.Since(back))
		t.Logf("after %d attempts in an outage of %s all 8 units were done %s after its end", dials, lasts*time.Millisecond, late[len(late)-1].Round(time.Millisecond))
	}
	slices.Sort(late)
	if late[len(late)/2] > time.Second {
		t.Errorf("median %s", late[len(late)/2])
	}
}

// Close does not wait for the server, but as long as it looks after what the
// units left behind, which is PingTimeout.
func TestOutageCloseAfterUnitsWereCut(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
	p, _ := counted(t, s.DSNVia(via.Addr()), nil)
	wait := cutInTheMiddle(t, 8, p, via)
	time.Sleep(300 * time.Millisecond)
	start := time.Now()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	closed := time.Since(start)
	for _, err := range wait() {
		if err == nil {
			t.Error("a unit succeeded")
		}
	}
	t.Logf("Close took %s, the last unit %s", closed, time.Since(start))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Close took %s, and the last unit ended after %s", closed, took)
	}
}

// Where no server has ever been, units wait as well: a worker may be started
// before its database.
func TestOutageFromTheStart(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	l, err := loopback.Listen()
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // a port at which nobody listens
	var at atomic.Pointer[string]
	addr := l.Addr().String()
	at.Store(&addr)
	p := openWith(t, s.DSNVia(addr), func(c *livepool.Config) {
		c.Logger = quiet
		c.MySQL.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, *at.Load())
		}
	})
	wait := waitingUnits(50, p, t.Context(), insert(1))
	time.Sleep(300 * time.Millisecond)
	real := s.Addr()
	at.Store(&real)
	noErrors(t, wait())
	if n := count(t, s, "t"); n != 50 {
		t.Errorf("%d rows, want 50", n)
	}
}
