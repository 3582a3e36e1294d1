// stall.go asks the server about statements that have had no reply for a while: is the
// server slow, or is the connection dead? No timeout can decide that: a black hole
// behind a proxy or NAT acknowledges nothing and closes nothing, and a healthy statement
// may take hours.

package connector

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// stallWatch is what the maintainer knows of a read that waits. Only its goroutine uses
// it, and checkStalls while checkingStalls is set.
type stallWatch struct {
	reads            uint64        // the number of the read that waits
	since            time.Duration // since when it waits, at the latest
	nextCheck        time.Duration // when to ask the server
	idleChecks       int           // how often in a row the thread was idle or gone
	wrongServerTries int           // how often in a row another server of the address was asked
}

// minUploadRate is the least rate, in bytes a second, at which a long statement is
// assumed to be sent.
const minUploadRate = 64 << 10

// stallError is why a connection was aborted: its reply will not come.
type stallError struct {
	waited time.Duration
	thread uint32
	found  threadState
}

func (e *stallError) Error() string {
	state := "is idle"
	if e.found == threadNotFound {
		state = "is gone"
	}
	return fmt.Sprintf("no reply for %s, while on the server thread %d of this connection %s (pool_stall_after)",
		e.waited.Round(time.Millisecond), e.thread, state)
}

// Unwrap is what the kernel says of a peer that no longer answers.
func (e *stallError) Unwrap() error { return syscall.ETIMEDOUT }

// findStalls looks at every connection that waits for a reply, and has the server asked
// about those that have waited for StallAfter. It returns how long until it must run
// again. It costs a statement two increments in wire.Read.
func (m *maintainer) findStalls(all []*conn) time.Duration {
	after := m.ctr.Cfg.StallAfter
	if after == 0 || !m.ctr.IsMySQL || !m.ctr.ownDialer {
		return clock.Never
	}
	nextRound := max(after/4, time.Millisecond)
	if m.checkingStalls.Load() {
		return nextRound
	}
	var stalled []*serverSide
	now := m.ctr.clock.Now()
	for _, c := range all {
		w := c.currentWire.Load()
		if w == nil {
			continue
		}
		read := w.Reads.Load()
		switch v := &w.stallWatch; {
		case read%2 == 0:
		case read != v.reads:
			// The thread is idle until the whole statement has arrived.
			upload := time.Duration(w.BytesSinceRead.Load()/minUploadRate) * time.Second
			*v = stallWatch{reads: read, since: now, nextCheck: addClamped(now, after, upload)}
		case now >= v.nextCheck:
			stalled = append(stalled, w)
		}
	}
	if len(stalled) > 0 {
		m.checkingStalls.Store(true)
		if !m.ctr.spawn(func() {
			m.checkStalls(stalled)
			m.checkingStalls.Store(false)
		}) {
			m.checkingStalls.Store(false)
		}
	}
	return nextRound
}

// checkStalls asks the server for the threads of the connections that wait. A connection
// whose thread works on nothing in two checks in a row is aborted; the reader that waits
// decides what follows.
func (m *maintainer) checkStalls(stalled []*serverSide) {
	ctr := m.ctr
	all, err := ctr.findThreads(stalled)
	for i, w := range stalled {
		found := threadUnknown
		if err == nil {
			found = all[i].threadState
		}
		v, now := &w.stallWatch, ctr.clock.Now()
		switch {
		case err != nil:
			v.nextCheck = now // not checked
		case w.facts.isReplyLost(found, w):
			v.nextCheck, v.wrongServerTries = now, 0
			v.idleChecks++
			if v.idleChecks > 1 && w.Abort(v.reads, &stallError{now - v.since, w.Handshake.ThreadID, found}, func() { ctr.Stats.Stalled.Add(1) }) {
				ctr.Cfg.Log.Warn("livepool: a connection is dead in the middle of a statement: "+(*w.AbortErr.Load()).Error(),
					slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(w.Handshake.ThreadID)))
			}
		case found == threadOnOtherServer && v.wrongServerTries < maxWrongServerTries:
			v.wrongServerTries++
			v.nextCheck = now // the next connection may meet another server of the same address
		default:
			if found == threadRunning {
				v.idleChecks = 0
			}
			v.wrongServerTries = 0
			v.nextCheck = addClamped(now, ctr.Cfg.StallAfter, 0)
		}
	}
}

// warnStallCheckFailed warns that statements without a reply cannot be looked up
// although the server can be reached: it accepts no further connection and none of the
// pool's is idle, or none of its threads can be proved to be ours.
func (ctr *Connector) warnStallCheckFailed(stalled []*serverSide, all []foundThread, err error) {
	cause := err
	for i, f := range all {
		if f.threadState == threadUnknown && stalled[i].beacon == "" {
			cause = errNoBeacon
		}
	}
	if cause == nil || cause == err && mysqlerr.Number(err) == 0 || !ctr.reaper.stallCheckWarn.allow(ctr.clock.Now()) {
		return
	}
	ctr.Cfg.Log.Warn("livepool: statements that have had no reply for StallAfter (pool_stall_after) cannot be looked up on the server, "+
		"so that it is not noticed if the connection of one is dead",
		slog.String("addr", ctr.addr), slog.Int("statements", len(stalled)), slog.Any("cause", cause))
}

var errNoBeacon = errors.New("no thread of the server can be proved to be the connection's: see Beacon (pool_beacon)")

// findThreads asks the server what the threads of connections that wait are doing.
func (ctr *Connector) findThreads(stalled []*serverSide) (all []foundThread, err error) {
	ctr.Stats.StallChecks.Add(int64(len(stalled)))
	s, err := ctr.openOrBorrowSide(ctr.Ctx)
	if err == nil {
		if all, err = s.findThreads(ctr.Ctx, stalled); driverconn.IsAnswer(err) {
			s.close(nil)
		} else {
			s.close(err)
		}
	}
	ctr.warnStallCheckFailed(stalled, all, err)
	return all, err
}

// slowCommits are the connections whose COMMIT or ROLLBACK has reached CommitTimeout.
// One goroutine asks about all of them, by one connection, because what delays one
// usually delays all.
type slowCommits struct {
	mu       sync.Mutex // guards what follows
	waiting  []*slowCommit
	checking bool // checkSlowCommits is under way

	slowWarn warnLimiter
}

// slowCommit is one of them. Only checkSlowCommits writes it.
type slowCommit struct {
	conn             *serverSide
	working          chan bool // gets the answer
	wrongServerTries int       // checks that reached another server of the address
}

// isWorkingOn asks whether the server works on what a connection has sent.
func (ctr *Connector) isWorkingOn(w *serverSide) bool {
	h, q := &ctr.slowCommits, &slowCommit{conn: w, working: make(chan bool, 1)}
	h.mu.Lock()
	h.waiting = append(h.waiting, q)
	if !h.checking {
		h.checking = ctr.spawn(ctr.checkSlowCommits)
	}
	checking := h.checking
	h.mu.Unlock()
	if !checking {
		return false
	}
	select {
	case working := <-q.working:
		if working && h.slowWarn.allow(ctr.clock.Now()) {
			ctr.Cfg.Log.Warn("livepool: a COMMIT or ROLLBACK has had no reply for CommitTimeout (pool_commit_timeout); "+
				"it is waited for, since the server is seen to work on it, as under FLUSH TABLES WITH READ LOCK",
				slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(w.Handshake.ThreadID)))
		}
		return working
	case <-ctr.Ctx.Done():
		return false
	}
}

// checkSlowCommits answers the callers of isWorkingOn, until none waits.
func (ctr *Connector) checkSlowCommits() {
	h := &ctr.slowCommits
	for {
		h.mu.Lock()
		batch := h.waiting
		h.waiting = nil
		h.checking = len(batch) > 0
		h.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		ws := make([]*serverSide, len(batch))
		for i, q := range batch {
			ws[i] = q.conn
		}
		all, err := ctr.findThreads(ws)
		for i, q := range batch {
			if err == nil && all[i].threadState == threadOnOtherServer && q.wrongServerTries < maxWrongServerTries {
				q.wrongServerTries++ // the next connection may meet another server of the same address
				h.mu.Lock()
				h.waiting = append(h.waiting, q)
				h.mu.Unlock()
				continue
			}
			q.working <- err == nil && all[i].threadState == threadRunning
		}
	}
}

// isReplyLost says whether the state of the thread proves that the reply will not come.
// A proxy that speaks SQL may have sent the statement to another server than the one
// that was asked. With a thread pool a statement waits unread for a worker while its
// connection looks idle, and the queue that the server shows is not complete.
func (f *serverFacts) isReplyLost(found threadState, w *serverSide) bool {
	return f.isHandshakeID(w.Conn) && (found == threadNotFound || found == threadIdle && !f.threadPool)
}

// addClamped is a sum that does not exceed clock.Never.
func addClamped(now, d, more time.Duration) time.Duration {
	if d > clock.Never-now-more {
		return clock.Never
	}
	return now + d + more
}

// stalledFor is how long the reply had been waited for, if err is the abort of a stalled
// connection.
func stalledFor(err error) (time.Duration, bool) {
	var stall *stallError
	if errors.As(err, &stall) {
		return stall.waited, true
	}
	return 0, false
}
