package connector

import (
	"context"
	"database/sql"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/lab/fakedb"
)

// A caller without time for a ping has another connection pinged, by its own goroutine,
// while all tasks of the maintainer are busy. It is the race detector that sees it.
func TestCallersPingBesideTheMaintainer(t *testing.T) {
	l := &exclusiveDB{onPing: func(context.Context) error { time.Sleep(20 * time.Millisecond); return nil }}
	p := l.pool(t, func(c *Settings) { c.KeepAlive, c.PoolSize, c.MaxOverflow = 4*time.Millisecond, 40, 0 })
	var held []*sql.Conn
	for range 40 {
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	for _, c := range held {
		c.Close()
	}
	end := time.Now().Add(time.Second)
	for time.Now().Before(end) {
		p.ctr.pingOneIdle(p.ctr.clock.Now()) // as conn.handleFailure does for a caller without time for a ping whose context has ended
		time.Sleep(time.Millisecond)
	}
}

// It has one pinged if a task is free, and leaves the maintainer's own list alone if none
// is.
func TestACallerWithoutTimeHasOnePinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &exclusiveDB{}
		p := l.pool(t, func(c *Settings) { c.KeepAlive, c.PoolSize, c.MaxOverflow = 0, 3, 0 })
		var held []*sql.Conn
		for range 3 {
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, c)
		}
		for _, c := range held {
			c.Close()
		}
		time.Sleep(time.Minute)
		m := p.ctr.maintainer
		asks := func() int64 {
			p.ctr.pingOneIdle(p.ctr.clock.Now())
			synctest.Wait()
			return p.ctr.Stats.KeptAlive.Load()
		}
		for range maxTasks {
			m.tasks <- struct{}{}
		}
		if n := asks(); n != 0 || len(m.pending) != 0 {
			t.Errorf("no task was free: %d were pinged, %d are pending", n, len(m.pending))
		}
		for range maxTasks {
			<-m.tasks
		}
		if n := asks(); n != 1 {
			t.Errorf("%d were asked, want 1", n)
		}
	})
}

// A unit that does not wait for a suspect connection, and gets another
// link for its connection, returns one that is not suspect.
func TestConnectionIsNotSuspectWithItsNextLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hole atomic.Bool
		hole.Store(true)
		l := &exclusiveDB{onPing: func(ctx context.Context) error {
			if !hole.Load() {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		p := l.pool(t, func(c *Settings) { c.KeepAlive, c.PoolSize, c.MaxOverflow, c.MinIdle = 0, 2, 0, 1 })
		p.ctr.keepParkedAlive = false
		if _, err := p.Exec("DO 1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		p.ctr.reportSilence(&p.ctr.snapshot()[0].link, p.ctr.clock.Now()-time.Second) // as of another connection
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		unit := &Attempt{}
		tx, err := p.BeginTx(&BeginContext{Context: t.Context(), Attempt: unit}, nil) // as a session does
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("DO 1"); err != nil {
			t.Fatal(err)
		}
		unit.CommitState.Store(CommitAllowed)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		hole.Store(false)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		ready, busy := p.ctr.countConns()
		n := 0
		for _, r := range p.ctr.snapshot() {
			if r.hasLink.Load() {
				n++
			}
		}
		if ready+busy != n {
			t.Errorf("ten minutes later %d connections are open, of which %d count as ready", n, ready)
		}
	})
}

// A caller that stops waiting for a late answer tries another connection at once. It
// must find that one suspect, or it would wait for a second PingTimeout.
func TestASilenceIsRecordedBeforeAnybodyGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := (&maintainDB{}).pool(t, func(c *Settings) { c.KeepAlive = 0 })
		fakedb.Warm(t, p.DB, 1)
		q := p.ctr.newPendingPing(link{})
		defer q.cancel()
		defer q.timer.Stop()
		q.sentAt = p.ctr.clock.Now()
		q.lastTick, q.ticks = q.sentAt, ticksUntilLate-1
		if _, isNews := q.judge(); !isNews {
			t.Fatal("the answer is not late: the test shows nothing")
		}
		<-q.late
		for _, c := range p.ctr.snapshot() {
			if !c.isSuspect(p.ctr) {
				t.Error("a connection was not suspect yet when the one who waited was let go")
			}
		}
	})
}

// A process that was suspended has had no time to read an answer: a tick that comes late
// does not count. But it may not be excused for ever.
func TestASuspendedProcessJudgesNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := (&maintainDB{}).pool(t, func(c *Settings) { c.KeepAlive = 0 })
		q := p.ctr.newPendingPing(link{})
		defer q.cancel()
		defer q.timer.Stop()
		q.sentAt = p.ctr.clock.Now()
		q.ticks = ticksUntilLate - 1
		judgeAfter := func(sinceLastTick time.Duration) (isLate bool) {
			q.lastTick = p.ctr.clock.Now() - sinceLastTick
			_, isLate = q.judge()
			return isLate
		}
		for n := range maxProcessStops {
			if judgeAfter(2*q.interval + 1) {
				t.Fatalf("late after %d suspensions", n+1)
			}
		}
		if !judgeAfter(2*q.interval + 1) {
			t.Error("one more suspension is excused, too")
		}
	})
}
