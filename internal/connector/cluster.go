// cluster.go is about servers that answer and do no work: a Galera node that has
// lost its cluster lets clients log in, answers pings and SELECT 1, and refuses
// everything else (1047). A pool that knows to be on a cluster, because a server
// said so or refused work like that, pings by asking for work.

package connector

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/wire"
)

// workPing does nothing, but a node that takes no work refuses it: unlike SET,
// SHOW, and SELECT without a table it is not exempt (MariaDB source, sql_parse.cc,
// mysql_execute_command).
const workPing = "DO 0"

// noteNotReady notes a node that takes no work: its connection is as good as dead,
// and what the others' pings said until now is worth nothing.
func (c *conn) noteNotReady(err error) {
	c.dead = true
	c.ctr.InCluster.Store(true)
	c.ctr.recordDeath(&c.link, wire.HungUp, c.ctr.clock.Now(), err)
}

// pingForWork asks whether there is a server, and whether it works if that is not
// the same here.
func (ctr *Connector) pingForWork(ctx context.Context, in *driverConn) error {
	if !ctr.InCluster.Load() {
		return in.Ping(ctx)
	}
	_, err := in.ExecContext(ctx, workPing, nil)
	return err
}

// How often a node that takes no work is left for another, which a balancer will
// lead to, before the cluster counts as one that cannot be reached. The pauses
// are random, up to this, lest several who dial at the same time take turns with
// a balancer that does so too.
const (
	maxNodeTries = 10
	maxNodePause = 10 * time.Millisecond
)

// connectToWorkingNode connects to a server that works. While none can be reached it
// tries one: the prober looks for others.
func (ctr *Connector) connectToWorkingNode(caller context.Context) (l link, err error) {
	start := ctr.clock.Now()
	for tried := 1; ; tried++ {
		l, err = ctr.connect(caller)
		took := ctr.clock.Now() - start
		if !mysqlerr.IsNodeNotReady(err) {
			return l, err
		}
		if tried == maxNodeTries || took > ctr.Cfg.ConnectTimeout || ctr.Outage.isDown() || ctr.Ctx.Err() != nil {
			if !errors.As(err, new(*gateError)) { // whose cause is others' too
				err = addNodeTries(err, tried, took)
				ctr.recordConnectFailure(err)
			}
			return l, err
		}
		clock.Wait(caller, ctr.Ctx.Done(), rand.N(maxNodePause))
	}
}

// addNodeTries adds what was tried to the last refusal.
func addNodeTries(err error, tried int, took time.Duration) error {
	var connect *ConnectError
	if tried > 1 && errors.As(err, &connect) {
		connect.Text += fmt.Sprintf(" (the last of %d connections in %s, each to a node that takes no work)", tried, took.Round(time.Millisecond))
	}
	return err
}
