// orphans.go ends what an abandoned connection leaves on the server: a statement
// that goes on, a transaction and its locks, for up to wait_timeout. It needs
// proof of which thread that is, and kills nothing without.

package connector

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// orphan is the server's side of an abandoned connection.
type orphan struct {
	conn  *serverSide
	since time.Duration
	inTx  bool          // a transaction was open: it holds locks, and a unit may wait for its end
	done  chan struct{} // closed when there is nothing more to be done about it

	// Only the reaper's goroutine touches what follows, but for due, which is zero
	// until then.
	due              time.Duration // when to ask the server
	retryAfter       time.Duration // since it could not be asked, to the next time
	wrongServerTries int           // that met another server
	killSent         bool          // a KILL was sent
	batchMisses      int           // how often that was together with others, and one of them was gone already
}

// AwaitOrphan waits until the ghost that a unit has left, if it has, is dealt with,
// for a while. It waits for the server too, if that cannot be reached.
func (ctr *Connector) AwaitOrphan(ctx context.Context, o *orphan) {
	if o == nil {
		return
	}
	ctr.Outage.addWaiters(ctr, 1)
	defer ctr.Outage.addWaiters(ctr, -1)
	clock.Wait(ctx, o.done, ctr.Cfg.PingTimeout)
}

// abandon is for a connection whose server may still be working for it.
func (c *conn) abandon() {
	o := c.ctr.abandon(&c.link, c.transaction.open)
	if unit := c.transaction.unit; unit != nil && o != nil {
		unit.Orphan.Store(o)
	}
}

// abandon has the server's side of a link that was given up ended, in the
// background. Nothing can be done, and nil is returned, for one that livepool
// has not dialled.
func (ctr *Connector) abandon(l *link, inTx bool) *orphan {
	if !ctr.Cfg.KillAbandoned || !ctr.IsMySQL || l.threadID() == 0 || l.serverSide == nil || l.serverSide.abandoned.Swap(true) {
		return nil
	}
	o := &orphan{conn: l.serverSide, since: ctr.clock.Now(), inTx: inTx, done: make(chan struct{})}
	if !ctr.reaper.add(o, func() bool { return ctr.spawn(ctr.reap) }) {
		ctr.failOrphans([]*orphan{o})
	}
	return o
}

// outcome is what becomes of a ghost.
type outcome int

const (
	outcomeKilled outcome = iota
	outcomeAlreadyGone
	outcomeUnproven
	outcomeFailed
	outcomes // how many there are
)

// finish notes what has become of a ghost. Of one to which a KILL was sent that may
// have been it.
func (o *orphan) finish(f outcome, tally *[outcomes]int) {
	if f == outcomeAlreadyGone && o.killSent {
		f = outcomeKilled
	}
	tally[f]++
	close(o.done)
}

// failOrphans is for those that are left behind.
func (ctr *Connector) failOrphans(orphans []*orphan) {
	var tally [outcomes]int
	for _, o := range orphans {
		o.finish(outcomeFailed, &tally)
	}
	ctr.reportOrphans(tally)
}

// killBatch looks for the threads of some ghosts, and kills those that are there. It
// returns those that are left, whether because another server is to be asked, and
// why this one could not be.
func (s *side) killBatch(batch []*orphan, tally *[outcomes]int) (left []*orphan, otherServer bool, err error) {
	ws := make([]*serverSide, len(batch))
	for i, o := range batch {
		ws[i] = o.conn
	}
	found, err := s.findThreads(s.ctr.Ctx, ws)
	if err != nil && mysqlerr.Number(err) == 0 {
		return batch, false, err
	}
	var present []*orphan
	var ids []string
	for i, o := range batch {
		f := threadUnknown
		if err == nil { // it may be a server that does not answer such questions
			f = found[i].threadState
		}
		switch {
		case f == threadOnOtherServer && o.wrongServerTries < maxWrongServerTries:
			o.wrongServerTries++ // the next connection may meet another server of the same address
			o.due = s.ctr.clock.Now() + reapRetryMin
			left, otherServer = append(left, o), true
		case f == threadOnOtherServer, f == threadUnknown:
			o.finish(outcomeUnproven, tally)
		case f == threadNotFound:
			o.finish(outcomeAlreadyGone, tally)
		default:
			present, ids = append(present, o), append(ids, found[i].id)
		}
	}
	remaining, err := s.kill(present, ids, tally)
	return append(left, remaining...), otherServer, err
}

// kill kills the threads of some ghosts, together if it can: what answers late
// would else be given up faster than it is killed. The KILL itself names the
// beacon, where there is one, and not whom it was seen to lead to.
func (s *side) kill(orphans []*orphan, ids []string, tally *[outcomes]int) (left []*orphan, err error) {
	if len(orphans) > 1 && s.allowsMultiStatements() && !slices.ContainsFunc(orphans, func(o *orphan) bool { return o.batchMisses > 1 }) {
		err := s.sendKill(orphans, "KILL "+strings.Join(ids, "; KILL "))
		switch number := mysqlerr.Number(err); {
		case err == nil:
			for _, o := range orphans {
				o.finish(outcomeKilled, tally)
			}
			return nil, nil
		case number == 0:
			return orphans, err
		case number == noSuchThread: // one was gone, and those after it were not tried
			for _, o := range orphans {
				o.batchMisses++
				o.killSent = true
			}
			return orphans, nil
		}
	}
	for i, o := range orphans {
		err := s.sendKill(orphans[i:i+1], "KILL "+ids[i])
		switch number := mysqlerr.Number(err); {
		case err == nil:
			o.finish(outcomeKilled, tally)
		case number == noSuchThread:
			o.finish(outcomeAlreadyGone, tally)
		case number != 0:
			o.finish(outcomeFailed, tally)
		default:
			return orphans[i:], err
		}
	}
	return nil, nil
}

// sendKill sends a KILL of some ghosts.
func (s *side) sendKill(orphans []*orphan, query string) error {
	ctr := s.ctr
	ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.PingTimeout)
	defer cancel()
	_, err := s.link.driverConn.ExecContext(ctx, query, nil)
	now := ctr.clock.Now()
	for _, o := range orphans {
		ctr.Cfg.Log.Debug("livepool: killing what an abandoned connection left on the server",
			slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(o.conn.Handshake.ThreadID)), slog.String("query", query),
			slog.Duration("age", now-o.conn.bornAt), slog.Duration("abandoned", now-o.since), slog.Any("error", err))
	}
	return err
}

// noSuchThread is ER_NO_SUCH_THREAD.
const noSuchThread = 1094

// reportOrphans counts what became of some, and tells the operator.
func (ctr *Connector) reportOrphans(tally [outcomes]int) {
	st, log := &ctr.Stats, ctr.Cfg.Log
	st.Killed.Add(int64(tally[outcomeKilled]))
	st.KillUnneeded.Add(int64(tally[outcomeAlreadyGone]))
	st.KillUnproved.Add(int64(tally[outcomeUnproven]))
	st.KillFailed.Add(int64(tally[outcomeFailed]))
	if n := tally[outcomeKilled]; n > 0 {
		log.Info("livepool: killed what abandoned connections left on the server", slog.String("addr", ctr.addr), slog.Int("connections", n))
	}
	if n := tally[outcomeUnproven]; n > 0 {
		level := slog.LevelDebug
		if ctr.reaper.unprovenWarn.allow(ctr.clock.Now()) {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "livepool: abandoned connections are not killed, because no thread of the server can be proved to be theirs; "+
			"they may hold their locks until wait_timeout: see Beacon (pool_beacon)", slog.String("addr", ctr.addr), slog.Int("connections", n))
	}
	if n := tally[outcomeFailed]; n > 0 {
		log.Warn("livepool: abandoned connections may still be at work on the server, which refuses to kill them or could not be asked",
			slog.String("addr", ctr.addr), slog.Int("connections", n))
	}
}
