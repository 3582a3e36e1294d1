package livepool

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Attempts that go on while the server says nothing are given up after the outage also if
// it ends by a refusal.
func TestAttemptsThatGoOnEndAfterARefusalToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lone{}
		p := l.pool(t, nil)
		ctr := p.ctr
		began := ctr.clock.now()
		time.Sleep(time.Millisecond)
		var cancelled atomic.Bool
		o := &opening{ctr: ctr, began: began, cancel: func() { cancelled.Store(true) }, leave: noTurn}
		ctr.outage.remember(o, 16)
		o.goesOn(context.Canceled)
		time.Sleep(ctr.cfg.ConnectTimeout - time.Second)
		ctr.failedToConnect(&connectError{text: "x", cause: &connectTimeoutError{}, began: ctr.clock.now(), silent: true})
		if !ctr.outage.isDown() {
			t.Fatal("no outage")
		}
		time.Sleep(2 * time.Second)
		ctr.failedToConnect(&connectError{text: "x", cause: &mysql.MySQLError{Number: 1045, Message: "Access denied"}, began: ctr.clock.now()})
		if ctr.outage.isDown() {
			t.Fatal("outage goes on")
		}
		time.Sleep(time.Hour)
		ctr.connected()
		time.Sleep(time.Hour)
		if !cancelled.Load() || len(ctr.outage.goneOn) != 0 {
			t.Errorf("two hours after the outage: cancelled %v, %d remembered", cancelled.Load(), len(ctr.outage.goneOn))
		}
	})
}
