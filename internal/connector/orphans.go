// orphans.go kills what an abandoned connection leaves on the server: a statement that
// still runs, or a transaction with its locks, for up to wait_timeout. It kills a
// thread only with proof that it is the connection's.

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

	// Only the reaper's goroutine writes what follows.
	due              time.Duration // when to ask the server; zero: at once
	retryAfter       time.Duration // the current pause, after the server could not be asked
	wrongServerTries int           // how often another server answered
	killSent         bool          // a KILL was sent
	batchMisses      int           // how often a KILL of several failed because one of them was gone
}

// AwaitOrphan waits until the orphan that a unit left, nil for none, is dealt with, for
// PingTimeout at most. It counts as waiting for the server, so that the prober dials.
func (ctr *Connector) AwaitOrphan(ctx context.Context, o *orphan) {
	if o == nil {
		return
	}
	defer ctr.Outage.Join()()
	clock.Wait(ctx, o.done, ctr.Cfg.PingTimeout)
}

// abandon hands what the connection may have left on the server to the reaper.
func (c *conn) abandon() {
	o := c.ctr.abandon(&c.link, c.transaction.open)
	if unit := c.transaction.unit; unit != nil && o != nil {
		unit.Orphan.Store(o)
	}
}

// abandon has the server's thread of a link that was given up killed, in the
// background. It returns nil where that cannot be done: for a link that livepool did
// not dial, or with KillAbandoned off.
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

// outcome is what became of an orphan.
type outcome int

const (
	outcomeKilled outcome = iota
	outcomeAlreadyGone
	outcomeUnproven
	outcomeFailed
	outcomes // how many there are
)

// finish counts the outcome. An orphan that is gone after a KILL was sent counts as
// killed.
func (o *orphan) finish(f outcome, tally *[outcomes]int) {
	if f == outcomeAlreadyGone && o.killSent {
		f = outcomeKilled
	}
	tally[f]++
	close(o.done)
}

// failOrphans gives up those that cannot be dealt with.
func (ctr *Connector) failOrphans(orphans []*orphan) {
	var tally [outcomes]int
	for _, o := range orphans {
		o.finish(outcomeFailed, &tally)
	}
	ctr.reportOrphans(tally)
}

// killBatch looks for the threads of a batch and kills those that it finds. It returns
// those that are left, whether another server must be asked, and the error if this one
// could not be.
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
		if err == nil { // else the server refused the question
			f = found[i].threadState
		}
		switch {
		case f == threadOnOtherServer && o.wrongServerTries < maxWrongServerTries:
			o.wrongServerTries++ // the next connection may meet another server of the same address
			o.due = s.ctr.clock.Now() + reapRetryFirst
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

// kill kills the threads of a batch, together if the connection takes several
// statements: on a slow server they would otherwise be abandoned faster than they are
// killed. Where there is a beacon the KILL names its holder, not the id that was seen.
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
		case number == noSuchThread: // one was gone; those after it were not tried
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

// sendKill sends one KILL for the batch, and logs it.
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

// reportOrphans counts the outcomes and logs them.
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
