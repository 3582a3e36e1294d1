// silence.go notices within about a second that a host has fallen silent while another one
// takes writes, as after a failover from a primary that is frozen or cut off. Without it the
// statements under way there would wait for StallAfter and the kernel. A silent host alone
// proves nothing: as long as no other takes writes, its statements go on waiting.

package connector

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/proclist"
)

const (
	// silentAfter is how long a statement has no reply before its host is asked whether it is
	// there, on another connection, for silentLimit.
	silentAfter = 600 * time.Millisecond
	silentLimit = 300 * time.Millisecond
	// silenceRound is the time between two looks at what waits for a reply, silencePause that
	// between two questions to a host.
	silenceRound = 100 * time.Millisecond
	silencePause = time.Second
)

// lastRead is the number of a connection's last read, odd while that waits for a reply, since
// when it is the last, at the latest, and when one was last answered.
type lastRead struct {
	number          uint64
	since, answered time.Duration
}

// findSilence has a host asked on which a statement has had no reply for silentAfter, and no
// other one either. It returns how long until it must run again.
func (m *maintainer) findSilence(all []*conn) time.Duration {
	ctr := m.ctr
	if !ctr.followsPrimary() || !ctr.ownDialer {
		return clock.Never
	}
	now, reads := ctr.clock.Now(), map[*proclist.Thread]lastRead{}
	heard, waits := make([]time.Duration, len(ctr.hosts)), make([]bool, len(ctr.hosts))
	for _, c := range all {
		w := c.currentThread.Load()
		if w == nil {
			continue
		}
		read := lastRead{w.Reads.Load(), now, now}
		if last, known := m.lastReads[w]; known && last.number/2 == read.number/2 {
			read.answered = last.answered
			if last.number == read.number {
				read.since = last.since
			}
		}
		reads[w] = read
		heard[w.Host] = max(heard[w.Host], read.answered)
		waits[w.Host] = waits[w.Host] || read.number%2 == 1 && now-read.since >= silentAfter
	}
	m.lastReads = reads
	for i, h := range ctr.hosts {
		if waits[i] && now-heard[i] >= silentAfter && now >= time.Duration(h.askAgainAt.Load()) {
			h.askAgainAt.Store(int64(now + silencePause))
			ctr.spawn(func() { ctr.checkSilence(h) })
		}
	}
	return silenceRound
}

// checkSilence asks a host whether it is there, and the others at the same time whether one of
// them takes writes. If only the second is so, the pool leaves the host.
func (ctr *Connector) checkSilence(h *host) {
	ctx, cancel := context.WithTimeout(ctr.Ctx, silentLimit)
	defer cancel()
	others := slices.DeleteFunc(ctr.hostSet.Order(ctr.clock.Now()), func(i int) bool { return i == h.index })
	found := make(chan *hosts.Result[candidate], 1)
	if !ctr.startAttempt(func() {
		won, _ := ctr.raceHosts(ctx, others, isWritable)
		found <- won
	}) {
		return
	}
	answers := ctr.isThere(ctx, h)
	won := <-found
	if won == nil {
		if !answers { // another may take writes at any time
			h.askAgainAt.Store(0)
		}
		return
	}
	defer won.Value.close()
	if answers || ctr.Ctx.Err() != nil {
		return
	}
	ctr.hostSet.Silent(h.index, ctr.clock.Now())
	if ctr.isPrimary(h) {
		ctr.noteHostWon(&won.Value)
	}
	for _, c := range ctr.snapshot() {
		w := c.currentThread.Load()
		if w == nil || w.Host != h.index {
			continue
		}
		if read := w.Reads.Load(); read%2 == 1 {
			w.Abort(read, &hostSilentError{h.addr, won.Value.host.addr}, func() { ctr.Stats.Stalled.Add(1) })
		}
	}
}

// isThere says whether a host answers a login, by whatever.
func (ctr *Connector) isThere(ctx context.Context, h *host) bool {
	l, err := ctr.open(ctx, h, 0, noTurn)
	l.close()
	return err == nil || driverconn.IsAnswer(err)
}

// hostSilentError is why a connection was aborted: its host was left for another one.
type hostSilentError struct{ host, other string }

func (e *hostSilentError) Error() string {
	return fmt.Sprintf("no reply, and %s says nothing to a new connection either, while %s takes writes", e.host, e.other)
}

// Unwrap is what the kernel says of a peer that no longer answers.
func (e *hostSilentError) Unwrap() error { return syscall.ETIMEDOUT }
