package connector_test

// Connections whose server answers and refuses.

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A unit that was refused by a server that is read-only by now does not meet it
// again by each of the connections that are left of it.
func TestRefusedUnitMeetsNoOtherOldConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		fakedb.Warm(t, p.DB, 5)
		refused := 0
		f.OnExec = func(_ context.Context, c *fakedb.Conn, _ string) error {
			if c.ID <= 5 {
				refused++
				return fakedb.ServerError(1290, readOnlyText)
			}
			return nil
		}
		if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.MaxAttempts(2)); err != nil || refused != 1 {
			t.Errorf("got %v after %d refusals, want success at the second attempt", err, refused)
		}
	})
}

// The same of a connection with an XA branch that somebody has left open, and of
// one that a proxy refuses since the password was changed.
func TestUselessConnectionIsReplaced(t *testing.T) {
	for _, number := range []uint16{1399, 1045, 1862, 3118} {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PrePing = livepool.PrePingOff })
				fakedb.Warm(t, p.DB, 1)
				time.Sleep(time.Minute)
				refuses := func(c *fakedb.Conn) error {
					if c.ID == 1 {
						return fakedb.ServerError(number, "refused")
					}
					return nil
				}
				f.OnExec = func(_ context.Context, c *fakedb.Conn, _ string) error { return refuses(c) }
				f.OnBegin = refuses
				if err := p.WithSession(t.Context(), labtest.Work); err != nil {
					t.Errorf("unit: %v", err)
				}
				if id := fakedb.ServedBy(t, p); id == 1 || !f.Conns()[0].Closed.Load() {
					t.Errorf("served by connection %d", id)
				}
				p.Close()
			})
		})
	}
}

// Likewise after every other refusal of all work.
func TestProcedureThatMeetsARefusalOfAllWorkIsSentOnce(t *testing.T) {
	for _, number := range []uint16{1399, 1045, 1820, 1862, 3118} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PrePing = livepool.PrePingOff })
			fakedb.Warm(t, p.DB, 1)
			time.Sleep(time.Minute)
			calls := 0
			f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
				if strings.HasPrefix(query, "CALL") {
					calls++
				}
				return fakedb.ServerError(number, "refused")
			}
			if _, err := p.Exec("CALL half()"); calls != 1 || !labtest.IsServerError(err, number) {
				t.Errorf("%d: %v after %d calls, want it after one", number, err, calls)
			}
			p.Close()
		})
	}
}
