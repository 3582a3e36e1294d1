// silence.go notices within about a second that a host has fallen silent while another one can
// serve in its place, as after a failover from a primary that is frozen or cut off. Without it
// the statements under way there would wait for StallAfter and the kernel. A silent host alone
// proves nothing: as long as no other can serve, its statements go on waiting.

package connector

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/proclist"
)

const (
	// silentAfter is how long a statement has no reply before its host is asked whether it is
	// there, on another connection, for silentLimit.
	silentAfter = 500 * time.Millisecond
	silentLimit = 400 * time.Millisecond
	// silenceRound is the time between two looks at what waits for a reply, silencePause that
	// between two checks of a host, and silentPause that of one which says nothing.
	silenceRound = 100 * time.Millisecond
	silencePause = time.Second
	silentPause  = 200 * time.Millisecond
)

// lastWait is the number of a connection's last read or large write, odd while that waits, and
// since when it is the last, at the latest; and the number of replies, and when one last came.
type lastWait struct {
	number, replies uint64
	since, answered time.Duration
}

// findsSilence says whether the pool looks for silent hosts.
func (ctr *Connector) findsSilence() bool { return ctr.hostSet != nil && ctr.ownDialer }

// findSilence has a host asked on which a statement has had no reply for silentAfter, and no
// other one either. It returns how long until it must run again.
func (m *maintainer) findSilence(all []*conn) time.Duration {
	ctr := m.ctr
	if !ctr.findsSilence() {
		return clock.Never
	}
	if !ctr.HasOtherHosts() { // a name may come to have more
		return silencePause
	}
	now, seen := ctr.clock.Now(), map[*proclist.Thread]lastWait{}
	heard, waits := map[int]time.Duration{}, map[int]bool{}
	for _, c := range all {
		w := c.currentThread.Load()
		if w == nil {
			continue
		}
		wait := lastWait{w.Waits(), w.Replies.Load(), now, now}
		if last, known := m.lastWaits[w]; known {
			if last.number == wait.number {
				wait.since = last.since
			}
			if last.replies == wait.replies {
				wait.answered = last.answered
			}
		}
		seen[w] = wait
		heard[w.Host] = max(heard[w.Host], wait.answered)
		waits[w.Host] = waits[w.Host] || wait.number%2 == 1 && now-wait.since >= silentAfter
	}
	m.lastWaits = seen
	for i, h := range ctr.hosts() {
		if waits[i] && now-heard[i] >= silentAfter && now >= time.Duration(h.askAgainAt.Load()) {
			h.askAgainAt.Store(int64(clock.Never)) // one check at a time
			ctr.spawn(func() { h.askAgainAt.Store(int64(ctr.clock.Now() + ctr.checkSilence(h))) })
		}
	}
	return silenceRound
}

// checkSilence asks a host whether it is there, and the others whether one of them can serve
// in its place. If only the second is so, the pool leaves the host. The others are asked, and
// the host a second time, when half of the time is over: a login that is broken off counts
// against the client (max_connect_errors), and a packet may be lost. It returns how long until
// the host may be asked again.
func (ctr *Connector) checkSilence(h *host) (pause time.Duration) {
	start, limit := ctr.clock.Now(), h.silentLimit(ctr.Cfg.ConnectTimeout)
	replies := ctr.repliesOf(h)
	first := ctr.ask(h)
	defer first.end()
	if first.awaitWord(ctr.Ctx, limit/2) {
		return silencePause
	}
	second := ctr.ask(h)
	defer second.end()
	ctr.resolveNames(ctr.Ctx)
	others := ctr.hostSet.Others(h.index, ctr.clock.Now())
	var patience time.Duration
	for _, i := range others {
		patience = max(patience, 2*ctr.hosts()[i].silentLimit(ctr.Cfg.ConnectTimeout))
	}
	ctx, cancel := context.WithTimeout(ctr.Ctx, patience)
	defer cancel()
	won, _ := ctr.raceHosts(ctx, others, func(int) time.Duration { return 0 }, ctr.mayTakeOver)
	if won != nil {
		defer won.Value.close()
		first.awaitWord(ctr.Ctx, start+limit-ctr.clock.Now())
	}
	switch {
	case ctr.Ctx.Err() != nil, first.hasWord(), second.hasWord():
		return silencePause
	case won == nil, ctr.hasReplied(h, replies, start): // another may take over at any time, or it was its last word
		return silentPause
	}
	ctr.leaveSilent(h, &won.Value)
	return silencePause
}

// repliesOf counts the replies on each connection to a host.
func (ctr *Connector) repliesOf(h *host) map[*proclist.Thread]uint64 {
	replies := map[*proclist.Thread]uint64{}
	for w := range threadsTo(h, ctr.snapshot()) {
		replies[w] = w.Replies.Load()
	}
	return replies
}

// hasReplied says whether the host has sent a reply since start, or a connection to it was opened:
// one that only takes no new ones for a moment is there.
func (ctr *Connector) hasReplied(h *host, before map[*proclist.Thread]uint64, start time.Duration) bool {
	for w, n := range ctr.repliesOf(h) {
		if last, known := before[w]; known && n > last || w.BornAt > start {
			return true
		}
	}
	return false
}

// mayTakeOver says whether a host of that role can serve what one that is silent does not.
func (ctr *Connector) mayTakeOver(takesWrites bool) bool {
	switch ctr.Cfg.Target {
	case hosts.Primary:
		return takesWrites
	case hosts.Replica:
		return !takesWrites || ctr.Cfg.HasPrimary
	}
	return true
}

// leaveSilent leaves a host that is silent for another one: what waits there for a reply ends.
func (ctr *Connector) leaveSilent(h *host, other *candidate) {
	ctr.hostSet.Silent(h.index, ctr.clock.Now())
	switch {
	case !ctr.isPrimary(h):
		ctr.retire(h)
	case !ctr.noteHostWon(other, h.index):
		return
	}
	for w := range threadsTo(h, ctr.snapshot()) {
		w.AbortWait(&hostSilentError{h.addr, other.host.addr}, func() { ctr.Stats.Stalled.Add(1) })
	}
}

// hostSilentError is why a connection was aborted: its host was left for another one.
type hostSilentError struct{ host, other string }

func (e *hostSilentError) Error() string {
	return fmt.Sprintf("no reply, and %s says nothing to a new connection either, while %s does", e.host, e.other)
}

// Unwrap is what the kernel says of a peer that no longer answers.
func (e *hostSilentError) Unwrap() error { return syscall.ETIMEDOUT }
