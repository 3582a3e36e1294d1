package connector_test

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

// A busy pool on several hosts is ready if one of them is there that it would use: neither does
// the first of the list stand for all, nor one that has another role.
func TestBusyPoolOnSeveralHostsIsReady(t *testing.T) {
	refused, full := error(syscall.ECONNREFUSED), fakedb.ServerError(1040, "Too many connections")
	const primary, replica, preferReplica, anyHost = livepool.TargetPrimary, livepool.TargetReplica, livepool.TargetPreferReplica, livepool.TargetAny
	for _, tt := range []struct {
		name                   string
		target                 livepool.Target
		isReplicaA, isReplicaB bool
		failA, failB           error // of new connections, while the pool is busy
		want                   bool
	}{
		{"the first is down", replica, true, true, refused, nil, true},
		{"the first is down", preferReplica, true, true, refused, nil, true},
		{"the first is down", anyHost, false, false, refused, nil, true},
		{"the first is down, and another one has taken over", primary, false, false, refused, nil, true},
		{"the last is down", anyHost, false, false, nil, refused, true},
		{"the only replica is down", replica, false, true, nil, refused, false},
		{"the only replica is down, and the primary serves", preferReplica, false, true, nil, refused, true},
		{"the only replica is full", replica, false, true, nil, full, true},
		{"the primary is full", primary, false, true, full, nil, true},
		{"all are down", replica, true, true, refused, refused, false},
		{"all are down", preferReplica, true, true, refused, refused, false},
		{"all are down", anyHost, false, false, refused, refused, false},
		{"all are down", primary, false, true, refused, refused, false},
	} {
		t.Run(tt.name+"/"+tt.target.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", tt.isReplicaA), newHost("b", tt.isReplicaB)
				var fail atomic.Bool
				for h, err := range map[*fakedb.Host]error{a: tt.failA, b: tt.failB} {
					h.OnConnect = func(context.Context, int64) error {
						if fail.Load() {
							return err
						}
						return nil
					}
				}
				p, _ := openHosts(t, func(c *livepool.Config) { c.Target, c.PoolSize, c.MaxOverflow = tt.target, 1, 0 }, a, b)
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				time.Sleep(time.Minute)
				fail.Store(true)
				err = p.Ready(t.Context())
				if isTold := !p.Stats().UnreachableSince.IsZero(); (err == nil) != tt.want || isTold == tt.want || !tt.want && !errors.Is(err, livepool.ErrUnreachable) {
					t.Errorf("%v, and Stats tells of an outage: %v, want ready: %v", err, isTold, tt.want)
				}
				if open := a.OpenConns() + b.OpenConns(); open != 1 {
					t.Errorf("%d connections are open, want the one in use", open)
				}
				fail.Store(false)
				time.Sleep(2 * time.Second)
				if err := p.Ready(t.Context()); err != nil || !p.Stats().UnreachableSince.IsZero() {
					t.Errorf("when all are back: %v", err)
				}
			})
		})
	}
}
