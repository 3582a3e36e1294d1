package connector_test

// What the maintainer promises, as seen from outside: exactly, in fake time, on
// a driver that notes what happens to each connection.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// Ten connections are left alone for an hour. Each is pinged at every thirtieth
// second of its silence, and not otherwise; each is replaced when its own time
// is up, by one that was opened a little before; a caller then finds them.
func TestAnHourOfSilence(t *testing.T) {
	const late = 10 * time.Millisecond // rounds are a millisecond apart, and something may be due in each
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.Recycle, c.IdleTimeout = 20*time.Minute, 0 })
		start := time.Now()
		fakedb.Warm(t, p.DB, 10)
		for range 3600 {
			time.Sleep(time.Second)
			synctest.Wait()
			early := 0 // successors, opened a quarter of a second before they are needed
			for _, l := range d.Records() {
				if l.ClosedAt.IsZero() && l.OpenedAt.After(start) && time.Since(l.OpenedAt) <= 250*time.Millisecond+late {
					early++
				}
			}
			if open, told := d.OpenConns(), p.Stats().OpenConnections; told != 10 || open < 10 || open > 10+early {
				t.Fatalf("after %s: %d open, the pool says %d, %d of the others may wait to take over", time.Since(start), open, told, early)
			}
		}
		dials := d.Connects.Load()
		held, _ := fakedb.Take(t, p.DB, 10)
		fakedb.GiveBack(held)
		if n := d.Connects.Load(); n != dials {
			t.Errorf("%d callers had to dial", n-dials)
		}
		d.CheckClosed(t, p)

		var deaths, births []time.Duration
		replaced := 0
		for i, l := range d.Records() {
			if i >= 10 {
				births = append(births, l.OpenedAt.Sub(start)+250*time.Millisecond)
			}
			if l.ClosedAt.Sub(start) < time.Hour {
				replaced++
				deaths = append(deaths, l.ClosedAt.Sub(start))
				if age := l.ClosedAt.Sub(l.OpenedAt); age < 16*time.Minute || age > 20*time.Minute {
					t.Errorf("connection %d was closed at the age of %s, want 16m to 20m", i+1, age)
				}
			}
			until := min(l.ClosedAt.Sub(l.OpenedAt), start.Add(time.Hour).Sub(l.OpenedAt))
			var want []time.Time
			for at := 30 * time.Second; at < until; at += 30 * time.Second {
				want = append(want, l.OpenedAt.Add(at))
			}
			got := slices.DeleteFunc(slices.Clone(l.Pings), func(at time.Time) bool { return !at.Before(start.Add(time.Hour)) })
			// Each ping may be a round late, and the next is counted from there: the last
			// may come no more.
			if n := len(want) - 1; len(got) == n && l.OpenedAt.Add(until).Sub(want[n]) <= time.Duration(n+1)*time.Millisecond {
				want = want[:n]
			}
			if !slices.EqualFunc(got, want, func(got, want time.Time) bool {
				after := got.Sub(want)
				return after >= 0 && after <= want.Sub(l.OpenedAt)/(30*time.Second)*time.Millisecond
			}) {
				t.Errorf("connection %d was pinged %d times, want %d, at each 30s of its life of %s", i+1, len(got), len(want), until)
			}
		}
		slices.Sort(deaths)
		slices.Sort(births)
		births = births[:min(len(births), len(deaths))] // one may wait to take over
		inTime := slices.EqualFunc(births, deaths, func(birth, death time.Duration) bool { return (death - birth).Abs() <= late })
		if replaced < 20 || !inTime {
			t.Errorf("%d were replaced; the successors were opened a quarter of a second before: %v\n%v\n%v", replaced, inTime, births, deaths)
		}
	})
}

// The same with traffic: whatever the callers do, none meets an error, no
// connection is silent for longer than KeepAlive and the maintainer's interval
// (a quarter of it), none outlives its limit but in a caller's hands, and the
// pool's account is true.
func TestAnHourOfTraffic(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakedb.RecordingDB{}
				const (
					longest = 20 * time.Second     // that a caller holds a connection
					soon    = 30 * time.Second / 4 // until a connection that was in use is looked at
				)
				p := labtest.OpenRecording(t, d, func(c *livepool.Config) {
					c.PoolSize, c.MaxOverflow, c.MinIdle = 8, 4, 2
					c.Recycle, c.IdleTimeout = 10*time.Minute, 5*time.Minute
					c.PrePing = livepool.PrePingOff // so that all pings are the maintainer's
				})
				start := time.Now()
				var wg sync.WaitGroup
				for i := range 14 {
					r := rand.New(rand.NewPCG(seed, uint64(i)))
					wg.Go(func() {
						for time.Since(start) < time.Hour {
							time.Sleep(time.Duration(r.Int64N(int64(2 * time.Minute))))
							held, ids := fakedb.Take(t, p.DB, 1)
							d.RecordHeld(ids[0], true)
							time.Sleep(time.Duration(r.Int64N(int64(longest))))
							d.RecordHeld(ids[0], false)
							held[0].Close()
						}
					})
				}
				for time.Since(start) < time.Hour {
					time.Sleep(977 * time.Millisecond)
					synctest.Wait()
					now := time.Now()
					open, early := 0, 0
					for i, l := range d.Records() {
						if !l.ClosedAt.IsZero() {
							continue
						}
						open++
						if now.Sub(l.OpenedAt) < 6*time.Second { // a hundredth of Recycle at most
							early++
						}
						if l.InUse {
							continue
						}
						if now.Sub(l.LastAnswer) > 30*time.Second && now.Sub(l.ReturnedAt) > soon {
							t.Errorf("after %s: connection %d has been silent for %s", now.Sub(start), i+1, now.Sub(l.LastAnswer))
						}
						// The clock is not read at a return, only by the maintainer's next look.
						if age := now.Sub(l.OpenedAt); age > 10*time.Minute && now.Sub(l.ReturnedAt) > soon {
							t.Errorf("after %s: connection %d is idle and %s old", now.Sub(start), i+1, age)
						}
					}
					if s := p.Stats(); open < s.OpenConnections || open > s.OpenConnections+early || s.Idle != s.OpenConnections-s.InUse || s.Idle < 0 {
						t.Errorf("after %s: %d open; the pool says %d, %d idle, %d in use", now.Sub(start), open, s.OpenConnections, s.Idle, s.InUse)
					}
				}
				wg.Wait()
				time.Sleep(time.Minute)
				if s := p.Stats(); s.ClosedByAge < 20 || s.KeptAlive < 100 || s.Deaths != 0 {
					t.Errorf("the test shows nothing, or deaths: %+v", s)
				}
				t.Logf("%d dials, %d pings, at most %d open", d.Connects.Load(), d.Pings.Load(), d.Peak.Load())
				d.CheckClosed(t, p)
			})
		})
	}
}

// database/sql hands out what was returned last; the maintainer's pings change
// nothing about it.
func TestPingsDoNotReorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		p := labtest.OpenRecording(t, d, nil)
		held, ids := fakedb.Take(t, p.DB, 5)
		for _, i := range []int{3, 0, 4, 1, 2} {
			time.Sleep(time.Second)
			fakedb.ServedBy(t, held[i])
			held[i].Close()
		}
		for range 4 {
			time.Sleep(40 * time.Second)
		}
		if d.Pings.Load() < 20 {
			t.Fatalf("%d pings: the test shows nothing", d.Pings.Load())
		}
		held, got := fakedb.Take(t, p.DB, 5)
		if want := []int64{ids[2], ids[1], ids[4], ids[0], ids[3]}; !slices.Equal(got, want) {
			t.Errorf("handed out in the order %v, want %v", got, want)
		}
		fakedb.GiveBack(held)
		d.CheckClosed(t, p)
	})
}

// A pool is closed while it opens connections, or keeps one ready for later.
func TestCloseDuringMaintenance(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 150 * time.Millisecond, time.Minute, time.Hour - 500*time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			d := &fakedb.RecordingDB{}
			d.OnConnect = func(ctx context.Context, _ int64) error {
				select {
				case <-time.After(100 * time.Millisecond):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.MinIdle, c.RecycleJitter, c.IdleTimeout = 6, 0, 0 })
			if after >= time.Minute {
				fakedb.Warm(t, p.DB, 8)
			}
			time.Sleep(after)
			start := time.Now()
			d.CheckClosed(t, p)
			if took := time.Since(start); took != 0 {
				t.Errorf("Close after %s took %s", after, took)
			}
		})
	}
}
