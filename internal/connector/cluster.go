// cluster.go is about servers that answer and do no work. A Galera node that has lost
// its cluster accepts logins, answers pings and SELECT 1, and refuses everything else
// (1047). A pool that has seen a cluster, because a server said so or refused work like
// that, pings by a statement that such a node refuses.

package connector

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/outage"
	"github.com/livepool/livepool/internal/wire"
)

// workPing does nothing, but a node that does no work refuses it: unlike SET, SHOW, and
// SELECT without a table it is not exempt (MariaDB source, sql_parse.cc,
// mysql_execute_command).
const workPing = "DO 0"

// noteNotReady records a node that does no work: its connection is discarded, and the
// others must be pinged again.
func (c *conn) noteNotReady(err error) {
	c.dead = true
	c.ctr.InCluster.Store(true)
	c.ctr.recordDeath(&c.link, wire.HungUp, c.ctr.clock.Now(), err)
}

// pingForWork pings the server; in a cluster by workPing, since a node may answer a ping
// and do no work.
func (ctr *Connector) pingForWork(ctx context.Context, in *driverconn.Conn) error {
	if !ctr.InCluster.Load() {
		return in.Ping(ctx)
	}
	_, err := in.ExecContext(ctx, workPing, nil)
	return err
}

// After maxNodeTries connections to nodes that do no work (a balancer leads each to
// another node) the cluster counts as one that cannot be reached. The pauses between
// them are random, up to maxNodePause, so that parallel dials do not stay in step with a
// round-robin balancer.
const (
	maxNodeTries = 10
	maxNodePause = 10 * time.Millisecond
)

// connectToWorkingNode connects to a server that works. During an outage it tries only
// one: the prober tries the others.
func (ctr *Connector) connectToWorkingNode(caller context.Context) (l link, err error) {
	start := ctr.clock.Now()
	for tried := 1; ; tried++ {
		l, err = ctr.connect(caller)
		took := ctr.clock.Now() - start
		if !mysqlerr.IsNodeNotReady(err) {
			return l, err
		}
		if tried == maxNodeTries || took > ctr.Cfg.ConnectTimeout || ctr.Outage.IsDown() || ctr.Ctx.Err() != nil {
			if !errors.As(err, new(*outage.Error)) { // an outage.Error shares its cause with other callers
				err = addNodeTries(err, tried, took)
				ctr.recordConnectFailure(err)
			}
			return l, err
		}
		clock.Wait(caller, ctr.Ctx.Done(), rand.N(maxNodePause))
	}
}

// addNodeTries adds to the last refusal how many connections were tried.
func addNodeTries(err error, tried int, took time.Duration) error {
	var connect *ConnectError
	if tried > 1 && errors.As(err, &connect) {
		connect.Text += fmt.Sprintf(" (the last of %d connections in %s, each to a node that takes no work)", tried, took.Round(time.Millisecond))
	}
	return err
}
