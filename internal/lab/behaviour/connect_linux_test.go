package behaviour_test

// Attempts to connect that a stopped server does not answer. They come from an
// address of their own, since no server blocks 127.0.0.1.

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
)

var elsewhere = &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}

// A server that was stopped for a while finds no more attempts to connect than it
// bears, and answers those that it finds: the host is not blocked for what was
// given up meanwhile, and every unit is done.
func TestStoppedServerBlocksNobody(t *testing.T) {
	for _, tt := range []struct {
		kind  server.Kind
		pools int
		lasts time.Duration
	}{
		{server.MariaDB, 10, 75 * time.Second},
		{server.MariaDB, 1, 17 * time.Second},
		{server.MariaDB118, 10, 75 * time.Second},
		{server.MySQL, 10, 75 * time.Second},
	} {
		t.Run(fmt.Sprintf("%s, %d pools, %s", tt.kind, tt.pools, tt.lasts), func(t *testing.T) {
			t.Parallel()
			s, _ := openLedger(t, tt.kind, "--skip-name-resolve=OFF", "--max-connect-errors=100", "--max-connections=500", "--back-log=1000") // for those who wait while it is stopped
			var pools []*livepool.Pool
			var knockers []*countingDialer
			for range tt.pools {
				k := &countingDialer{dialer: *elsewhere}
				p := openWith(t, s.DSN(), func(c *livepool.Config) {
					c.MaxElapsed, c.PoolTimeout, c.Logger, c.MySQL.DialFunc = 5*time.Minute, 5*time.Minute, labtest.DiscardLogger, k.dial
				})
				warmReal(t, p.DB, 4)
				pools, knockers = append(pools, p), append(knockers, k)
			}
			time.Sleep(550 * time.Millisecond)
			if err := s.Pause(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			var wg sync.WaitGroup
			for _, p := range pools {
				for i := range 12 {
					wg.Go(func() {
						if err := p.WithSession(t.Context(), labtest.Insert(i), livepool.VerifyCommit()); err != nil {
							t.Error(err)
						}
					})
				}
				for range 4 { // and those who have little patience, and health checks
					wg.Go(func() {
						for time.Since(began) < tt.lasts {
							ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
							_, _ = p.ExecContext(ctx, "DO 1")
							_ = p.PingContext(ctx)
							<-ctx.Done()
							cancel()
						}
					})
				}
			}
			time.Sleep(time.Until(began.Add(tt.lasts)))
			dials := 0
			for _, k := range knockers {
				dials += k.between(began, time.Now())
			}
			if err := s.Resume(); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			wg.Wait()
			took := time.Since(back)
			if err := ping(t, s, elsewhere); err != nil {
				t.Errorf("a client that comes later: %v", err)
			}
			if n := count(t, s, "t"); n != 12*tt.pools {
				t.Errorf("%d rows of %d units", n, 12*tt.pools)
			}
			t.Logf("%d attempts to connect in %s, by %d pools; all done %s after it", dials, tt.lasts, tt.pools, took.Round(time.Millisecond))
			if dials > 40*tt.pools || took > 30*time.Second {
				t.Error("that is too many, or too long")
			}
			if tt.kind != server.MySQL && !isBlocking(t, s, elsewhere) {
				t.Error("the server blocks nobody: the test shows nothing")
			}
		})
	}
}

// isBlocking says whether a server blocks a host by which many attempts are given up
// while it is stopped. It counts those of which it is told by a reset, and not those whose
// end it reads first, which is a matter of luck.
func isBlocking(t *testing.T, s *server.Server, d *net.Dialer) bool {
	t.Helper()
	for range 5 {
		if blocksAfterManyAttempts(t, s, d) {
			return true
		}
	}
	return false
}

func blocksAfterManyAttempts(t *testing.T, s *server.Server, d *net.Dialer) bool {
	t.Helper()
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	for range 150 {
		nc, err := d.Dial("tcp", s.Addr())
		if err != nil {
			t.Error(err)
			break
		}
		nc.Close()
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if labtest.IsServerError(ping(t, s, d), 1129) {
			return true
		}
	}
	return false
}

// ping is one of a plain client.
func ping(t *testing.T, s *server.Server, d *net.Dialer) error {
	t.Helper()
	cfg, err := mysql.ParseDSN(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	cfg.DialFunc = d.DialContext
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	defer db.Close()
	return db.PingContext(t.Context())
}
