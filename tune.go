// tune.go fits the keep-alive and the trust in an idle connection to the
// server's wait_timeout, after which it closes an idle connection.

package livepool

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

// tuning are the settings as they are in effect.
type tuning struct {
	keepAliveNanos atomic.Int64
	trustNanos     atomic.Int64
}

func (t *tuning) init(cfg *Config) {
	t.keepAliveNanos.Store(int64(cfg.KeepAlive))
	t.trustNanos.Store(int64(cfg.PingAfter))
}

// keepAlive is how often an idle connection is pinged.
func (t *tuning) keepAlive() time.Duration { return time.Duration(t.keepAliveNanos.Load()) }

// trust is how long a completed round trip stands for a ping.
func (t *tuning) trust() time.Duration { return time.Duration(t.trustNanos.Load()) }

// tune fits the settings to wait_timeout. What is left of it covers a ping that
// comes late. It warns of a setting that was chosen and cannot work.
func (ctr *connector) tune(waitTimeout time.Duration) {
	cfg, t := ctr.cfg, &ctr.tuning
	if cfg.KeepAlive > 0 {
		t.keepAliveNanos.Store(int64(min(cfg.KeepAlive, waitTimeout/3)))
	}
	t.trustNanos.Store(int64(min(cfg.PingAfter, waitTimeout/2)))
	if advice := cfg.unfit(waitTimeout); len(advice) > 0 {
		ctr.cfg.logger().Warn("livepool: a setting does not fit the server's wait_timeout: "+strings.Join(advice, "; "),
			slog.String("addr", ctr.addr), slog.Duration("wait_timeout", waitTimeout),
			slog.Duration("keepalive_in_effect", t.keepAlive()), slog.Duration("ping_after_in_effect", t.trust()))
	}
	ctr.maintainer.nudge()
}

// unfit says which settings cannot work under wait_timeout, and what to set. A
// default is fitted without a word.
func (c *Config) unfit(waitTimeout time.Duration) (advice []string) {
	defaults := NewConfig()
	tooLong := func(d time.Duration) bool { return d == 0 || d >= waitTimeout }
	if c.KeepAlive >= waitTimeout && c.KeepAlive != defaults.KeepAlive {
		advice = append(advice, fmt.Sprintf("KeepAlive (pool_keepalive) is %s, by when the server has closed what is idle: set it below %s, or raise wait_timeout", c.KeepAlive, waitTimeout))
	}
	if c.PingAfter >= waitTimeout && c.PingAfter != defaults.PingAfter {
		advice = append(advice, fmt.Sprintf("PingAfter (pool_ping_after) is %s, so that a connection which the server has closed would be trusted: set it below %s", c.PingAfter, waitTimeout))
	}
	if c.KeepAlive == 0 && c.PrePing == PrePingOff && tooLong(c.Recycle) && tooLong(c.IdleTimeout) {
		advice = append(advice, fmt.Sprintf("KeepAlive (pool_keepalive) and PrePing (pool_pre_ping) are off, and Recycle (pool_recycle) is %s: "+
			"idle connections die unseen after %s; set KeepAlive or Recycle below that", c.Recycle, waitTimeout))
	}
	return advice
}
