package connector_test

// How long units wait for a server that cannot be reached: every wait has an end.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
)

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
			[]string{"pool_timeout", "waited 2", "the database cannot be reached", "connection refused"}},
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
					a := newOutageDB()
					a.setFailure(dialRefused)
					p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) {
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
							err := p.WithSession(ctx, labtest.Work)
							// A unit that lets others go first looks again each millisecond.
							if took := time.Since(start); took < tt.after || took > tt.after+10*time.Millisecond {
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
				a := newOutageDB()
				a.setFailure(dialSilent)
				p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { limit.set(c); c.PoolTimeout = time.Second })
				start := time.Now()
				for _, err := range labtest.StartUnits(t.Context(), 50, p, labtest.Work)() {
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
		a := newOutageDB()
		a.setFailure(dialRefused)
		p := labtest.OpenFake(t, &a.DB, nil)
		start := time.Now()
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return labtest.Work(ctx, s)
		})
		if took := time.Since(start); took != time.Second || err == nil {
			t.Errorf("after %s: %v, want 1s", took, err)
		}
	})
}

// A PoolTimeout too short to wait for the prober does not lock the units out
// for ever: once the server is back, one of the next gets through.
func TestOutageWithoutTimeoutIsNotForEver(t *testing.T) {
	for _, patience := range []time.Duration{0, time.Nanosecond, time.Millisecond} {
		for _, limit := range limits {
			t.Run(fmt.Sprintf("PoolTimeout %s, %s", patience, limit.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newOutageDB()
					a.setFailure(dialRefused)
					p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { limit.set(c); c.PoolTimeout = patience })
					for range 10 {
						if err := p.WithSession(t.Context(), labtest.Work); !errors.Is(err, livepool.ErrPoolTimeout) {
							t.Fatalf("%v, want ErrPoolTimeout", err)
						}
						time.Sleep(100 * time.Millisecond)
					}
					a.setFailure(nil)
					back := time.Now()
					for p.WithSession(t.Context(), labtest.Work) != nil {
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
		a := newOutageDB()
		a.handshake = time.Second
		a.setFailure(dialRefused)
		p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, -1, 5*time.Second })
		start := time.Now()
		wait := labtest.StartUnits(t.Context(), 60, p, func(ctx context.Context, s *livepool.Session) error {
			if err := labtest.Work(ctx, s); err != nil {
				return err
			}
			time.Sleep(time.Minute) // so that no connection is given back meanwhile
			return nil
		})
		time.Sleep(time.Second)
		a.setFailure(nil)
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
		for name, why := range map[string]func(context.Context) error{"refused": dialRefused, "silent": dialSilent} {
			t.Run(limit.name+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newOutageDB()
					a.setFailure(why)
					p := labtest.OpenFake(t, &a.DB, limit.set)
					wait := labtest.StartUnits(t.Context(), 100, p, labtest.Work)
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
					a.takeDials()
					time.Sleep(time.Minute)
					if times, _ := a.takeDials(); len(times) > 0 {
						t.Errorf("%d attempts after Close", len(times))
					}
				})
			})
		}
	}
}
