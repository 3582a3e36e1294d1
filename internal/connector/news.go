// news.go is what the pool has learned lately that says something of all its connections:
// losses, and how long the server takes to answer.

package connector

import (
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/wire"
)

// news is what the loss of one connection implies for the others. Times are the
// connector's clock, and -1 before the first loss. Any goroutine writes them, with
// storeMax or Swap.
type news struct {
	// lastHangup is when a connection was last found closed by the other end. A
	// connection without a round trip since then is pinged before it is handed out.
	lastHangup atomic.Int64
	// lastSilence is when the last request was sent whose answer was late. A connection
	// without a round trip since then is suspect: it is handed out only after it
	// answered a ping, and nobody waits for that ping, which would cost another caller a
	// PingTimeout.
	lastSilence atomic.Int64
	// lastHeard is a time at which the server is known to have worked: it accepted a
	// connection then, or answered a ping that was sent well after.
	lastHeard  atomic.Int64
	lastReport atomic.Int64 // when a loss was last recorded
}

func (n *news) init() {
	n.lastHangup.Store(-1)
	n.lastSilence.Store(-1)
	n.lastHeard.Store(-1)
	n.lastReport.Store(-1)
}

// record notes a loss, and says whether it is the first within a second. since is when a
// silence began, at the latest; now is when it was found.
func (n *news) record(kind wire.Loss, since, now time.Duration) (isFirst bool) {
	if kind == wire.WentSilent {
		storeMax(&n.lastSilence, since)
	} else {
		storeMax(&n.lastHangup, since)
	}
	latest := n.lastReport.Swap(int64(now))
	return latest < 0 || int64(now)-latest > int64(time.Second)
}

// storeMax never moves a time back, because losses may be recorded in any order.
func storeMax(at *atomic.Int64, t time.Duration) {
	for old := at.Load(); int64(t) > old && !at.CompareAndSwap(old, int64(t)); old = at.Load() {
	}
}

// roundTrip is an estimate of how long the server takes to answer. Any goroutine writes
// it.
type roundTrip struct{ nanos atomic.Int64 }

// record raises the estimate at once and lowers it gradually. Of two calls at the same
// time either may win.
func (r *roundTrip) record(d time.Duration) {
	previous := time.Duration(r.nanos.Load())
	if d < previous {
		d = previous - (previous-d)/4
	}
	r.nanos.Store(int64(d))
}

func (r *roundTrip) get() time.Duration { return time.Duration(r.nanos.Load()) }

// pingTimeout is PingTimeout, or up to five times that where the server is slow.
func (ctr *Connector) pingTimeout() time.Duration {
	least := ctr.Cfg.PingTimeout
	return max(least, min(2*ctr.roundTrip.get(), 5*least))
}
