// waittimeout.go fits the keep-alive and the trust in an idle connection to the
// server's wait_timeout, after which it closes an idle connection.

package connector

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// fitToWaitTimeout fits the settings to the wait_timeout of a link's server, with a
// margin for a ping that comes late. It warns, once per server, of a setting that was
// chosen and cannot work.
func (ctr *Connector) fitToWaitTimeout(l *link, s *knownServer) {
	cfg, waitTimeout := ctr.Cfg, l.facts.waitTimeout
	if waitTimeout == 0 {
		return
	}
	l.pingAfter = min(cfg.PingAfter, waitTimeout/2)
	if cfg.KeepAlive > 0 {
		l.keepAlive = min(cfg.KeepAlive, waitTimeout/3)
		if ctr.lowerMinKeepAlive(l.keepAlive) {
			ctr.maintainer.wake()
		}
	}
	advice := strings.Join(cfg.settingWarnings(waitTimeout), "; ")
	if advice == "" || !ctr.servers.isNewWarning(s, advice) {
		return
	}
	ctr.Cfg.Log.Warn("livepool: a setting does not fit the server's wait_timeout: "+advice,
		slog.String("addr", ctr.addrOf(l)), slog.String("server", l.facts.identity.Server), slog.Duration("wait_timeout", waitTimeout),
		slog.Duration("keepalive_in_effect", l.keepAlive), slog.Duration("ping_after_in_effect", l.pingAfter))
}

// isNewWarning says whether the advice differs from the last one for that server.
func (ss *servers) isNewWarning(s *knownServer, advice string) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	isNew := s.warned != advice
	s.warned = advice
	return isNew
}

// lowerMinKeepAlive records the keep-alive of a link, and says whether it is the
// shortest so far: then the maintainer must start a round sooner than planned.
func (ctr *Connector) lowerMinKeepAlive(keepAlive time.Duration) bool {
	for old := ctr.minKeepAliveNanos.Load(); int64(keepAlive) < old; old = ctr.minKeepAliveNanos.Load() {
		if ctr.minKeepAliveNanos.CompareAndSwap(old, int64(keepAlive)) {
			return true
		}
	}
	return false
}

// minKeepAlive is the shortest interval at which an idle connection may have to be
// pinged.
func (ctr *Connector) minKeepAlive() time.Duration {
	return time.Duration(ctr.minKeepAliveNanos.Load())
}

// settingWarnings says which settings cannot work under wait_timeout, and what to set.
// Defaults are fitted silently.
func (c *Settings) settingWarnings(waitTimeout time.Duration) (advice []string) {
	isTooLong := func(d time.Duration) bool { return d == 0 || d >= waitTimeout }
	if c.KeepAlive >= waitTimeout && c.KeepAlive != DefaultKeepAlive {
		advice = append(advice, fmt.Sprintf("KeepAlive (pool_keepalive) is %s, by when the server has closed what is idle: set it below %s, or raise wait_timeout", c.KeepAlive, waitTimeout))
	}
	if c.PingAfter >= waitTimeout && c.PingAfter != DefaultPingAfter {
		advice = append(advice, fmt.Sprintf("PingAfter (pool_ping_after) is %s, so that a connection which the server has closed would be trusted: set it below %s", c.PingAfter, waitTimeout))
	}
	if c.KeepAlive == 0 && c.PrePing == pingOff && isTooLong(c.Recycle) && isTooLong(c.IdleTimeout) {
		advice = append(advice, fmt.Sprintf("KeepAlive (pool_keepalive) and PrePing (pool_pre_ping) are off, and Recycle (pool_recycle) is %s: "+
			"idle connections die unseen after %s; set KeepAlive or Recycle below that", c.Recycle, waitTimeout))
	}
	return advice
}
