// orphans.go kills what an abandoned connection leaves on the server: a statement that
// still runs, or a transaction with its locks, for up to wait_timeout. It kills a
// thread only with proof that it is the connection's.

package proclist

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/trace"
)

// Orphan is the server's thread of an abandoned connection. The fields up to the blank
// line do not change.
type Orphan struct {
	thread *Thread
	since  time.Duration
	inTx   bool          // a transaction was open: it holds locks, and a unit may wait for its end
	done   chan struct{} // closed when there is nothing more to be done about it

	// Only the reaper's goroutine writes what follows.
	due              time.Duration // when to ask the server; zero: at once
	retryAfter       time.Duration // the current pause, 0 for none; see pause
	wrongServerTries int           // how often another server answered
	killSent         bool          // a KILL was sent
	batchMisses      int           // how often a KILL of several failed because one of them was gone
}

// Host is the number of its host.
func (o *Orphan) Host() int { return o.thread.Host }

// pause puts it off, each time for longer.
func (o *Orphan) pause(now time.Duration) {
	o.retryAfter = min(max(2*o.retryAfter, reapRetryFirst), reapRetryLongest)
	o.due = now + o.retryAfter
}

// Done is closed when there is nothing more to be done about it.
func (o *Orphan) Done() <-chan struct{} { return o.done }

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
func (o *Orphan) finish(f outcome, tally *[outcomes]int) {
	if f == outcomeAlreadyGone && o.killSent {
		f = outcomeKilled
	}
	tally[f]++
	close(o.done)
}

// fail gives up those that cannot be dealt with.
func (r *Reaper) fail(orphans []*Orphan) {
	var tally [outcomes]int
	for _, o := range orphans {
		o.finish(outcomeFailed, &tally)
	}
	r.report(tally)
}

// killBatch looks for the threads of a batch and kills those that it finds. It returns
// those that are left, whether another server must be asked, and the error if this one
// could not be.
func (r *Reaper) killBatch(s *Side, batch []*Orphan, tally *[outcomes]int) (left []*Orphan, otherServer bool, err error) {
	ws := make([]*Thread, len(batch))
	for i, o := range batch {
		ws[i] = o.thread
	}
	found, err := s.findThreads(r.Ctx, r.PingTimeout, ws)
	if err != nil && mysqlerr.Number(err) == 0 {
		return batch, false, err
	}
	var present []*Orphan
	var ids []string
	for i, o := range batch {
		f := threadUnknown
		if err == nil { // else the server refused the question
			f = found[i].threadState
		}
		switch {
		case f == threadOnOtherServer && o.wrongServerTries < maxWrongServerTries:
			o.wrongServerTries++ // the next connection may meet another server of the same address
			o.due = r.Clock.Now() + reapRetryFirst
			left, otherServer = append(left, o), true
		case f == threadOnOtherServer, f == threadUnknown:
			o.finish(outcomeUnproven, tally)
		case f == threadNotFound:
			o.finish(outcomeAlreadyGone, tally)
		case f == threadCommitting: // it ends by itself
			o.pause(r.Clock.Now())
			left = append(left, o)
		default:
			present, ids = append(present, o), append(ids, found[i].id)
		}
	}
	remaining, err := r.kill(s, present, ids, tally)
	return append(left, remaining...), otherServer, err
}

// kill kills the threads of a batch, together if the connection takes several statements:
// on a slow server connections would otherwise be abandoned faster than they are killed. Where there is a beacon the KILL names its holder, not the id that was seen.
func (r *Reaper) kill(s *Side, orphans []*Orphan, ids []string, tally *[outcomes]int) (left []*Orphan, err error) {
	if len(orphans) > 1 && s.allowsMultiStatements() && !slices.ContainsFunc(orphans, func(o *Orphan) bool { return o.batchMisses > 1 }) {
		err := r.sendKill(s, orphans, "KILL "+strings.Join(ids, "; KILL "))
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
		err := r.sendKill(s, orphans[i:i+1], "KILL "+ids[i])
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
func (r *Reaper) sendKill(s *Side, orphans []*Orphan, query string) error {
	ctx, cancel := context.WithTimeout(r.Ctx, r.PingTimeout)
	defer cancel()
	_, err := s.Conn.ExecContext(ctx, query, nil)
	now := r.Clock.Now()
	for _, o := range orphans {
		r.Log.Debug("livepool: killing what an abandoned connection left on the server",
			slog.String("addr", r.Addr), o.thread.logID(), slog.String("query", query),
			slog.Duration("age", now-o.thread.BornAt), slog.Duration("abandoned", now-o.since), slog.Any("error", err))
	}
	return err
}

// noSuchThread is ER_NO_SUCH_THREAD.
const noSuchThread = 1094

// report counts the outcomes and logs them.
func (r *Reaper) report(tally [outcomes]int) {
	st, log := r.Counters, r.Log
	st.Killed.Add(int64(tally[outcomeKilled]))
	st.KillUnneeded.Add(int64(tally[outcomeAlreadyGone]))
	st.KillUnproved.Add(int64(tally[outcomeUnproven]))
	st.KillFailed.Add(int64(tally[outcomeFailed]))
	if tally != [outcomes]int{} {
		r.Trace(trace.Kill{Addr: r.Addr, Killed: tally[outcomeKilled], Gone: tally[outcomeAlreadyGone], Unproved: tally[outcomeUnproven], Failed: tally[outcomeFailed]})
	}
	if n := tally[outcomeKilled]; n > 0 {
		log.Info("livepool: killed what abandoned connections left on the server", slog.String("addr", r.Addr), slog.Int("connections", n))
	}
	if n := tally[outcomeUnproven]; n > 0 {
		level := slog.LevelDebug
		if r.unprovenWarn.allow(r.Clock.Now()) {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "livepool: abandoned connections are not killed, because no thread of the server can be proved to be theirs; "+
			"they may hold their locks until wait_timeout: see Beacon (pool_beacon)", slog.String("addr", r.Addr), slog.Int("connections", n))
	}
	if n := tally[outcomeFailed]; n > 0 {
		log.Warn("livepool: abandoned connections may still be at work on the server, which refuses to kill them or could not be asked",
			slog.String("addr", r.Addr), slog.Int("connections", n))
	}
}
