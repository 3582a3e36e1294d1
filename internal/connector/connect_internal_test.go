package connector

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Attempts that continue while the server says nothing are aborted after the outage, also
// if it ends by a refusal.
func TestAttemptsThatGoOnEndAfterARefusalToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &exclusiveDB{}
		p := l.pool(t, nil)
		ctr := p.ctr
		began := ctr.clock.Now()
		time.Sleep(time.Millisecond)
		var cancelled atomic.Bool
		o := &connectAttempt{ctr: ctr, startedAt: began, cancel: func() { cancelled.Store(true) }, releaseDial: noTurn}
		if !o.keep(1) || (&connectAttempt{ctr: ctr}).keep(1) {
			t.Error("the limit is not 1")
		}
		o.continueForPool(t.Context(), context.Canceled)
		time.Sleep(ctr.Cfg.ConnectTimeout - time.Second)
		ctr.recordConnectFailure(&ConnectError{Text: "x", Cause: &connectTimeoutError{}, startedAt: ctr.clock.Now(), noReply: true})
		if !ctr.Outage.IsDown() {
			t.Fatal("no outage")
		}
		time.Sleep(2 * time.Second)
		ctr.recordConnectFailure(&ConnectError{Text: "x", Cause: &mysql.MySQLError{Number: 1045, Message: "Access denied"}, startedAt: ctr.clock.Now()})
		if ctr.Outage.IsDown() {
			t.Fatal("outage goes on")
		}
		if time.Sleep(ctr.Cfg.ConnectTimeout - time.Second); cancelled.Load() {
			t.Error("aborted before the server had the time to answer")
		}
		time.Sleep(time.Hour)
		ctr.Outage.Connected()
		time.Sleep(time.Hour)
		if !cancelled.Load() || o.kept.Load() || ctr.keptAttempts.Load() != 0 {
			t.Errorf("two hours after the outage: cancelled %v, kept %v", cancelled.Load(), o.kept.Load())
		}
	})
}
