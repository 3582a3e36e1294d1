// kill.go ends what an abandoned connection leaves on the server: a statement
// that goes on, a transaction and its locks, for up to wait_timeout. It needs
// proof of which thread that is, and kills nothing without.

package livepool

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// ghost is the server's side of an abandoned connection.
type ghost struct {
	w     *wire
	since time.Duration
	tries int           // that met another server
	done  chan struct{} // closed when there is nothing more to be done about it
}

// settle waits until the ghost that a unit has left, if it has, is dealt with,
// for a while. It waits for the server too, if that cannot be reached.
func (ctr *connector) settle(ctx context.Context, g *ghost) {
	if g == nil {
		return
	}
	ctr.outage.await(ctr, 1)
	defer ctr.outage.await(ctr, -1)
	waitFor(ctx, g.done, ctr.cfg.PingTimeout)
}

// reaper deals with the ghosts, in a goroutine that is there only as long as
// there are any.
type reaper struct {
	mu     sync.Mutex // guards what follows
	ghosts []*ghost
	idle   chan struct{} // closed when it has nothing to do, nil at first

	warned atomic.Bool // of what cannot be proved
}

// abandoned is for a connection whose server may still be working for it.
func (c *conn) abandoned() {
	g := c.ctr.abandon(&c.link)
	if unit := c.transaction.unit; unit != nil && g != nil {
		unit.ghost.Store(g)
	}
}

// abandon has the server's side of a link that was given up ended, in the
// background. Nothing can be done, and nil is returned, for one that livepool
// has not dialled.
func (ctr *connector) abandon(l *link) *ghost {
	if !ctr.cfg.KillAbandoned || !ctr.mysql || l.threadID() == 0 || l.wire.forsaken.Swap(true) {
		return nil
	}
	g := &ghost{w: l.wire, since: ctr.clock.now(), done: make(chan struct{})}
	if !ctr.reaper.takes(g, func() bool { return ctr.spawn(ctr.reap) }) {
		ctr.giveUpGhosts([]*ghost{g})
	}
	return g
}

// takes has the goroutine see to a ghost, and starts it if it is not there.
func (r *reaper) takes(g *ghost, start func() bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ghosts = append(r.ghosts, g)
	if r.busy() {
		return true
	}
	r.idle = make(chan struct{})
	if start() {
		return true
	}
	r.ghosts = nil
	close(r.idle)
	return false
}

// busy says whether the goroutine is there. r.mu is held.
func (r *reaper) busy() bool {
	if r.idle == nil {
		return false
	}
	select {
	case <-r.idle:
		return false
	default:
		return true
	}
}

// finish waits for the reaper's work to be done, for a while.
func (r *reaper) finish(patience time.Duration) {
	r.mu.Lock()
	idle := r.idle
	r.mu.Unlock()
	if idle != nil {
		waitFor(context.Background(), idle, patience)
	}
}

// How soon the server is asked again, and for how long, about ghosts that it
// could not be asked about.
const (
	maxReapTries = 6 // of servers behind one address
	reapSpacing  = 20 * time.Millisecond
	reapAtFirst  = 50 * time.Millisecond
	reapLongest  = 10 * time.Second
	reapPatience = time.Hour
)

// reap ends the ghosts, as soon as the server can be reached.
func (ctr *connector) reap() {
	r := &ctr.reaper
	for pause := reapAtFirst; ; {
		r.mu.Lock()
		batch := r.ghosts
		r.ghosts = nil
		if len(batch) == 0 {
			close(r.idle)
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		if ctr.life.Err() != nil {
			ctr.giveUpGhosts(batch)
			continue
		}
		left, err := ctr.reapBatch(batch)
		if len(left) == 0 {
			pause = reapAtFirst
			ctr.rest()
			continue
		}
		ctr.cfg.logger().Debug("livepool: what abandoned connections left on the server cannot be ended yet",
			slog.String("addr", ctr.addr), slog.Int("connections", len(left)), slog.Any("cause", err))
		r.mu.Lock()
		r.ghosts = append(left, r.ghosts...)
		r.mu.Unlock()
		ctr.awaitReach(pause)
		pause = min(2*pause, reapLongest)
	}
}

// rest lets more ghosts gather for the next side connection, if there are any:
// a service whose callers give up all the time does not connect for each.
func (ctr *connector) rest() {
	r := &ctr.reaper
	r.mu.Lock()
	more := len(r.ghosts) > 0
	r.mu.Unlock()
	if more {
		ctr.awaitReach(reapSpacing)
	}
}

// awaitReach waits for d; in an outage, for its end if that comes first.
func (ctr *connector) awaitReach(d time.Duration) {
	var over chan struct{}
	if o := &ctr.outage; o.isDown() {
		o.mu.Lock()
		over = o.server.over
		o.mu.Unlock()
		d = max(d, time.Second)
	}
	waitFor(ctr.life, over, d)
}

// reapBatch deals with some ghosts on one side connection, and returns those
// that are left because the server could not be asked.
func (ctr *connector) reapBatch(batch []*ghost) (left []*ghost, err error) {
	s, err := ctr.openSide(ctr.life)
	if err == nil {
		defer s.l.close()
	}
	var tally [fates]int
	for _, g := range batch {
		fate := fateOpen
		if err == nil {
			fate, err = s.lay(g)
		}
		if fate == fateOpen && ctr.clock.now()-g.since > reapPatience {
			fate = fateFailed
		}
		if fate == fateOpen {
			left = append(left, g)
			continue
		}
		tally[fate]++
		close(g.done)
	}
	ctr.tellOfGhosts(tally)
	return left, err
}

// fate is what becomes of a ghost.
type fate int

const (
	fateOpen fate = iota // the server could not be asked
	fateKilled
	fateGone
	fateUnproved
	fateFailed
	fates // how many there are
)

// giveUpGhosts is for those that are left behind.
func (ctr *connector) giveUpGhosts(ghosts []*ghost) {
	for _, g := range ghosts {
		close(g.done)
	}
	ctr.tellOfGhosts([fates]int{fateFailed: len(ghosts)})
}

// lay ends one ghost. An error is that the server could not be asked. The kill
// itself names the beacon, where there is one, and not whom it was seen to lead
// to.
func (s *side) lay(g *ghost) (fate, error) {
	ctr := s.ctr
	id, f, err := s.find(ctr.life, g.w)
	switch {
	case err != nil && errorNumber(err) == 0:
		return fateOpen, err
	case err != nil, f == unproved: // or it does not answer such questions
		return fateUnproved, nil
	case f == elsewhere && g.tries < maxReapTries:
		g.tries++ // the next connection may meet another server of the same address
		return fateOpen, nil
	case f == elsewhere:
		return fateUnproved, nil
	case f == gone:
		return fateGone, nil
	}
	ctx, cancel := context.WithTimeout(ctr.life, ctr.cfg.PingTimeout)
	defer cancel()
	_, err = s.l.inner.ExecContext(ctx, "KILL "+id, nil)
	now := ctr.clock.now()
	ctr.cfg.logger().Debug("livepool: killing what an abandoned connection left on the server",
		slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(g.w.hello.threadID)), slog.String("id_on_server", id),
		slog.Duration("age", now-g.w.born), slog.Duration("abandoned", now-g.since), slog.Any("error", err))
	switch number := errorNumber(err); {
	case err == nil:
		return fateKilled, nil
	case number == noSuchThread:
		return fateGone, nil
	case number != 0:
		return fateFailed, nil
	}
	return fateOpen, err
}

// noSuchThread is ER_NO_SUCH_THREAD.
const noSuchThread = 1094

// tellOfGhosts counts what became of some, and tells the operator.
func (ctr *connector) tellOfGhosts(tally [fates]int) {
	st, log := &ctr.stats, ctr.cfg.logger()
	st.killed.Add(int64(tally[fateKilled]))
	st.killUnneeded.Add(int64(tally[fateGone]))
	st.killUnproved.Add(int64(tally[fateUnproved]))
	st.killFailed.Add(int64(tally[fateFailed]))
	if n := tally[fateKilled]; n > 0 {
		log.Info("livepool: killed what abandoned connections left on the server", slog.String("addr", ctr.addr), slog.Int("connections", n))
	}
	if n := tally[fateUnproved]; n > 0 {
		level := slog.LevelWarn
		if ctr.reaper.warned.Swap(true) {
			level = slog.LevelDebug
		}
		log.Log(context.Background(), level, "livepool: abandoned connections are not killed, because no thread of the server can be proved to be theirs; "+
			"they may hold their locks until wait_timeout: see Beacon (pool_beacon)", slog.String("addr", ctr.addr), slog.Int("connections", n))
	}
	if n := tally[fateFailed]; n > 0 {
		log.Warn("livepool: abandoned connections may still be at work on the server, which refuses to kill them or could not be asked",
			slog.String("addr", ctr.addr), slog.Int("connections", n))
	}
}
