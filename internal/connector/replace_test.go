package connector_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A replacement that the server refuses is not tried again at once: what
// the server refuses now it refuses a moment later.
func TestRefusedReplacementIsNoStorm(t *testing.T) {
	const conns = 10
	synctest.Test(t, func(t *testing.T) {
		d := &fakedb.RecordingDB{}
		d.OnConnect = func(_ context.Context, n int64) error {
			time.Sleep(time.Millisecond) // without it a storm would stop the fake time
			if n > conns {
				return &mysql.MySQLError{Number: 1045, Message: "Access denied"}
			}
			return nil
		}
		p := labtest.OpenRecording(t, d, func(c *livepool.Config) { c.Recycle, c.RecycleJitter = 30*time.Second, 0 })
		fakedb.Warm(t, p.DB, conns)
		time.Sleep(40 * time.Second) // all of them expire
		if n := d.Connects.Load() - conns; n > 3*conns || n < 1 {
			t.Errorf("the replacements of %d connections were dialled %d times", conns, n)
		}
	})
}
