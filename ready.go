// ready.go is about servers that answer and do no work: a Galera node that has
// lost its cluster lets clients log in, answers pings and SELECT 1, and refuses
// everything else (1047). A pool that knows to be on a cluster, because a server
// said so or refused work like that, pings by asking for work.

package livepool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// askForWork does nothing, but a node that takes no work refuses it: unlike SET,
// SHOW, and SELECT without a table it is not exempt (MariaDB source, sql_parse.cc,
// mysql_execute_command).
const askForWork = "DO 0"

// isNotReady says whether an error is the refusal of a node that takes no work.
func isNotReady(err error) bool {
	var my *mysql.MySQLError
	return errors.As(err, &my) && my.Number == 1047 && strings.Contains(my.Message, "WSREP")
}

// notReady notes a node that takes no work: its connection is as good as dead,
// and what the others' pings said until now is worth nothing.
func (c *conn) notReady(err error) {
	c.dead = true
	c.ctr.inCluster.Store(true)
	c.ctr.died(&c.link, hungUp, c.ctr.clock.now(), err)
}

// pingUnder asks whether there is a server, and whether it works if that is not
// the same here.
func (ctr *connector) pingUnder(ctx context.Context, in *inner) error {
	if !ctr.inCluster.Load() {
		return in.Ping(ctx)
	}
	_, err := in.ExecContext(ctx, askForWork, nil)
	return err
}

// How often a node that takes no work is left for another, which a balancer will
// lead to, before the cluster counts as one that cannot be reached. The pauses
// are random, up to this, lest several who dial at the same time take turns with
// a balancer that does so too.
const (
	nodesTried = 10
	nodesPause = 10 * time.Millisecond
)

// connectToReady connects to a server that works. While none can be reached it
// tries one: the prober looks for others.
func (ctr *connector) connectToReady(caller context.Context) (l link, err error) {
	start := ctr.clock.now()
	for tried := 1; ; tried++ {
		l, err = ctr.connect(caller)
		took := ctr.clock.now() - start
		if !isNotReady(err) {
			return l, err
		}
		if tried == nodesTried || took > ctr.cfg.ConnectTimeout || ctr.outage.isDown() || ctr.life.Err() != nil {
			if !errors.As(err, new(*heldError)) { // whose cause is others' too
				err = tellNodes(err, tried, took)
				ctr.failedToConnect(err)
			}
			return l, err
		}
		waitFor(caller, ctr.life.Done(), rand.N(nodesPause))
	}
}

// tellNodes adds what was tried to the last refusal.
func tellNodes(err error, tried int, took time.Duration) error {
	var connect *connectError
	if tried > 1 && errors.As(err, &connect) {
		connect.text += fmt.Sprintf(" (the last of %d connections in %s, each to a node that takes no work)", tried, took.Round(time.Millisecond))
	}
	return err
}
