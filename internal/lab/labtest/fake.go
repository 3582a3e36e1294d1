package labtest

import (
	"database/sql"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

// OpenFake opens a pool on f with the defaults as changed by change, but without
// the keep-alive, so that a dead connection is left for a caller to find.
func OpenFake(t testing.TB, f *fakedb.DB, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	return Open(t, f, func(c *livepool.Config) {
		c.KeepAlive, c.Logger = 0, DiscardLogger
		if change != nil {
			change(c)
		}
	})
}

// OpenRecording opens a pool on d with the defaults as changed by change.
func OpenRecording(t testing.TB, d *fakedb.RecordingDB, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	return Open(t, d, func(c *livepool.Config) {
		c.Logger = DiscardLogger
		if change != nil {
			change(c)
		}
	})
}

// CheckStats compares the pool's Stats with what the database has recorded.
func CheckStats(t *testing.T, d *fakedb.RecordingDB, p *livepool.Pool) {
	t.Helper()
	synctest.Wait()
	s := p.Stats()
	if n := d.OpenConns(); s.OpenConnections != n || s.Idle != n-s.InUse {
		t.Errorf("%d connections are open; the pool says %d, of which %d in use and %d idle", n, s.OpenConnections, s.InUse, s.Idle)
	}
}

// TakeConcurrently has n callers take a connection each at the same time.
func TakeConcurrently(t testing.TB, p *livepool.Pool, n int) []*sql.Conn {
	held := make([]*sql.Conn, n)
	var wg sync.WaitGroup
	for i := range held {
		wg.Go(func() {
			c, _ := fakedb.Take(t, p.DB, 1)
			held[i] = c[0]
		})
	}
	wg.Wait()
	return held
}
