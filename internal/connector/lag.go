// lag.go asks a replica how far it is behind its source: one that is too far, or whose
// replication has stopped, is not used.

package connector

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

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
