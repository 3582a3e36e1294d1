package connector_test

import (
	"context"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A replacement that the server refuses is not tried again at once: the server
// may refuse because too many try. In real time, since a storm stops the fake one.
func TestRefusedReplacementIsNoStorm(t *testing.T) {
	t.Parallel()
	d := &fakedb.RecordingDB{}
	d.OnConnect = func(_ context.Context, n int64) error {
		if n > 1 {
			return &mysql.MySQLError{Number: 1203, Message: "User has too many active connections"}
		}
		return nil
	}
	p := labtest.OpenRecording(t, d, func(c *livepool.Config) {
		c.Recycle, c.RecycleJitter, c.KeepAlive = 3*time.Second, 0, 500*time.Millisecond
	})
	fakedb.ServedBy(t, p)
	labtest.Eventually(t, "the replacement is dialled", func() bool { return d.Connects.Load() > 1 })
	time.Sleep(200 * time.Millisecond)
	p.Close()
	if n := d.Connects.Load() - 1; n > 8 || n < 1 {
		t.Errorf("one connection's replacement was dialled %d times", n)
	}
}
