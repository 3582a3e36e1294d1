// kill.go ends what an abandoned connection leaves on the server: a statement
// that goes on, a transaction and its locks, for up to wait_timeout. It needs
// proof of which thread that is, and kills nothing without.

package livepool

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ghost is the server's side of an abandoned connection.
type ghost struct {
	w     *wire
	since time.Duration
	inTx  bool          // a transaction was open: it holds locks, and a unit may wait for its end
	done  chan struct{} // closed when there is nothing more to be done about it

	// Only the reaper's goroutine touches what follows, but for due, which is zero
	// until then.
	due    time.Duration // when to ask the server
	pause  time.Duration // since it could not be asked, to the next time
	tries  int           // that met another server
	sent   bool          // a KILL was sent
	missed int           // how often that was together with others, and one of them was gone already
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
	mu      sync.Mutex    // guards what follows
	ghosts  []*ghost      // less those that are being dealt with
	running bool          // the goroutine is there
	idle    chan struct{} // closed when nothing is left to do; nil at first
	wake    chan struct{} // there are more

	unproved seldom // that nothing can be proved is said
	blind    seldom // that statements without a reply cannot be looked up is said
}

// seldom lets a warning through once a minute.
type seldom struct{ last atomic.Int64 }

func (s *seldom) may(now time.Duration) bool {
	last := s.last.Load()
	return (last == 0 || int64(now)-last > int64(time.Minute)) && s.last.CompareAndSwap(last, max(int64(now), 1))
}

// abandoned is for a connection whose server may still be working for it.
func (c *conn) abandoned() {
	g := c.ctr.abandon(&c.link, c.transaction.open)
	if unit := c.transaction.unit; unit != nil && g != nil {
		unit.ghost.Store(g)
	}
}

// abandon has the server's side of a link that was given up ended, in the
// background. Nothing can be done, and nil is returned, for one that livepool
// has not dialled.
func (ctr *connector) abandon(l *link, inTx bool) *ghost {
	if !ctr.cfg.KillAbandoned || !ctr.mysql || l.threadID() == 0 || l.wire.forsaken.Swap(true) {
		return nil
	}
	g := &ghost{w: l.wire, since: ctr.clock.now(), inTx: inTx, done: make(chan struct{})}
	if !ctr.reaper.takes(g, func() bool { return ctr.spawn(ctr.reap) }) {
		ctr.giveUpGhosts([]*ghost{g})
	}
	return g
}

// takes has the goroutine see to a ghost at once, and starts it if it is not
// there.
func (r *reaper) takes(g *ghost, start func() bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.idle == nil || isClosed(r.idle) {
		r.idle = make(chan struct{})
	}
	r.ghosts = append(r.ghosts, g)
	if r.running {
		select {
		case r.wake <- struct{}{}:
		default: // it has been told already
		}
		return true
	}
	r.wake = make(chan struct{}, 1)
	if r.running = start(); !r.running {
		r.ghosts = nil
		close(r.idle)
	}
	return r.running
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
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

// next takes out those that are due, as many as are dealt with at a time: first
// those with a transaction, and the newest, who are the likeliest to be waited
// for. If none is due it returns how long not; never if there are none.
func (r *reaper) next(now time.Duration) (batch []*ghost, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.ghosts, func(a, b *ghost) int {
		if a.inTx != b.inTx {
			return map[bool]int{true: -1, false: 1}[a.inTx]
		}
		return cmp.Compare(b.since, a.since)
	})
	wait = never
	left := r.ghosts[:0]
	for _, g := range r.ghosts {
		if g.due <= now && len(batch) < maxReapBatch {
			batch = append(batch, g)
			continue
		}
		left = append(left, g)
		wait = min(wait, max(g.due-now, 0))
	}
	clear(r.ghosts[len(left):])
	r.ghosts = left
	return batch, wait
}

// returns puts back those that are left of a batch, and tells those who wait for
// the end of all work if nothing is.
func (r *reaper) returns(left []*ghost) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ghosts = append(r.ghosts, left...)
	if len(r.ghosts) == 0 && !isClosed(r.idle) {
		close(r.idle)
	}
}

// retryNow makes all due, since the server can be asked again.
func (r *reaper) retryNow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.ghosts {
		if g.pause > 0 {
			g.due, g.pause = 0, 0
		}
	}
}

// leaves ends the goroutine, unless there are more by now.
func (r *reaper) leaves() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = len(r.ghosts) > 0
	return !r.running
}

// How soon the server is asked again, and for how long, about ghosts that it
// could not be asked about.
const (
	maxReapTries = 6  // of servers behind one address
	maxReapBatch = 64 // that are dealt with at a time
	maxBorrowed  = 8  // with a connection of the pool's, which somebody may wait for
	reapSpacing  = 20 * time.Millisecond
	reapAtFirst  = 50 * time.Millisecond
	reapLongest  = 2 * time.Second
	outagePause  = time.Second
	reapPatience = time.Hour
)

// reap ends the ghosts, as soon as the server can be reached. The connection for
// it is kept as long as there is work, and a little longer: where callers give up
// all the time it is not opened for each.
func (ctr *connector) reap() {
	r := &ctr.reaper
	var s *side
	failed, lingered := -never, false // failed: when the server could last not be asked
	for ctr.life.Err() == nil {
		now := ctr.clock.now()
		if pause := failed + outagePause - now; failed > 0 && pause > 0 && ctr.outage.isDown() {
			ctr.awaitGhost(pause)
			continue
		}
		batch, wait := r.next(now)
		switch {
		case len(batch) > 0:
			var err error
			if s, err = ctr.reapBatch(s, batch); err != nil {
				failed = ctr.clock.now()
				waitFor(ctr.life, nil, reapAtFirst)
			}
			lingered = false
		case s != nil && !lingered:
			lingered = true
			waitFor(ctr.life, r.wake, min(wait, reapSpacing))
		case s != nil:
			s.close(nil)
			s = nil
		case wait < never:
			ctr.awaitGhost(wait)
		case r.leaves():
			return
		}
	}
	s.close(nil)
	for batch, wait := r.next(never); wait < never || len(batch) > 0; batch, wait = r.next(never) {
		ctr.giveUpGhosts(batch)
		r.returns(nil)
	}
}

// awaitGhost waits for d, for another ghost, or for the end of an outage, after
// which all are tried at once.
func (ctr *connector) awaitGhost(d time.Duration) {
	var over chan struct{}
	if o := &ctr.outage; o.isDown() {
		o.mu.Lock()
		over = o.server.over
		o.mu.Unlock()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctr.reaper.wake:
	case <-over:
		ctr.reaper.retryNow()
	case <-timer.C:
	case <-ctr.life.Done():
	}
}

// reapBatch deals with some ghosts, and puts back those that are left. It returns
// the connection to go on with, nil if there had better be another, and why the
// server could not be asked.
func (ctr *connector) reapBatch(s *side, batch []*ghost) (_ *side, err error) {
	r := &ctr.reaper
	if s == nil {
		if s, err = ctr.reachServer(ctr.life); err == nil {
			r.retryNow()
		}
	}
	var later []*ghost
	if err == nil && s.giveBack != nil && len(batch) > maxBorrowed {
		batch, later = batch[:maxBorrowed], batch[maxBorrowed:]
	}
	left, another := batch, false
	var tally [fates]int
	if err == nil {
		left, another, err = s.deal(batch, &tally)
	}
	if err != nil {
		left = ctr.postpone(left, &tally)
		ctr.cfg.logger().Debug("livepool: what abandoned connections left on the server cannot be ended yet",
			slog.String("addr", ctr.addr), slog.Int("connections", len(left)), slog.Any("cause", err))
	}
	r.returns(append(later, left...))
	ctr.tellOfGhosts(tally)
	if err != nil || another || s.giveBack != nil {
		s.close(err)
		s = nil
	}
	return s, err
}

// postpone is for ghosts about which the server could not be asked: each has a
// pause of its own, which grows.
func (ctr *connector) postpone(ghosts []*ghost, tally *[fates]int) (left []*ghost) {
	now := ctr.clock.now()
	for _, g := range ghosts {
		if now-g.since > reapPatience {
			g.ends(fateFailed, tally)
			continue
		}
		g.pause = min(max(2*g.pause, reapAtFirst), reapLongest)
		g.due = now + g.pause
		left = append(left, g)
	}
	return left
}

// fate is what becomes of a ghost.
type fate int

const (
	fateKilled fate = iota
	fateGone
	fateUnproved
	fateFailed
	fates // how many there are
)

// ends notes what has become of a ghost. Of one to which a KILL was sent that may
// have been it.
func (g *ghost) ends(f fate, tally *[fates]int) {
	if f == fateGone && g.sent {
		f = fateKilled
	}
	tally[f]++
	close(g.done)
}

// giveUpGhosts is for those that are left behind.
func (ctr *connector) giveUpGhosts(ghosts []*ghost) {
	var tally [fates]int
	for _, g := range ghosts {
		g.ends(fateFailed, &tally)
	}
	ctr.tellOfGhosts(tally)
}

// deal looks for the threads of some ghosts, and kills those that are there. It
// returns those that are left, whether because another server is to be asked, and
// why this one could not be.
func (s *side) deal(batch []*ghost, tally *[fates]int) (left []*ghost, another bool, err error) {
	ws := make([]*wire, len(batch))
	for i, g := range batch {
		ws[i] = g.w
	}
	found, err := s.findAll(s.ctr.life, ws)
	if err != nil && errorNumber(err) == 0 {
		return batch, false, err
	}
	var there []*ghost
	var ids []string
	for i, g := range batch {
		f := unproved
		if err == nil { // it may be a server that does not answer such questions
			f = found[i].finding
		}
		switch {
		case f == elsewhere && g.tries < maxReapTries:
			g.tries++ // the next connection may meet another server of the same address
			g.due = s.ctr.clock.now() + reapAtFirst
			left, another = append(left, g), true
		case f == elsewhere, f == unproved:
			g.ends(fateUnproved, tally)
		case f == gone:
			g.ends(fateGone, tally)
		default:
			there, ids = append(there, g), append(ids, found[i].id)
		}
	}
	survivors, err := s.kill(there, ids, tally)
	return append(left, survivors...), another, err
}

// kill kills the threads of some ghosts, together if it can: what answers late
// would else be given up faster than it is killed. The KILL itself names the
// beacon, where there is one, and not whom it was seen to lead to.
func (s *side) kill(ghosts []*ghost, ids []string, tally *[fates]int) (left []*ghost, err error) {
	if len(ghosts) > 1 && s.takesSeveral() && !slices.ContainsFunc(ghosts, func(g *ghost) bool { return g.missed > 1 }) {
		err := s.send(ghosts, "KILL "+strings.Join(ids, "; KILL "))
		switch number := errorNumber(err); {
		case err == nil:
			for _, g := range ghosts {
				g.ends(fateKilled, tally)
			}
			return nil, nil
		case number == 0:
			return ghosts, err
		case number == noSuchThread: // one was gone, and those after it were not tried
			for _, g := range ghosts {
				g.missed++
				g.sent = true
			}
			return ghosts, nil
		}
	}
	for i, g := range ghosts {
		err := s.send(ghosts[i:i+1], "KILL "+ids[i])
		switch number := errorNumber(err); {
		case err == nil:
			g.ends(fateKilled, tally)
		case number == noSuchThread:
			g.ends(fateGone, tally)
		case number != 0:
			g.ends(fateFailed, tally)
		default:
			return ghosts[i:], err
		}
	}
	return nil, nil
}

// send sends a KILL of some ghosts.
func (s *side) send(ghosts []*ghost, query string) error {
	ctr := s.ctr
	ctx, cancel := context.WithTimeout(ctr.life, ctr.cfg.PingTimeout)
	defer cancel()
	_, err := s.l.inner.ExecContext(ctx, query, nil)
	now := ctr.clock.now()
	for _, g := range ghosts {
		ctr.cfg.logger().Debug("livepool: killing what an abandoned connection left on the server",
			slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(g.w.hello.threadID)), slog.String("query", query),
			slog.Duration("age", now-g.w.born), slog.Duration("abandoned", now-g.since), slog.Any("error", err))
	}
	return err
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
		level := slog.LevelDebug
		if ctr.reaper.unproved.may(ctr.clock.now()) {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "livepool: abandoned connections are not killed, because no thread of the server can be proved to be theirs; "+
			"they may hold their locks until wait_timeout: see Beacon (pool_beacon)", slog.String("addr", ctr.addr), slog.Int("connections", n))
	}
	if n := tally[fateFailed]; n > 0 {
		log.Warn("livepool: abandoned connections may still be at work on the server, which refuses to kill them or could not be asked",
			slog.String("addr", ctr.addr), slog.Int("connections", n))
	}
}
