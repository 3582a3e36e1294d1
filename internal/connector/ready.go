// ready.go answers whether the server can be worked with now, for a readiness probe.

package connector

import (
	"context"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// Ready asks the server, over a connection of the pool, or where all are in use over one
// that is opened for it: a pool that is only busy is ready. It does not wait for the end of
// an outage.
func (ctr *Connector) Ready(ctx context.Context) error {
	if changed := ctr.Outage.RequestProbe(); changed != nil {
		clock.Wait(ctx, changed, ctr.Cfg.ConnectTimeout)
	}
	if err := ctr.Outage.Cause(); err != nil {
		return err
	}
	if err := ctr.reach(ctx); err != nil {
		return err
	}
	return ctr.Outage.StillRefused(ctx, time.Now().Add(ctr.Cfg.PingTimeout))
}

// reach is the ping of Ready.
func (ctr *Connector) reach(ctx context.Context) error {
	db := ctr.Limits.db
	if st := db.Stats(); st.MaxOpenConnections == 0 || st.InUse < st.MaxOpenConnections {
		bounded, cancel := context.WithTimeout(ctx, ctr.Cfg.ConnectTimeout+ctr.Cfg.PingTimeout)
		defer cancel()
		err := db.PingContext(bounded)
		if err == nil || ctx.Err() != nil || !mysqlerr.CallerGaveUp(err) {
			return err
		}
	}
	release, err := acquire(ctx, ctr.readyDial) // no limit of dials holds for these
	if err != nil {
		return err
	}
	defer release()
	l, err := ctr.dialForReady(ctx)
	if mysqlerr.IsTooManyConnections(err) {
		return nil // it answers, and the pool has its connections
	}
	l.close()
	return err
}

// dialForReady opens a connection that is not for the pool: of several hosts to one that the pool
// would use, for any other one may be down, and has another role.
func (ctr *Connector) dialForReady(ctx context.Context) (link, error) {
	if ctr.hostSet == nil {
		return ctr.dialSide(ctx, ctr.mainHost())
	}
	l, err := ctr.open(ctx, nil, 0, noTurn)
	ctr.noteSide(&l, err)
	return l, err
}
