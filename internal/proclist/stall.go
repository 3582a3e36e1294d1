// stall.go asks the server about statements that have had no reply for a while: is the
// server slow, or is the connection dead? No timeout can decide that: a black hole
// behind a proxy or NAT acknowledges nothing and closes nothing, and a healthy statement
// may take hours.

package proclist

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// Stalls asks the server about connections that wait for a reply.
type Stalls struct {
	*Env
	After time.Duration // how long a reply is waited for before the server is asked; 0: it never is

	checking    atomic.Bool // check is under way; Look sets it, and what it starts clears it
	cannotCheck warnLimiter // for statements that cannot be looked up
	slow        slowCommits
}

// stallWatch is what is known of a read that waits. Look uses it while checking is not
// set, and check while it is.
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

// Look looks at every connection that waits for a reply, and has the server asked about
// those that have waited for After. It returns how long until it must run again; one
// goroutine calls it. It costs a statement two increments in wire.Read.
func (s *Stalls) Look(all iter.Seq[*Thread]) time.Duration {
	if s.After == 0 {
		return clock.Never
	}
	nextRound := max(s.After/4, time.Millisecond)
	if s.checking.Load() {
		return nextRound
	}
	var stalled []*Thread
	now := s.Clock.Now()
	for w := range all {
		read := w.Reads.Load()
		switch v := &w.stallWatch; {
		case read%2 == 0:
		case read != v.reads:
			// The thread is idle until the whole statement has arrived.
			upload := time.Duration(w.BytesSinceRead.Load()/minUploadRate) * time.Second
			*v = stallWatch{reads: read, since: now, nextCheck: clock.Add(now, s.After, upload)}
		case now >= v.nextCheck:
			stalled = append(stalled, w)
		}
	}
	if len(stalled) > 0 {
		s.checking.Store(true)
		if !s.Spawn(func() {
			s.check(stalled)
			s.checking.Store(false)
		}) {
			s.checking.Store(false)
		}
	}
	return nextRound
}

// check asks the server for the threads of the connections that wait. A connection whose
// thread works on nothing in two checks in a row is aborted; the reader that waits decides
// what follows.
func (s *Stalls) check(stalled []*Thread) {
	all, err := s.findThreads(stalled)
	for i, w := range stalled {
		found := threadUnknown
		if err == nil {
			found = all[i].threadState
		}
		v, now := &w.stallWatch, s.Clock.Now()
		switch {
		case err != nil:
			v.nextCheck = now // not checked
		case w.isReplyLost(found):
			v.nextCheck, v.wrongServerTries = now, 0
			v.idleChecks++
			if v.idleChecks > 1 && w.Abort(v.reads, &stallError{now - v.since, w.Handshake.ThreadID, found}, func() { s.Counters.Stalled.Add(1) }) {
				s.Log.Debug("livepool: a connection is dead in the middle of a statement: "+(*w.AbortErr.Load()).Error(),
					slog.String("addr", s.Addr), w.logID())
			}
		case found == threadOnOtherServer && v.wrongServerTries < maxWrongServerTries:
			v.wrongServerTries++
			v.nextCheck = now // the next connection may meet another server of the same address
		default:
			if found.isAtWork() {
				v.idleChecks = 0
			}
			v.wrongServerTries = 0
			v.nextCheck = clock.Add(now, s.After, 0)
		}
	}
}

// warnCannotCheck warns that statements without a reply cannot be looked up although the
// server can be reached: it accepts no further connection and none of the pool's is idle,
// or none of its threads can be proved to be ours.
func (s *Stalls) warnCannotCheck(stalled []*Thread, all []foundThread, err error) {
	cause := err
	for i, f := range all {
		if f.threadState == threadUnknown && stalled[i].Beacon == "" {
			cause = errNoBeacon
		}
	}
	if cause == nil || cause == err && mysqlerr.Number(err) == 0 || !s.cannotCheck.allow(s.Clock.Now()) {
		return
	}
	s.Log.Warn("livepool: statements that have had no reply for StallAfter (pool_stall_after) cannot be looked up on the server, "+
		"so that it is not noticed if the connection of one is dead",
		slog.String("addr", s.Addr), slog.Int("statements", len(stalled)), slog.Any("cause", cause))
}

var errNoBeacon = errors.New("no thread of the server can be proved to be the connection's: see Beacon (pool_beacon)")

// findThreads asks the server what the threads of connections that wait are doing.
func (s *Stalls) findThreads(stalled []*Thread) (all []foundThread, err error) {
	s.Counters.StallChecks.Add(int64(len(stalled)))
	side, err := s.OpenSide(s.Ctx)
	if err == nil {
		if all, err = side.findThreads(s.Ctx, s.PingTimeout, stalled); driverconn.IsAnswer(err) {
			side.Close(nil)
		} else {
			side.Close(err)
		}
	}
	s.warnCannotCheck(stalled, all, err)
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
	thread           *Thread
	working          chan bool // gets the answer
	wrongServerTries int       // checks that reached another server of the address
}

// IsWorkingOn asks whether the server works on what a connection has sent.
func (s *Stalls) IsWorkingOn(w *Thread) bool {
	h, q := &s.slow, &slowCommit{thread: w, working: make(chan bool, 1)}
	h.mu.Lock()
	h.waiting = append(h.waiting, q)
	if !h.checking {
		h.checking = s.Spawn(s.checkSlowCommits)
	}
	checking := h.checking
	h.mu.Unlock()
	if !checking {
		return false
	}
	select {
	case working := <-q.working:
		if working && h.slowWarn.allow(s.Clock.Now()) {
			s.Log.Warn("livepool: a COMMIT or ROLLBACK has had no reply for CommitTimeout (pool_commit_timeout); "+
				"it is waited for, since the server is seen to work on it, as under FLUSH TABLES WITH READ LOCK",
				slog.String("addr", s.Addr), w.logID())
		}
		return working
	case <-s.Ctx.Done():
		return false
	}
}

// checkSlowCommits answers the callers of IsWorkingOn, until none waits.
func (s *Stalls) checkSlowCommits() {
	h := &s.slow
	for {
		h.mu.Lock()
		batch := h.waiting
		h.waiting = nil
		h.checking = len(batch) > 0
		h.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		ws := make([]*Thread, len(batch))
		for i, q := range batch {
			ws[i] = q.thread
		}
		all, err := s.findThreads(ws)
		for i, q := range batch {
			if err == nil && all[i].threadState == threadOnOtherServer && q.wrongServerTries < maxWrongServerTries {
				q.wrongServerTries++ // the next connection may meet another server of the same address
				h.mu.Lock()
				h.waiting = append(h.waiting, q)
				h.mu.Unlock()
				continue
			}
			q.working <- err == nil && all[i].threadState.isAtWork()
		}
	}
}

// isReplyLost says whether the state of the thread proves that the reply will not come.
// A proxy that speaks SQL may have sent the statement to another server than the one
// that was asked. With a thread pool a statement waits unread for a worker while its
// connection looks idle; the queue that the server shows is not complete, and no help.
func (w *Thread) isReplyLost(found threadState) bool {
	return w.Identity.IsHandshakeID(w.Conn) && (found == threadNotFound || found == threadIdle && !w.Identity.ThreadPool)
}

// StalledFor is how long the reply had been waited for, if err is the abort of a stalled
// connection.
func StalledFor(err error) (time.Duration, bool) {
	var stall *stallError
	if errors.As(err, &stall) {
		return stall.waited, true
	}
	return 0, false
}
