// tune.go fits the keep-alive and the trust in an idle connection to the
// server's wait_timeout, after which it closes an idle connection.

package livepool

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// fit fits the settings to the wait_timeout of a link's server. What is left of it
// covers a ping that comes late. It warns, once a server, of a setting that was
// chosen and cannot work.
func (ctr *connector) fit(l *link, s *knownServer) {
	cfg, waitTimeout := ctr.cfg, l.facts.waitTimeout
	if waitTimeout == 0 {
		return
	}
	l.trust = min(cfg.PingAfter, waitTimeout/2)
	if cfg.KeepAlive > 0 {
		l.keepAlive = min(cfg.KeepAlive, waitTimeout/3)
		if ctr.shorten(l.keepAlive) {
			ctr.maintainer.nudge()
		}
	}
	advice := strings.Join(cfg.unfit(waitTimeout), "; ")
	if advice == "" || !ctr.servers.warns(s, advice) {
		return
	}
	ctr.cfg.Log.Warn("livepool: a setting does not fit the server's wait_timeout: "+advice,
		slog.String("addr", ctr.addr), slog.String("server", l.facts.server), slog.Duration("wait_timeout", waitTimeout),
		slog.Duration("keepalive_in_effect", l.keepAlive), slog.Duration("ping_after_in_effect", l.trust))
}

// warns says whether it is news of a server.
func (ss *servers) warns(s *knownServer, advice string) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	news := s.warned != advice
	s.warned = advice
	return news
}

// shorten notes how often a link is to be pinged, and says whether none was so
// often before: the maintainer must look sooner than it meant to.
func (ctr *connector) shorten(keepAlive time.Duration) bool {
	for old := ctr.shortest.Load(); int64(keepAlive) < old; old = ctr.shortest.Load() {
		if ctr.shortest.CompareAndSwap(old, int64(keepAlive)) {
			return true
		}
	}
	return false
}

// shortestKeepAlive is how often an idle connection may have to be pinged.
func (ctr *connector) shortestKeepAlive() time.Duration { return time.Duration(ctr.shortest.Load()) }

// unfit says which settings cannot work under wait_timeout, and what to set. A
// default is fitted without a word.
func (c *settings) unfit(waitTimeout time.Duration) (advice []string) {
	tooLong := func(d time.Duration) bool { return d == 0 || d >= waitTimeout }
	if c.KeepAlive >= waitTimeout && c.KeepAlive != defaultKeepAlive {
		advice = append(advice, fmt.Sprintf("KeepAlive (pool_keepalive) is %s, by when the server has closed what is idle: set it below %s, or raise wait_timeout", c.KeepAlive, waitTimeout))
	}
	if c.PingAfter >= waitTimeout && c.PingAfter != defaultPingAfter {
		advice = append(advice, fmt.Sprintf("PingAfter (pool_ping_after) is %s, so that a connection which the server has closed would be trusted: set it below %s", c.PingAfter, waitTimeout))
	}
	if c.KeepAlive == 0 && c.PrePing == pingOff && tooLong(c.Recycle) && tooLong(c.IdleTimeout) {
		advice = append(advice, fmt.Sprintf("KeepAlive (pool_keepalive) and PrePing (pool_pre_ping) are off, and Recycle (pool_recycle) is %s: "+
			"idle connections die unseen after %s; set KeepAlive or Recycle below that", c.Recycle, waitTimeout))
	}
	return advice
}
