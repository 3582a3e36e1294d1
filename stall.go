// stall.go asks the server about statements that have had no reply for a while:
// is it slow, or is its connection dead? No timeout can tell. A black hole behind
// a proxy or NAT acknowledges nothing and closes nothing, and an honest
// statement may take hours.

package livepool

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"
)

// vigil is what the maintainer has seen of one connection's waiting. Nobody
// else touches it.
type vigil struct {
	read   uint64        // the number of the read that waits
	since  time.Duration // from when, at the latest
	next   time.Duration // when to ask the server
	rests  int           // how often in a row it was found not to be working
	misses int           // how often in a row the server that was asked was another one
}

// slowestUpload is the bytes a second at which a long statement is at least
// believed to travel.
const slowestUpload = 64 << 10

// stallError is the end of a connection whose reply will not come.
type stallError struct {
	waited time.Duration
	thread uint32
	found  finding
}

func (e *stallError) Error() string {
	state := "is idle"
	if e.found == gone {
		state = "is gone"
	}
	return fmt.Sprintf("no reply for %s, while on the server thread %d of this connection %s (pool_stall_after)",
		e.waited.Round(time.Millisecond), e.thread, state)
}

// Unwrap is what the kernel says of a peer that has vanished.
func (e *stallError) Unwrap() error { return syscall.ETIMEDOUT }

// lookForStalls looks at every connection that waits for a reply, and has the
// server asked about those that have waited for StallAfter. It returns when to
// look again. What it costs a statement is two counts in wire.Read.
func (m *maintainer) lookForStalls(all []*conn) time.Duration {
	after := m.ctr.cfg.StallAfter
	if after == 0 || !m.ctr.mysql || !m.ctr.tapped {
		return never
	}
	again := max(after/4, time.Millisecond)
	if m.looking.Load() {
		return again
	}
	var late []*site
	now := m.ctr.clock.now()
	for _, c := range all {
		w := c.watched.Load()
		if w == nil {
			continue
		}
		read := w.reads.Load()
		switch v := &w.vigil; {
		case read%2 == 0:
		case read != v.read:
			// The server sleeps as long as a statement is on its way to it.
			upload := time.Duration(w.asked.Load()/slowestUpload) * time.Second
			*v = vigil{read: read, since: now, next: later(now, after, upload)}
		case now >= v.next:
			late = append(late, w)
		}
	}
	if len(late) > 0 {
		m.looking.Store(true)
		if !m.ctr.spawn(func() {
			m.lookUp(late)
			m.looking.Store(false)
		}) {
			m.looking.Store(false)
		}
	}
	return again
}

// lookUp asks the server what it does for the connections that wait. One that
// it does nothing for, at two looks in a row, is given up; what follows from
// that is decided where the reply is waited for.
func (m *maintainer) lookUp(late []*site) {
	ctr := m.ctr
	all, err := ctr.locate(late)
	for i, w := range late {
		found := unproved
		if err == nil {
			found = all[i].finding
		}
		v, now := &w.vigil, ctr.clock.now()
		switch {
		case err != nil:
			v.next = now // no look
		case w.facts.isDeadBy(found, w):
			v.next, v.misses = now, 0
			v.rests++
			if v.rests > 1 && w.condemn(v.read, &stallError{now - v.since, w.hello.threadID, found}, func() { ctr.stats.stalled.Add(1) }) {
				ctr.cfg.Log.Warn("livepool: a connection is dead in the middle of a statement: "+(*w.condemned.Load()).Error(),
					slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(w.hello.threadID)))
			}
		case found == elsewhere && v.misses < maxReapTries:
			v.misses++
			v.next = now // the next connection may meet another server of the same address
		default:
			if found == working {
				v.rests = 0
			}
			v.misses = 0
			v.next = later(now, ctr.cfg.StallAfter, 0)
		}
	}
}

// tellOfBlindness tells the operator that statements could not be looked up though
// the server is there: it takes no connection more and none of the pool's is idle,
// or none of its threads can be proved to be ours.
func (ctr *connector) tellOfBlindness(late []*site, all []located, err error) {
	why := err
	for i, f := range all {
		if f.finding == unproved && late[i].beacon == "" {
			why = errNoBeacon
		}
	}
	if why == nil || why == err && errorNumber(err) == 0 || !ctr.reaper.blind.may(ctr.clock.now()) {
		return
	}
	ctr.cfg.Log.Warn("livepool: statements that have had no reply for StallAfter (pool_stall_after) cannot be looked up on the server, "+
		"so that it is not noticed if the connection of one is dead",
		slog.String("addr", ctr.addr), slog.Int("statements", len(late)), slog.Any("cause", why))
}

var errNoBeacon = errors.New("no thread of the server can be proved to be the connection's: see Beacon (pool_beacon)")

// locate asks the server what it does for connections that wait.
func (ctr *connector) locate(late []*site) (all []located, err error) {
	ctr.stats.stallChecks.Add(int64(len(late)))
	s, err := ctr.reachServer(ctr.life)
	if err == nil {
		if all, err = s.findAll(ctr.life, late); isAnswer(err) {
			s.close(nil)
		} else {
			s.close(err)
		}
	}
	ctr.tellOfBlindness(late, all, err)
	return all, err
}

// heldUp are the connections whose COMMIT or ROLLBACK has reached CommitTimeout.
// One goroutine asks about all that come meanwhile at a time, by one connection:
// what keeps one from finishing keeps all.
type heldUp struct {
	mu      sync.Mutex // guards what follows
	waiting []*inquiry
	asking  bool

	told seldom
}

// inquiry is one of them.
type inquiry struct {
	w     *site
	works chan bool
	tries int // that met another server
}

// worksOn says whether the server is seen to work on what a connection has sent.
func (ctr *connector) worksOn(w *site) bool {
	h, q := &ctr.heldUp, &inquiry{w: w, works: make(chan bool, 1)}
	h.mu.Lock()
	h.waiting = append(h.waiting, q)
	if !h.asking {
		h.asking = ctr.spawn(ctr.inquire)
	}
	asking := h.asking
	h.mu.Unlock()
	if !asking {
		return false
	}
	select {
	case works := <-q.works:
		if works && h.told.may(ctr.clock.now()) {
			ctr.cfg.Log.Warn("livepool: a COMMIT or ROLLBACK has had no reply for CommitTimeout (pool_commit_timeout); "+
				"it is waited for, since the server is seen to work on it, as under FLUSH TABLES WITH READ LOCK",
				slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(w.hello.threadID)))
		}
		return works
	case <-ctr.life.Done():
		return false
	}
}

// inquire answers those who wait, until none does.
func (ctr *connector) inquire() {
	h := &ctr.heldUp
	for {
		h.mu.Lock()
		batch := h.waiting
		h.waiting = nil
		h.asking = len(batch) > 0
		h.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		ws := make([]*site, len(batch))
		for i, q := range batch {
			ws[i] = q.w
		}
		all, err := ctr.locate(ws)
		for i, q := range batch {
			if err == nil && all[i].finding == elsewhere && q.tries < maxReapTries {
				q.tries++ // the next connection may meet another server of the same address
				h.mu.Lock()
				h.waiting = append(h.waiting, q)
				h.mu.Unlock()
				continue
			}
			q.works <- err == nil && all[i].finding == working
		}
	}
}

// isDeadBy says whether what was found proves that the reply of a connection will
// not come. A proxy that speaks SQL may have sent the statement to another server
// than the one that was asked. A server with a thread pool lets a statement wait
// for a worker, unread, while its connection looks idle; what it shows of its
// queue is not all that waits.
func (f *serverFacts) isDeadBy(found finding, w *site) bool {
	return f.isOwnID(w.wire) && (found == gone || found == resting && !f.threadPool)
}

// later is a sum that stays in bounds.
func later(now, d, more time.Duration) time.Duration {
	if d > never-now-more {
		return never
	}
	return now + d + more
}

// stalledFor is how long the reply had been waited for, if that is what ended
// the connection.
func stalledFor(err error) (time.Duration, bool) {
	var stall *stallError
	if errors.As(err, &stall) {
		return stall.waited, true
	}
	return 0, false
}
