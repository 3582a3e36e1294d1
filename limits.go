// limits.go follows the limits of the sql.DB of a Pool, which its user may set by
// hand: a SetMaxOpenConns that was left in holds for all that livepool opens.

package livepool

import (
	"context"
	"database/sql"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// limits are those of the sql.DB of a Pool.
type limits struct {
	db     *sql.DB          // nil for a connector without a Pool; set before anything is opened
	resize func(places int) // has as many sessions at a time; likewise
	// open is how many connections there may be, 0: no limit. follow writes it,
	// under mu.
	open    atomic.Int64
	waiting atomic.Int64 // callers in awaitOpening
	mu      sync.Mutex
	told    [len(setters)]bool // guarded by mu
	// most is how many connections there ever were; guarded by connector.mu.
	most int
}

// limit is how many connections the settings allow, in database/sql's words: 0 is
// no limit.
func (c *settings) limit() int {
	if c.MaxOverflow < 0 {
		return 0
	}
	return c.PoolSize + c.MaxOverflow
}

// allowed is as many of n connections as the limit of the sql.DB leaves.
func (ls *limits) allowed(n int) int {
	if open := int(ls.open.Load()); open > 0 {
		return min(n, open)
	}
	return n
}

// limitIsUsers says whether the user has changed the limit.
func (ctr *connector) limitIsUsers() bool { return int(ctr.limits.open.Load()) != ctr.cfg.limit() }

// isFull says whether the user's own limit leaves no room for another connection,
// counting those that will be.
func (ctr *connector) isFull() bool { return ctr.exceeds(1) }

func (ctr *connector) exceeds(more int) bool {
	if !ctr.limitIsUsers() {
		return false
	}
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	n := len(ctr.conns) + int(ctr.maintainer.opening.Load()) + more
	return ctr.limits.allowed(n) < n
}

// awaitOpening is for a caller to whom the limit leaves what is being opened for
// MinIdle, and no more.
func (ctr *connector) awaitOpening(ctx context.Context) (link, bool) {
	if !ctr.exceeds(0) {
		return link{}, false
	}
	ctr.limits.waiting.Add(1)
	defer ctr.limits.waiting.Add(-1)
	for {
		coming := ctr.exceeds(0) && ctr.maintainer.opening.Load() > 0 && ctx.Err() == nil && !ctr.outage.isDown()
		if l, ok := ctr.takeSpare(ctx); ok || !coming {
			return l, ok
		}
		waitFor(ctx, ctr.ready, 5*time.Millisecond)
	}
}

// follow makes the limit of the sql.DB that of livepool, and tells once of each
// setter that the user has called, as far as that shows. It takes the lock of the
// sql.DB: who calls it holds none of livepool's.
func (ctr *connector) follow() {
	ls, cfg := &ctr.limits, ctr.cfg
	if ls.db == nil {
		return
	}
	ctr.mu.Lock()
	most := ls.most
	ctr.mu.Unlock()
	ls.mu.Lock()
	st := ls.db.Stats()
	if open := int64(st.MaxOpenConnections); ls.open.Swap(open) != open {
		ls.resize(st.MaxOpenConnections)
		ctr.maintainer.nudge()
	}
	keepsLess := most <= cfg.PoolSize && ls.allowed(cfg.PoolSize) == cfg.PoolSize // of MaxIdleClosed
	news := [...]bool{
		ctr.limitIsUsers(),
		st.Idle > cfg.PoolSize || st.MaxIdleClosed > 0 && keepsLess,
		st.MaxLifetimeClosed > 0, // livepool sets none
		st.MaxIdleTimeClosed > 0 && (cfg.IdleTimeout == 0 || ctr.clock.now() < cfg.IdleTimeout),
	}
	for i, called := range news {
		news[i] = called && !ls.told[i]
		ls.told[i] = ls.told[i] || called
	}
	ls.mu.Unlock() // the Logger is the user's
	for i, text := range setters {
		if news[i] {
			cfg.Log.Warn("livepool: "+text, slog.String("addr", ctr.addr),
				slog.Int("max_open_conns", st.MaxOpenConnections), slog.Int("pool_size", cfg.PoolSize), slog.Int("max_overflow", cfg.MaxOverflow),
				slog.Duration("recycle", cfg.Recycle), slog.Duration("idle_timeout", cfg.IdleTimeout))
		}
	}
}

// setters are what the user may have called, and what to do instead.
var setters = [...]string{
	"SetMaxOpenConns was called on the pool's sql.DB: its limit holds, for sessions and MinIdle too; " +
		"leave the call out and set PoolSize (pool_size) and MaxOverflow (pool_max_overflow), which together are the limit",
	"SetMaxIdleConns was called on the pool's sql.DB: it keeps more or fewer connections than PoolSize (pool_size); leave the call out and set PoolSize",
	"SetConnMaxLifetime was called on the pool's sql.DB: it closes connections before others are there; leave the call out and set Recycle (pool_recycle)",
	"SetConnMaxIdleTime was called on the pool's sql.DB: it closes connections before IdleTimeout (pool_idle_timeout); leave the call out and set IdleTimeout",
}
