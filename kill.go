// kill.go ends what an abandoned connection leaves on the server: a statement
// that goes on, a transaction and its locks, for up to wait_timeout. It needs
// proof of which thread that is, and kills nothing without.

package livepool

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// ghost is the server's side of an abandoned connection.
type ghost struct {
	w     *site
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
	if !ctr.cfg.KillAbandoned || !ctr.mysql || l.threadID() == 0 || l.site == nil || l.site.forsaken.Swap(true) {
		return nil
	}
	g := &ghost{w: l.site, since: ctr.clock.now(), inTx: inTx, done: make(chan struct{})}
	if !ctr.reaper.takes(g, func() bool { return ctr.spawn(ctr.reap) }) {
		ctr.giveUpGhosts([]*ghost{g})
	}
	return g
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
	ws := make([]*site, len(batch))
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
		ctr.cfg.Log.Debug("livepool: killing what an abandoned connection left on the server",
			slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(g.w.hello.threadID)), slog.String("query", query),
			slog.Duration("age", now-g.w.born), slog.Duration("abandoned", now-g.since), slog.Any("error", err))
	}
	return err
}

// noSuchThread is ER_NO_SUCH_THREAD.
const noSuchThread = 1094

// tellOfGhosts counts what became of some, and tells the operator.
func (ctr *connector) tellOfGhosts(tally [fates]int) {
	st, log := &ctr.stats, ctr.cfg.Log
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
