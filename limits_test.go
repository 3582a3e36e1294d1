package livepool_test

// What is left in from plain database/sql: SetMaxOpenConns and its like, called
// on the sql.DB of a pool.

import (
	"context"
	"database/sql"
	"log/slog"
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
			log, f := &labtest.Log{}, &fakedb.DB{}
			f.OnConnect = func(context.Context, int64) error { time.Sleep(10 * time.Millisecond); return nil }
			p := openFake(t, f, func(c *livepool.Config) {
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
			if told := log.About(limitAdvice); len(told) != 1 || !strings.Contains(told[0], "pool_max_overflow") || !strings.Contains(told[0], "max_open_conns=3") {
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
		p := openFake(t, f, func(c *livepool.Config) { c.MinIdle = 4 })
		synctest.Wait() // four are under way
		p.SetMaxOpenConns(3)
		held := takeConcurrently(t, p, 3)
		time.Sleep(time.Second)
		if n, open := f.Connects.Load(), f.OpenConns(); n != 4 || open != 3 {
			t.Errorf("%d connections were opened, %d are open, want 4 and 3", n, open)
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
		p := openFake(t, f, func(c *livepool.Config) { c.Recycle, c.RecycleJitter = time.Minute, 0 })
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
				log := &labtest.Log{}
				p := openFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.KeepAlive, c.Logger = 6, 30*time.Second, slog.New(log) })
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
				told := log.About(" was called on the pool's sql.DB")
				if tt.want == "" && len(told) > 0 || tt.want != "" && (len(told) != 1 || !strings.Contains(told[0], tt.want)) {
					t.Errorf("told %q, want once of %q", told, tt.want)
				}
			})
		})
	}
}
