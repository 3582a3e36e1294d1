package behaviour_test

// What is an outage, and what is none.

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// The driver's own timeout parameter makes an outage of a host that swallows
// what is sent to it.
func TestOutageByTheDriversTimeout(t *testing.T) {
	var away atomic.Bool
	away.Store(true)
	s := servertest.Run(t, server.MariaDB)
	p := openWith(t, withParams(s.DSN(), "timeout=100ms"), func(c *livepool.Config) {
		c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if away.Load() {
				<-ctx.Done()
				return nil, &net.OpError{Op: "dial", Net: network, Err: labtest.NetTimeoutError{}}
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	wait := labtest.StartUnits(t.Context(), 10, p, labtest.Work)
	time.Sleep(500 * time.Millisecond)
	away.Store(false)
	labtest.CheckNoErrors(t, wait())
}

// A server that refuses, for real: access denied is told at once, and with too
// many connections the unit waits until there is room.
func TestOutageIsNotARefusalOnARealServer(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB, "--max-connections=10")
	t.Run("access denied", func(t *testing.T) {
		p, k := openCounting(t, strings.Replace(s.DSN(), ":"+server.Password+"@", ":wrong@", 1), nil)
		start := time.Now()
		for _, err := range labtest.StartUnits(t.Context(), 20, p, labtest.Insert(1))() {
			if !labtest.IsServerError(err, 1045) {
				t.Errorf("%v, want error 1045", err)
			}
		}
		if n := k.between(start, time.Now()); n != 20 {
			t.Errorf("20 units took %d attempts, want one each", n)
		}
	})
	t.Run("too many connections", func(t *testing.T) {
		plain := openPlain(t, s.DSN())
		var held []func() error
		for len(held) < 30 {
			c, err := plain.Conn(t.Context())
			if err != nil {
				break
			}
			held = append(held, c.Close)
		}
		p, _ := openCounting(t, s.DSN(), nil)
		wait := labtest.StartUnits(t.Context(), 3, p, labtest.Insert(1))
		time.Sleep(200 * time.Millisecond)
		if n := p.Stats().ConnectFailed; n == 0 {
			t.Error("the server had room: the test shows nothing")
		}
		for _, back := range held {
			back()
		}
		plain.Close()
		start := time.Now()
		labtest.CheckNoErrors(t, wait())
		st := p.Stats()
		t.Logf("in %s after there was room; %d attempts failed, %d retried", time.Since(start), st.ConnectFailed, st.Retried)
		if st.Outages != 1 || st.Retried != 0 {
			t.Errorf("%d outages, %d retried", st.Outages, st.Retried)
		}
	})
}

// A login is lost before its answer can be written. For that the driver has an error that
// it does not export; the server is not there all the same, and not refusing.
func TestLoginThatCannotBeWritten(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	for name, open := range map[string]func(dial func(context.Context, string, string) (net.Conn, error)) *livepool.Pool{
		"with livepool's dialer": func(dial func(context.Context, string, string) (net.Conn, error)) *livepool.Pool {
			return openWith(t, s.DSN(), func(c *livepool.Config) { c.MySQL.DialFunc, c.Logger = dial, labtest.DiscardLogger })
		},
		"with the driver's": func(dial func(context.Context, string, string) (net.Conn, error)) *livepool.Pool {
			my, err := mysql.ParseDSN(s.DSN())
			if err != nil {
				t.Fatal(err)
			}
			my.DialFunc = dial
			c, err := mysql.NewConnector(my)
			if err != nil {
				t.Fatal(err)
			}
			return labtest.Open(t, c, func(c *livepool.Config) { c.Logger = labtest.DiscardLogger })
		},
	} {
		var dials atomic.Int64
		p := open(func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil && dials.Add(1)%6 != 0 {
				err = c.(*net.TCPConn).CloseWrite() // the server's greeting comes; no answer can be written
			}
			return c, err
		})
		if _, err := p.Exec("DO 1"); err != nil || dials.Load() != 6 {
			t.Errorf("%s: a statement, after %d dials: %v", name, dials.Load(), err)
		}
		if n := p.Stats().Outages; n != 1 {
			t.Errorf("%s: %d outages", name, n)
		}
	}
}
