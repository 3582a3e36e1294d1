// limits.go follows the limits of the sql.DB of a Pool, which the user may have changed: a
// SetMaxOpenConns that was left in applies to all that livepool opens.

package connector

import (
	"context"
	"database/sql"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// limits are the limits of the sql.DB of a Pool.
type limits struct {
	db     *sql.DB          // nil for a connector without a Pool; set before anything is opened
	resize func(places int) // sets how many sessions there may be at a time; likewise
	// Open is how many connections there may be; 0: no limit. SyncLimits writes it, under
	// mu.
	Open    atomic.Int64
	waiting atomic.Int64 // callers in awaitOpeningSpare
	mu      sync.Mutex
	warned  [len(setterWarnings)]bool // guarded by mu
	// peakConns is the most connections there ever were; guarded by Connector.mu.
	peakConns int
}

// MaxOpenConns is how many connections the settings allow; 0: no limit, as in database/sql.
func (c *Settings) MaxOpenConns() int {
	if c.MaxOverflow < 0 {
		return 0
	}
	return c.PoolSize + c.MaxOverflow
}

// allowed is how many of n connections the limit of the sql.DB allows.
func (ls *limits) allowed(n int) int {
	if open := int(ls.Open.Load()); open > 0 {
		return min(n, open)
	}
	return n
}

// isLimitOverridden says whether the user has changed the limit of the sql.DB.
func (ctr *Connector) isLimitOverridden() bool {
	return int(ctr.Limits.Open.Load()) != ctr.Cfg.MaxOpenConns()
}

// isAtLimit says whether the user's own limit leaves no room for another connection,
// counting those that will be.
func (ctr *Connector) isAtLimit() bool { return ctr.isLimitOverridden() && ctr.exceedsLimit(1) }

// exceedsLimit says whether that many more are too many, counting what is being opened in
// the background.
func (ctr *Connector) exceedsLimit(more int) bool {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	n := len(ctr.conns) + int(ctr.maintainer.openingSpares.Load()) + more
	return ctr.Limits.allowed(n) < n
}

// awaitOpeningSpare is for a caller to whom the limit leaves what is being opened in the
// background, and no more. As many wait as are too many; the others dial.
func (ctr *Connector) awaitOpeningSpare(ctx context.Context) (link, bool) {
	mustWait := func() bool { return ctr.exceedsLimit(-int(ctr.Limits.waiting.Load())) }
	if ctr.maintainer == nil || !mustWait() {
		return link{}, false
	}
	for {
		isOpening := mustWait() && ctr.maintainer.openingSpares.Load() > 0 && ctx.Err() == nil && !ctr.Outage.IsDown()
		if l, ok := ctr.takeSpare(ctx); ok || !isOpening {
			return l, ok
		}
		// Only here: with a spare in hand it counts as in use, or another would be opened.
		ctr.Limits.waiting.Add(1)
		clock.Wait(ctx, ctr.spareReady, 5*time.Millisecond)
		ctr.Limits.waiting.Add(-1)
	}
}

// SyncLimits adopts the limit of the sql.DB, and warns once about each setter that the
// user has called, as far as that can be seen. It takes the lock of the sql.DB, so its
// caller must hold no lock of livepool's.
func (ctr *Connector) SyncLimits() {
	ls, cfg := &ctr.Limits, ctr.Cfg
	if ls.db == nil {
		return
	}
	ls.mu.Lock()
	st := ls.db.Stats()
	ctr.mu.Lock()
	peak := ls.peakConns // after Stats, which may have counted a connection that was one too many
	ctr.mu.Unlock()
	if open := int64(st.MaxOpenConnections); ls.Open.Swap(open) != open {
		ls.resize(st.MaxOpenConnections)
		ctr.maintainer.wake()
	}
	keepsFewer := peak <= cfg.PoolSize && ls.allowed(cfg.PoolSize) == cfg.PoolSize // of MaxIdleClosed
	isNew := [...]bool{
		ctr.isLimitOverridden(),
		st.Idle > cfg.PoolSize || st.MaxIdleClosed > 0 && keepsFewer,
		st.MaxLifetimeClosed > 0, // livepool sets none
		st.MaxIdleTimeClosed > 0 && (cfg.IdleTimeout == 0 || ctr.clock.Now() < cfg.IdleTimeout),
	}
	for i, called := range isNew {
		isNew[i] = called && !ls.warned[i]
		ls.warned[i] = ls.warned[i] || called
	}
	ls.mu.Unlock() // before the call of the user's Logger
	for i, text := range setterWarnings {
		if isNew[i] {
			cfg.Log.Warn("livepool: "+text, slog.String("addr", ctr.addr),
				slog.Int("max_open_conns", st.MaxOpenConnections), slog.Int("pool_size", cfg.PoolSize), slog.Int("max_overflow", cfg.MaxOverflow),
				slog.Duration("recycle", cfg.Recycle), slog.Duration("idle_timeout", cfg.IdleTimeout))
		}
	}
}

// setterWarnings say what the user has called, and what to do instead.
var setterWarnings = [...]string{
	"SetMaxOpenConns was called on the pool's sql.DB: its limit holds, for sessions and MinIdle too; " +
		"leave the call out and set PoolSize (pool_size) and MaxOverflow (pool_max_overflow), which together are the limit",
	"SetMaxIdleConns was called on the pool's sql.DB: it keeps more or fewer connections than PoolSize (pool_size); leave the call out and set PoolSize",
	"SetConnMaxLifetime was called on the pool's sql.DB: it closes connections before others are there; leave the call out and set Recycle (pool_recycle)",
	"SetConnMaxIdleTime was called on the pool's sql.DB: it closes connections before IdleTimeout (pool_idle_timeout); leave the call out and set IdleTimeout",
}
