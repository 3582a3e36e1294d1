package connector_test

// The limits: the places that units of work wait for, and the setters of database/sql.

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

const limitAdvice = "SetMaxOpenConns was called"

// SetMaxOpenConns is the limit for all: spares, sessions, and what the error of
// one that waits in vain advises.
func TestSetMaxOpenConnsHolds(t *testing.T) {
	for _, already := range []bool{false, true} { // the spares are there before it is called
		synctest.Test(t, func(t *testing.T) {
			log, f := &labtest.CapturedLog{}, &fakedb.DB{}
			f.OnConnect = func(context.Context, int64) error { time.Sleep(10 * time.Millisecond); return nil }
			p := labtest.OpenFake(t, f, func(c *livepool.Config) {
				c.MinIdle, c.PoolTimeout, c.Logger = 4, time.Second, slog.New(log)
			})
			if already {
				time.Sleep(time.Minute)
			}
			p.SetMaxOpenConns(3)
			time.Sleep(time.Minute)
			for range 3 {
				held, _ := fakedb.Take(t, p.DB, 3)
				for range 100 {
					time.Sleep(50 * time.Millisecond)
					if n := f.OpenConns(); n > 3 {
						t.Fatalf("%d connections with SetMaxOpenConns(3) and three in use", n)
					}
				}
				fakedb.GiveBack(held)
				time.Sleep(time.Minute)
				if n := f.OpenConns(); n != 3 {
					t.Fatalf("%d connections, want 3 ready, for MinIdle", n)
				}
			}
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						fakedb.ServedBy(t, s)
						time.Sleep(time.Minute)
						return nil
					})
				})
			}
			time.Sleep(time.Second)
			waited := p.Stats().SessionsWaited
			err := p.WithSession(t.Context(), labtest.Insert(1))
			if err == nil || !strings.Contains(err.Error(), "SetMaxOpenConns(3)") || strings.Contains(err.Error(), "raise pool_size") {
				t.Errorf("the error is %v", err)
			}
			if p.Stats().SessionsWaited == waited {
				t.Error("the fourth session had a place")
			}
			p.SetMaxOpenConns(4) // and all follow it
			go openOne(p.DB)
			if err := p.WithSession(t.Context(), labtest.Insert(1)); err != nil {
				t.Error(err)
			}
			wg.Wait()
			if told := log.LinesWith(limitAdvice); len(told) != 1 || !strings.Contains(told[0], "pool_max_overflow") || !strings.Contains(told[0], "max_open_conns=3") {
				t.Errorf("told %q, want once", told)
			}
		})
	}
}

// Callers who come while connections are opened for MinIdle take those.
func TestSetMaxOpenConnsDuringMinIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		f.OnConnect = func(context.Context, int64) error { time.Sleep(time.Second); return nil }
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.MinIdle = 4 })
		synctest.Wait() // four are under way
		p.SetMaxOpenConns(3)
		held := labtest.TakeConcurrently(t, p, 3)
		time.Sleep(time.Second)
		// A caller that is just waking up does not count as waiting: rarely one spare too
		// many is closed, and that caller opens another.
		if n, open := f.Connects.Load(), f.OpenConns(); n < 4 || n > 5 || open != 3 {
			t.Errorf("%d connections were opened, %d are open, want 4, or 5, and 3", n, open)
		}
		fakedb.GiveBack(held)
	})
}

// openOne opens a connection, by which a new limit is seen.
func openOne(db *sql.DB) {
	if c, err := db.Conn(context.Background()); err == nil {
		c.Close()
	}
}

// A connection that grows old is replaced, and never by one above the limit.
func TestReplacementKeepsToSetMaxOpenConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, start := &fakedb.DB{}, time.Now()
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.Recycle, c.RecycleJitter = time.Minute, 0 })
		p.SetMaxOpenConns(3)
		held, _ := fakedb.Take(t, p.DB, 3)
		fakedb.GiveBack(held)
		for range 3 * 60 * 20 {
			time.Sleep(50 * time.Millisecond)
			if n := f.OpenConns(); n > 3 {
				t.Fatalf("%d connections after %s", n, time.Since(start))
			}
		}
		if n := f.Connects.Load(); n < 6 {
			t.Errorf("%d connections were opened: none was replaced", n)
		}
	})
}

// What cannot be read back is told when it shows, and of livepool's own settings
// nothing is told.
func TestSettersThatWereLeftIn(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*livepool.Pool)
		want string
	}{
		{"none", func(*livepool.Pool) {}, ""},
		{"SetMaxIdleConns, fewer", func(p *livepool.Pool) { p.SetMaxIdleConns(2) }, "SetMaxIdleConns"},
		{"SetMaxIdleConns, more", func(p *livepool.Pool) { p.SetMaxIdleConns(15) }, "SetMaxIdleConns"},
		{"SetConnMaxLifetime", func(p *livepool.Pool) { p.SetConnMaxLifetime(3 * time.Minute) }, "SetConnMaxLifetime"},
		{"SetConnMaxIdleTime", func(p *livepool.Pool) { p.SetConnMaxIdleTime(3 * time.Minute) }, "SetConnMaxIdleTime"},
		{"SetMaxOpenConns", func(p *livepool.Pool) { p.SetMaxOpenConns(3) }, "SetMaxOpenConns"},
		{"SetMaxOpenConns, no limit", func(p *livepool.Pool) { p.SetMaxOpenConns(0) }, "SetMaxOpenConns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &labtest.CapturedLog{}
				p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.KeepAlive, c.Logger = 6, 30*time.Second, slog.New(log) })
				tt.set(p)
				use := func(n int) {
					if st := p.DB.Stats(); st.MaxOpenConnections > 0 {
						n = min(n, st.MaxOpenConnections)
					}
					held, _ := fakedb.Take(t, p.DB, n)
					fakedb.GiveBack(held)
					time.Sleep(10 * time.Minute)
				}
				for _, n := range []int{6, 6, 16, 6, 6, 16} { // for an hour, twice IdleTimeout
					use(n)
				}
				told := log.LinesWith(" was called on the pool's sql.DB")
				if tt.want == "" && len(told) > 0 || tt.want != "" && (len(told) != 1 || !strings.Contains(told[0], tt.want)) {
					t.Errorf("told %q, want once of %q", told, tt.want)
				}
			})
		})
	}
}

// Sessions are served in the order in which they came.
func TestPlacesAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 6, 4 })
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if err := p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
					fakedb.ServedBy(t, s)
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
					time.Sleep(time.Second)
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(time.Millisecond) // so that there is an order
		}
		wg.Wait()
		if !slices.IsSorted(order) {
			t.Errorf("served in the order %v", order)
		}
		if n := f.Connects.Load(); n > 200 || f.OpenConns() > 10 {
			t.Errorf("%d connections opened, %d open", n, f.OpenConns())
		}
	})
}

// Goexit and panic while a place is waited for; the ctx ends in the queue: all places come back.
func TestUnitPlacesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 2, 0, time.Second })
		for i := range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7+1)*250*time.Millisecond)
			go func() {
				defer cancel()
				defer func() { recover() }()
				p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
					s.ExecContext(ctx, "DO 1")
					time.Sleep(time.Duration(i%5) * 250 * time.Millisecond)
					if i%3 == 0 {
						panic(1)
					}
					return nil
				})
			}()
			if i%4 == 0 {
				time.Sleep(250 * time.Millisecond)
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := p.DB.Stats().InUse; n != 0 {
			t.Errorf("%d in use", n)
		}
		for range 2 { // both places
			go p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				if _, err := s.ExecContext(ctx, "DO 1"); err != nil {
					t.Error(err)
				}
				time.Sleep(100 * time.Millisecond)
				return nil
			})
		}
		time.Sleep(time.Second)
	})
}

// A place comes back from every way out.
func TestPlacesComeBackFromPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
		for range 3 {
			func() {
				defer func() { recover() }()
				p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
					fakedb.ServedBy(t, s)
					panic("job")
				})
			}()
		}
		start := time.Now()
		if err := p.WithSession(t.Context(), labtest.Insert(1)); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// PoolTimeout ends the wait, and says whether the pool was exhausted or the
// database down.
func TestPoolTimeoutTellsExhaustedFromDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		var wg sync.WaitGroup
		wg.Go(func() {
			p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
				fakedb.ServedBy(t, s)
				time.Sleep(time.Minute)
				return nil
			}, livepool.Name("the long report"))
		})
		synctest.Wait()
		start := time.Now()
		err := p.WithSession(t.Context(), labtest.Insert(1))
		if took := time.Since(start); !errors.Is(err, livepool.ErrPoolTimeout) || took != 10*time.Second {
			t.Errorf("got %v after %s, want ErrPoolTimeout after 10s", err, took)
		}
		for _, part := range []string{"exhausted", "1 sessions in use", "1 waiting", "the long report", "10s"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
		wg.Wait()
	})
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("no route to host")
		f := &fakedb.DB{OnConnect: func(context.Context, int64) error { time.Sleep(time.Second); return down }}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				err := p.WithSession(t.Context(), labtest.Insert(1))
				if !errors.Is(err, down) {
					t.Errorf("got %v, want the database's trouble in it", err)
				}
				if errors.Is(err, livepool.ErrPoolTimeout) && !strings.Contains(err.Error(), "cannot be reached") {
					t.Errorf("%q says that it is the pool", err)
				}
			})
		}
		wg.Wait()
	})
}

// A pool that is also used without sessions: the wait for a connection is
// bounded too.
func TestPoolTimeoutBehindPlainUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err = p.WithSession(t.Context(), labtest.Insert(1))
		if took := time.Since(start); !errors.Is(err, livepool.ErrPoolTimeout) || took != 10*time.Second {
			t.Errorf("got %v after %s, want ErrPoolTimeout after 10s", err, took)
		}
		c.Close()
		if err := p.WithSession(t.Context(), labtest.Insert(1)); err != nil {
			t.Error(err)
		}
	})
}

func TestUnitPoolTimeoutBlamesItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		c, _ := p.Conn(t.Context())
		err := p.WithSession(t.Context(), labtest.Insert(1), livepool.Name("me"))
		c.Close()
		if strings.Contains(err.Error(), "1 sessions in use") || strings.Contains(err.Error(), "me has held its connection longest") {
			t.Errorf("%v", err)
		}
	})
}

// Two sessions begin at the same time where a plain user leaves one connection.
func TestUnitPoolTimeoutRace(t *testing.T) {
	late := 0
	for range 500 {
		synctest.Test(t, func(t *testing.T) {
			p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 2, 0, 10*time.Second })
			c, _ := p.Conn(t.Context())
			var wg sync.WaitGroup
			start := time.Now()
			for range 2 {
				wg.Go(func() {
					var took time.Duration
					err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						_, err := s.ExecContext(ctx, "DO 1")
						took = time.Since(start)
						time.Sleep(60 * time.Second)
						return err
					})
					if took > 11*time.Second {
						late++
						_ = err
					}
				})
			}
			wg.Wait()
			c.Close()
		})
		if late > 0 {
			break
		}
	}
	if late > 0 {
		t.Error("a session waited longer than PoolTimeout")
	}
}

// The first statement has a context of its own, which ends while it waits for a place ...
func TestUnitFirstStatementsContextPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
		c, _ := p.Conn(t.Context())
		start := time.Now()
		var took time.Duration
		p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := s.ExecContext(ctx, "DO 1")
			took = time.Since(start)
			return err
		})
		c.Close()
		if took > 2*time.Second {
			t.Errorf("a statement with a timeout of 1s took %s", took)
		}
	})
}
