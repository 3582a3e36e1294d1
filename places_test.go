package livepool_test

// The queue for a connection: in order, for no longer than PoolTimeout.

import (
	"context"
	"errors"
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

// Sessions are served in the order in which they came.
func TestPlacesAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := openFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 6, 4 })
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
		p := openFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 2, 0, time.Second })
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
		p := openFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
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
		p := openFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
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
		p := openFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				err := p.WithSession(t.Context(), labtest.Insert(1))
				if !errors.Is(err, down) {
					t.Errorf("got %v, want the database's trouble in it", err)
				}
				if errors.Is(err, livepool.ErrPoolTimeout) && !strings.Contains(err.Error(), "cannot be reached") {
					t.Errorf("%q blames the pool", err)
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
		p := openFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
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
		p := openFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 1, 0, 10*time.Second })
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
			p := openFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.PoolTimeout = 2, 0, 10*time.Second })
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
		p := openFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
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
