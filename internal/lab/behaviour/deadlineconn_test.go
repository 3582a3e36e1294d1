package behaviour_test

// Dialers and network connections that mind neither contexts nor deadlines.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// noDeadlineConn is a connection without deadlines, whose Close ends no Read. Frozen, it
// takes what is sent and gives nothing back.
type noDeadlineConn struct {
	net.Conn
	frozen  *atomic.Bool
	blocked chan struct{}
}

func (c *noDeadlineConn) wait() {
	if c.frozen.Load() {
		<-c.blocked
	}
}
func (c *noDeadlineConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.wait()
	return n, err
}
func (c *noDeadlineConn) Write(b []byte) (int, error)      { return c.Conn.Write(b) }
func (c *noDeadlineConn) Close() error                     { c.wait(); return c.Conn.Close() }
func (c *noDeadlineConn) SetDeadline(time.Time) error      { return errors.New("no deadlines here") }
func (c *noDeadlineConn) SetReadDeadline(time.Time) error  { return errors.New("no deadlines here") }
func (c *noDeadlineConn) SetWriteDeadline(time.Time) error { return errors.New("no deadlines here") }

func TestConnectionsThatMindNoDeadline(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	wedged := make(chan struct{})
	defer close(wedged)
	var frozen *atomic.Bool // of the connections that are dialled now
	open := func() *livepool.Pool {
		frozen = new(atomic.Bool)
		p := openWith(t, s.DSN(), func(c *livepool.Config) {
			c.Logger, c.ConnectTimeout, c.CommitTimeout, c.StallAfter, c.OutageWait = labtest.DiscardLogger, time.Second, time.Second, time.Second, 0
			c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, addr)
				return &noDeadlineConn{nc, frozen, wedged}, err
			}
		})
		warmReal(t, p.DB, 2)
		return p
	}
	freeze := func() { frozen.Store(true) }
	thaw := func() { frozen = new(atomic.Bool) } // for those to come

	p := open()
	labtest.ReturnsWithin(t, "work", 10*time.Second, func() {
		for range 20 {
			if err := p.WithSession(t.Context(), labtest.Insert(1)); err != nil {
				t.Error(err)
			}
		}
	})
	freeze()
	labtest.ReturnsWithin(t, "Exec under a context", 10*time.Second, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	labtest.ReturnsWithin(t, "Ping", 20*time.Second, func() {
		if err := p.Ping(); err == nil {
			t.Error("it succeeded")
		}
	})
	labtest.ReturnsWithin(t, "Close", 20*time.Second, func() { p.Close() })

	p = open()
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO t (v) VALUES (2)"); err != nil {
		t.Fatal(err)
	}
	freeze()
	labtest.ReturnsWithin(t, "Commit", 20*time.Second, func() {
		if err := tx.Commit(); !errors.Is(err, livepool.ErrCommitUnknown) {
			t.Errorf("%v, want an unknown outcome", err)
		}
	})
	labtest.ReturnsWithin(t, "Close", 20*time.Second, func() { p.Close() })

	p = open()
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	connectionID(t, c)
	freeze()
	thaw()
	labtest.ReturnsWithin(t, "Exec that stalls", 30*time.Second, func() {
		if _, err := c.ExecContext(context.Background(), "DO 1"); err == nil {
			t.Error("it succeeded")
		}
	})
	labtest.ReturnsWithin(t, "a unit meanwhile", 30*time.Second, func() {
		if err := p.WithSession(t.Context(), labtest.Insert(3)); err != nil {
			t.Error(err)
		}
	})
	c.Close()
	labtest.ReturnsWithin(t, "Close", 20*time.Second, func() { p.Close() })
}

// lateConn delivers a write and returns later.
type lateConn struct {
	net.Conn
	late   *atomic.Bool
	writes *sync.WaitGroup
}

func (c lateConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	defer c.writes.Done()
	n, err := c.Conn.Write(b)
	if c.late.CompareAndSwap(true, false) {
		time.Sleep(1500 * time.Millisecond)
	}
	return n, err
}

// A COMMIT that a tunnel takes in time and acknowledges too late has arrived: the outcome
// is unknown, also where TLS says that nothing was written.
func TestCommitThatIsWrittenLate(t *testing.T) {
	t.Parallel()
	s := servertest.RunOptions(t, server.MariaDB, server.Options{TLS: true})
	if err := mysql.RegisterTLSConfig(t.Name(), s.TLSConfig()); err != nil {
		t.Fatal(err)
	}
	createTables(t, s)
	for i, params := range []string{"", "tls=" + t.Name()} {
		var late atomic.Bool
		var writes sync.WaitGroup
		p := openWith(t, withParams(s.DSN(), params+"&pool_commit_timeout=1s&pool_kill_abandoned=false&pool_stall_after=0"), func(c *livepool.Config) {
			c.Logger = labtest.DiscardLogger
			c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, addr)
				return lateConn{nc, &late, &writes}, err
			}
		})
		runs := 0
		err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
			runs++
			err := insertLiteral(i)(ctx, u)
			late.Store(runs == 1)
			return err
		})
		if !errors.Is(err, livepool.ErrCommitUnknown) || runs != 1 {
			t.Errorf("%q: %v after %d runs, want an unknown outcome after one", params, err, runs)
		}
		labtest.Eventually(t, "it is there, once", func() bool { return count(t, s, fmt.Sprintf("t WHERE v = %d", i)) == 1 })
		p.Close()
		writes.Wait()
	}
}
