// Package proclist finds the server's thread of a connection in the server's list of
// threads, and acts on what it finds: Reaper kills the thread that an abandoned
// connection has left there, and Stalls finds out whether a connection without a reply is
// slow or dead. Both act only on proof. It asks by a Side, a connection that somebody
// else opens, and knows nothing of pools. internal/connector uses it.
//
// The Reaper and the Stalls have a lock each, and neither takes the other's. Env.Spawn may
// be called while one of them is held: that lock first, then those inside Spawn. No other function
// that the package is given, and no question to the server, is called under a lock.
package proclist

import (
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/wire"
	"github.com/livepool/livepool/trace"
)

// Env is what the Reaper and the Stalls of a pool share. It does not change.
type Env struct {
	Ctx         context.Context // ends when nothing is to be done any more
	Clock       *clock.Clock
	Log         *slog.Logger
	Addr        string        // of the server, for the log
	PingTimeout time.Duration // for how long the server may answer nothing
	Counters    *Counters
	Trace       func(trace.Event) // is told of what was killed

	// OpenSide opens a Side, or says why there is none. The caller closes it.
	OpenSide func(context.Context) (*Side, error)
	// Spawn runs f in the background, and says whether it does. It waits for nothing, and
	// calls neither the Reaper nor the Stalls.
	Spawn func(f func()) bool
}

// Counters are what was done, for Stats.
type Counters struct {
	Killed, KillUnneeded, KillUnproved, KillFailed atomic.Int64 // abandoned connections, by their outcome
	StallChecks, Stalled                           atomic.Int64 // threads that were looked up, connections found dead
}

// Identity is what a server says of itself and of one connection. It does not change.
// nil stands for that of a server that refuses to say.
type Identity struct {
	Server       string // its name for itself; the same after a restart
	ConnectionID string // its own id for the connection; behind a proxy that speaks SQL it differs from the handshake's
	User         string // that the connection is logged in as
	ThreadPool   bool   // a statement may wait for a worker thread, while its connection looks idle
}

// IsHandshakeID says whether the server's own id for the connection is that of the
// handshake. If not, a proxy that speaks SQL is between, which may send each statement to
// another server.
func (i *Identity) IsHandshakeID(w *wire.Conn) bool {
	return i != nil && w != nil && i.ConnectionID == strconv.FormatUint(uint64(w.Handshake.ThreadID), 10)
}

// Thread is what identifies the server's thread of a connection. Who opens the connection
// writes the fields up to Identity before anybody else has it; they do not change later.
type Thread struct {
	*wire.Conn
	Host     int // the number of its host, of several
	BornAt   time.Duration
	Beacon   string    // the named lock it holds, "" for none
	Identity *Identity // nil if its server does not say

	stallWatch stallWatch
	abandoned  atomic.Bool // Abandon sets it
}

// logID is the thread's id in a log line.
func (w *Thread) logID() slog.Attr {
	return slog.Uint64("thread_id", uint64(w.Handshake.ThreadID))
}

// warnLimiter lets a warning through once a minute.
type warnLimiter struct{ last atomic.Int64 }

func (s *warnLimiter) allow(now time.Duration) bool {
	last := s.last.Load()
	return (last == 0 || int64(now)-last > int64(time.Minute)) && s.last.CompareAndSwap(last, max(int64(now), 1))
}
