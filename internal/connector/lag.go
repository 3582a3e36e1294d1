// lag.go asks a replica how far it is behind its source, and leaves one that is too far, or
// whose replication has stopped.

package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// watchesLag says whether the pool leaves replicas that lag.
func (ctr *Connector) watchesLag() bool {
	return ctr.Cfg.MaxLag > 0 && (ctr.Cfg.Target == hosts.Replica || ctr.Cfg.Target == hosts.PreferReplica)
}

// checkLag says why a replica is not fit, nil if it is. A server without a source has nothing
// to lag behind: one of a group, of a Galera cluster, or of Aurora.
func (ctr *Connector) checkLag(ctx context.Context, l *link) error {
	rows, err := l.driverConn.QueryNamed(ctx, "SHOW REPLICA STATUS")
	if mysqlerr.Number(err) == syntaxError { // MariaDB before 10.5, MySQL before 8.0.22
		rows, err = l.driverConn.QueryNamed(ctx, "SHOW SLAVE STATUS")
	}
	if err != nil {
		return fmt.Errorf("its lag is not known, for which pool_max_lag needs a privilege (REPLICATION CLIENT, on MariaDB REPLICA MONITOR): %w", err)
	}
	limit := ctr.Cfg.MaxLag
	if l.host.isBehind.Load() { // until it has caught up well, or it would come and go with each second
		limit /= 2
	}
	err = judgeLag(rows, limit)
	l.host.isBehind.Store(err != nil)
	return err
}

// judgeLag says why a replica with this status is not fit, nil if it is.
func judgeLag(rows []map[string]string, limit time.Duration) error {
	for _, row := range rows {
		if strings.HasPrefix(row["Channel_Name"], "group_replication_") {
			continue
		}
		behind := row["Seconds_Behind_Source"] + row["Seconds_Behind_Master"] // it has one of them
		seconds, err := strconv.Atoi(behind)
		switch lag := time.Duration(seconds) * time.Second; {
		case err != nil: // NULL
			return roleError{why: "its replication has stopped"}
		case lag > limit:
			return roleError{why: fmt.Sprintf("it is %s behind its source, and pool_max_lag allows %s", lag, limit)}
		}
	}
	return nil
}

// syntaxError is ER_PARSE_ERROR.
const syntaxError = 1064

// lagRound is the time between two looks at the lag of a replica that is in use. Servers tell
// it in whole seconds.
const lagRound = time.Second

// startLagWatch has a replica looked after, if the pool watches their lag.
func (ctr *Connector) startLagWatch(h *host) {
	if ctr.maintainer != nil && ctr.watchesLag() && h.isLagWatched.CompareAndSwap(false, true) {
		ctr.spawn(func() {
			defer h.isLagWatched.Store(false)
			ctr.watchLag(h)
		})
	}
}

// watchLag looks after a replica until the pool is closed, or the host is gone.
func (ctr *Connector) watchLag(h *host) {
	var l link // on which it asks
	defer func() { l.close() }()
	isLeft := false // for what was told; some of its connections may still be in use
	for clock.Wait(ctr.Ctx, nil, lagRound); ctr.Ctx.Err() == nil && (!ctr.hostSet.IsGone(h.index) || ctr.isInUse(h)); clock.Wait(ctr.Ctx, nil, lagRound) {
		var role roleError
		switch err := ctr.askLag(h, &l); {
		case !errors.As(err, &role):
			isLeft = false
			if err != nil {
				l.close()
				l = link{}
			}
		case !isLeft && ctr.Ctx.Err() == nil:
			isLeft = true
			ctr.retire(h)
			ctr.Cfg.Log.Warn("livepool: a replica is left, and its connections are replaced by others",
				slog.String("addr", ctr.addr), slog.String("host", h.addr), slog.String("why", role.why))
		}
	}
}

// errUnused: the pool has no connection to the host.
var errUnused = errors.New("no connection")

// askLag asks on l, which it opens if it is not. A host that takes writes has no lag.
func (ctr *Connector) askLag(h *host, l *link) (err error) {
	if !ctr.isInUse(h) {
		return errUnused
	}
	ctx, cancel := context.WithTimeout(ctr.Ctx, ctr.Cfg.ConnectTimeout)
	defer cancel()
	if l.driverConn.Conn == nil {
		if *l, err = ctr.open(ctx, h, 0, noTurn); err != nil {
			return err
		}
	}
	if takesWrites, err := l.takesWrites(ctx, false); err != nil || takesWrites {
		return err
	}
	return ctr.checkLag(ctx, l)
}

// isInUse says whether the pool has a connection to a host.
func (ctr *Connector) isInUse(h *host) bool {
	for _, c := range ctr.snapshot() {
		if w := c.currentThread.Load(); w != nil && w.Host == h.index {
			return true
		}
	}
	return false
}
