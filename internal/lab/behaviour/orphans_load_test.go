package behaviour_test

// Many give up all the time: what they leave on the server does not pile up, and
// nobody waits long for the end of what is his.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
)

// delayedConn is a connection on which every answer is late.
type delayedConn struct {
	*net.TCPConn
	by time.Duration
}

func (c *delayedConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	time.Sleep(c.by)
	return n, err
}

func (c *delayedConn) SyscallConn() (syscall.RawConn, error) { return c.TCPConn.SyscallConn() }

func dialDelayed(by time.Duration) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &delayedConn{nc.(*net.TCPConn), by}, nil
	}
}

func TestGivenUpStatementsDoNotPileUp(t *testing.T) {
	const callers = 60
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s := orphanServer(t, kind)
			holdLock(t, s)
			for _, way := range []string{"direct", "port rewritten"} {
				t.Run(way, func(t *testing.T) {
					dsn := s.DSN()
					if way != "direct" {
						dsn = s.DSNVia(proxyTo(t, s).Addr())
					}
					p := openWith(t, dsn, func(cfg *livepool.Config) {
						cfg.PoolSize, cfg.MaxOverflow = callers+10, 0
						cfg.MySQL.DialFunc = dialDelayed(30 * time.Millisecond)
					})
					ctx, stop := context.WithTimeout(t.Context(), 8*time.Second)
					defer stop()
					mark := "/* " + t.Name() + " */"
					var given atomic.Int64
					var all sync.WaitGroup
					for range callers {
						all.Go(func() {
							for ctx.Err() == nil {
								c, err := p.Conn(ctx)
								if err != nil {
									continue
								}
								shortCtx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
								if _, err := c.ExecContext(shortCtx, "DO GET_LOCK('held', 60) "+mark); errors.Is(err, context.DeadlineExceeded) {
									given.Add(1)
								}
								cancel()
								c.Close()
							}
						})
					}
					most := 0
					all.Go(func() {
						for ctx.Err() == nil {
							most = max(most, len(threadsRunning(t, s, mark)))
							time.Sleep(50 * time.Millisecond)
						}
					})
					var slowest time.Duration
					for row := 20; row < 26; row++ {
						time.Sleep(500 * time.Millisecond)
						slowest = max(slowest, waitForOwn(t, p, row))
					}
					all.Wait()
					waitWithin(t, 10*time.Second, "nothing is left", func() bool { return len(threadsRunning(t, s, mark)) == 0 })
					st := p.Stats()
					t.Logf("%d given up, %d at work on the server at most; Killed %d, KillUnneeded %d, KillUnproved %d, KillFailed %d; one's own was waited for %s at most",
						given.Load(), most, st.Killed, st.KillUnneeded, st.KillUnproved, st.KillFailed, roundMS(slowest))
					if most > 2*callers || st.KillUnproved+st.KillFailed != 0 {
						t.Errorf("%d statements of %d callers were at work", most, callers)
					}
					if slowest > 3*time.Second {
						t.Errorf("one's own was waited for %s", slowest)
					}
				})
			}
		})
	}
}

// waitForOwn gives up a statement in the middle of a transaction that holds a row
// lock, and tells how long another one waits for that.
func waitForOwn(t *testing.T, p *livepool.Pool, row int) time.Duration {
	t.Helper()
	query := fmt.Sprintf("UPDATE account SET balance = balance + 1 WHERE id = %d", row)
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec(query); err != nil {
		t.Fatal(err)
	}
	shortCtx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tx.ExecContext(shortCtx, "DO GET_LOCK('held', 60)"); err == nil {
		t.Fatal("it did not wait")
	}
	start := time.Now()
	if _, err := p.ExecContext(t.Context(), query); err != nil {
		t.Error(err)
	}
	return time.Since(start)
}
