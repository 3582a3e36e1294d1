package livepool_test

// What the tests on a fake driver share.

import (
	"database/sql"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

// openFake opens a pool on f with the defaults as changed by change, but for the
// keep-alive: what callers meet is theirs to find.
func openFake(t testing.TB, f *fakedb.DB, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg := livepool.NewConfig()
	cfg.KeepAlive = 0
	cfg.Logger = slog.New(slog.DiscardHandler)
	if change != nil {
		change(cfg)
	}
	p, err := livepool.OpenConnector(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// openRecording opens a pool of the defaults as changed by change.
func openRecording(t testing.TB, d *fakedb.RecordingDB, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg := livepool.NewConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	if change != nil {
		change(cfg)
	}
	p, err := livepool.OpenConnector(d, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// tellsTruth compares the pool's own account with the database's.
func tellsTruth(t *testing.T, d *fakedb.RecordingDB, p *livepool.Pool) {
	t.Helper()
	synctest.Wait()
	s := p.Stats()
	if n := d.OpenConns(); s.OpenConnections != n || s.Idle != n-s.InUse {
		t.Errorf("%d connections are open; the pool says %d, of which %d in use and %d idle", n, s.OpenConnections, s.InUse, s.Idle)
	}
}

// takeConcurrently has n callers take a connection each at the same time.
func takeConcurrently(t testing.TB, p *livepool.Pool, n int) []*sql.Conn {
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
