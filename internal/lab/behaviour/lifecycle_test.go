package behaviour_test

// Whether work can be done now, how a pool is shut down, and pools that are opened by a
// driver's name or with a wrapped driver.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Ready tells a pool that is only busy from a server that is down, full, silent or
// read-only, and says yes as soon as that is over.
func TestReady(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s, _ := openLedger(t, kind)
			px := proxyTo(t, s)
			p := open(t, s.AppDSN(px.Addr()), "pool_size=2&pool_max_overflow=0&pool_connect_timeout=1s&pool_ping_timeout=500ms")
			check := func(state, want string) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				err := p.Ready(ctx)
				st := p.Stats()
				switch {
				case want == "" && (err != nil || !st.UnreachableSince.IsZero() || !st.WritesRefusedSince.IsZero() || st.OutageCause != ""):
					t.Errorf("%s: %v; unreachable since %s, writes refused since %s: %s", state, err, st.UnreachableSince, st.WritesRefusedSince, st.OutageCause)
				case want != "" && (!errors.Is(err, livepool.ErrUnreachable) || !strings.Contains(err.Error(), want)):
					t.Errorf("%s: %v", state, err)
				case want != "" && (st.OutageCause == "" || st.UnreachableSince.IsZero() && st.WritesRefusedSince.IsZero()):
					t.Errorf("%s: Stats says nothing: %+v", state, st)
				}
			}
			eventually := func(state string) {
				t.Helper()
				labtest.Eventually(t, "ready again after "+state, func() bool { return p.Ready(t.Context()) == nil })
				check("after "+state, "")
			}
			check("at first", "")

			held := []*sql.Conn{}
			for range 2 {
				c, _ := takeConn(t, p)
				held = append(held, c)
			}
			check("busy", "")
			patient := open(t, s.AppDSN(px.Addr()), "pool_size=1&pool_max_overflow=0&pool_connect_timeout=1m")
			only, _ := takeConn(t, patient)
			defer only.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := patient.Ready(ctx); err != nil {
				t.Errorf("busy: %v before its patience is over", err)
			}
			px.Refuse()
			px.RST()
			labtest.Eventually(t, "it is seen that the server is away", func() bool { return p.Ready(t.Context()) != nil })
			check("busy and down", "cannot be reached")
			if err := px.Reopen(); err != nil {
				t.Fatal(err)
			}
			for _, c := range held {
				c.Close()
			}
			eventually("an outage")

			if err := s.SetReadOnly(true); err != nil {
				t.Fatal(err)
			}
			check("read-only, which nobody has noticed", "")
			wait := labtest.StartUnits(t.Context(), 1, p, labtest.Insert(1))
			labtest.Eventually(t, "a write is refused", func() bool { return !p.Stats().WritesRefusedSince.IsZero() })
			check("read-only", "takes no writes")
			if err := s.SetReadOnly(false); err != nil {
				t.Fatal(err)
			}
			labtest.CheckNoErrors(t, wait())
			eventually("read-only")

			px.HangNew(true)
			px.RST()
			check("silent", "says nothing")
			px.HangNew(false)
			eventually("silence")
			p.Close()
			if err := p.Ready(t.Context()); !errors.Is(err, livepool.ErrPoolClosed) {
				t.Errorf("closed: %v", err)
			}
		})
	}
}

// A refusal of writes that nobody waits for is asked about: who waits for Ready before it
// works would wait for ever.
func TestReadyAsksWhereNobodyWaits(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	p := open(t, s.AppDSN(s.Addr()), "pool_ping_timeout=300ms")
	if err := s.SetReadOnly(true); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := p.WithSession(ctx, labtest.Insert(1)); err == nil {
		t.Fatal("a unit was written on a read-only server")
	}
	if err := p.Ready(t.Context()); !errors.Is(err, livepool.ErrUnreachable) {
		t.Errorf("read-only: %v", err)
	}
	if err := s.SetReadOnly(false); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, "Ready sees that writes are taken", func() bool { return p.Ready(t.Context()) == nil })
}

// A shutdown in the middle of units whose connection dies: each comes to its end, with all
// that it needs, and nothing else begins.
func TestShutdown(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	p := open(t, s.DSN(), "")
	started, goOn := make(chan struct{}, 10), make(chan struct{})
	var hooks atomic.Int64
	units := labtest.StartUnits(t.Context(), 5, p, func(ctx context.Context, ses *livepool.Session) error {
		if err := labtest.Insert(1)(ctx, ses); err != nil {
			return err
		}
		if ses.Attempt() == 1 {
			started <- struct{}{}
			<-goOn
			if err := s.Exec(fmt.Sprintf("KILL %d", connectionID(t, ses))); err != nil {
				t.Error(err)
			}
		}
		ses.AfterCommit(func(ctx context.Context) {
			if err := p.WithSession(ctx, labtest.Insert(2)); err != nil {
				t.Errorf("a unit of a hook: %v", err)
			}
			hooks.Add(1)
		})
		if err := p.WithSession(ctx, labtest.Insert(3), livepool.RequiresNew()); err != nil {
			return err
		}
		return p.WithSession(ctx, labtest.Insert(4))
	})
	retried := make(chan error, 1)
	go func() {
		retried <- p.Retry(t.Context(), func(ctx context.Context) error {
			started <- struct{}{}
			<-goOn
			_, err := p.ExecContext(ctx, "INSERT INTO t (v) VALUES (5)")
			return err
		})
	}()
	plain, err := p.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 6 {
		<-started
	}

	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Shutdown(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "6 units of work and 6 connections are in use") ||
		!strings.Contains(err.Error(), "has held its connection longest") {
		t.Errorf("the shutdown whose context ended: %v", err)
	}
	for name, begin := range map[string]func() error{
		"a unit":      func() error { return p.WithSession(t.Context(), labtest.Insert(9)) },
		"Retry":       func() error { return p.Retry(t.Context(), func(context.Context) error { return insertOn(p, 9) }) },
		"a statement": func() error { return insertOn(p, 9) },
		"a ping":      func() error { return p.PingContext(t.Context()) },
		"Ready":       func() error { return p.Ready(t.Context()) },
	} {
		if err := begin(); !errors.Is(err, livepool.ErrPoolClosed) || !livepool.Retryable(err) {
			t.Errorf("%s during a shutdown: %v", name, err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- p.Shutdown(t.Context()) }()
	close(goOn)
	labtest.CheckNoErrors(t, units())
	if err := <-retried; err != nil {
		t.Errorf("Retry: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("the shutdown did not wait for a transaction: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := errors.Join(insertOn(plain, 6), plain.Commit()); err != nil {
		t.Errorf("the transaction under way: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("the shutdown: %v", err)
	}
	if err := p.WithSession(t.Context(), labtest.Insert(9)); !errors.Is(err, livepool.ErrPoolClosed) {
		t.Errorf("after it: %v", err)
	}
	var rows string
	if err := s.QueryRow("SELECT GROUP_CONCAT(DISTINCT v ORDER BY v) FROM test.t", &rows); err != nil || rows != "1,2,3,4,5,6" || hooks.Load() != 5 {
		t.Errorf("rows of %s, %d hooks, %v", rows, hooks.Load(), err)
	}
	if n := count(t, s, "t WHERE v IN (1, 2, 4)"); n != 15 {
		t.Errorf("%d rows of the units, want 15", n)
	}
}

// Shutdown would wait for itself where it is called by what it waits for.
func TestShutdownInside(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	var inHook error
	check := func(where string, err error) {
		if err == nil || !strings.Contains(err.Error(), "by what it would wait for") {
			t.Errorf("%s: %v", where, err)
		}
	}
	check("in a unit", p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error { return p.Shutdown(ctx) }))
	check("in Retry", p.Retry(t.Context(), func(ctx context.Context) error { return p.Shutdown(ctx) }))
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		s.AfterCommit(func(ctx context.Context) { inHook = p.Shutdown(ctx) })
		return labtest.Work(ctx, s)
	}); err != nil {
		t.Error(err)
	}
	check("in a hook", inHook)
	if err := p.Shutdown(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Many probes of a busy pool open one connection at a time.
func TestReadyOfABusyPoolIsNoStorm(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	var dialing, most atomic.Int64
	p := openWith(t, withParams(s.DSN(), "pool_size=1&pool_max_overflow=0"), func(c *livepool.Config) {
		c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			most.Store(max(most.Load(), dialing.Add(1)))
			defer dialing.Add(-1)
			time.Sleep(10 * time.Millisecond)
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	takeConn(t, p)
	var probes sync.WaitGroup
	for range 30 {
		probes.Go(func() {
			if err := p.Ready(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	probes.Wait()
	if most.Load() > 1 {
		t.Errorf("%d were opened at the same time", most.Load())
	}
}

// A tool that opens by a driver's name gets living connections, and reads a DSN with the
// settings of a Pool in it.
func TestDriverByName(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	for name, openByName := range map[string]func() *sql.DB{
		"sql.Open": func() *sql.DB {
			db, err := sql.Open("livepool", withParams(s.DSN(), "pool_size=3&pool_min_idle=2"))
			if err != nil {
				t.Fatal(err)
			}
			return db
		},
		"a wrapper that calls Open": func() *sql.DB {
			byName, err := sql.Open("livepool", s.DSN())
			if err != nil {
				t.Fatal(err)
			}
			defer byName.Close()
			return sql.OpenDB(dsnConnector{byName.Driver(), s.DSN()})
		},
	} {
		db := openByName()
		defer db.Close()
		if _, ok := db.Driver().(*mysql.MySQLDriver); ok {
			t.Errorf("%s: the driver is that of MySQL, which wrappers would take in place of livepool's", name)
		}
		warmReal(t, db, 2)
		if err := s.KillConnections(); err != nil {
			t.Fatal(err)
		}
		labtest.AwaitDisconnect(t, s)
		for range 4 {
			if _, err := db.Exec("DO 1"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := sql.Open("livepool", s.DSN()+"?pool_sise=3"); err == nil || !strings.Contains(err.Error(), "did you mean pool_size") {
		t.Errorf("a misspelt parameter: %v", err)
	}
}

// dsnConnector opens as a wrapper does that knows no driver.DriverContext.
type dsnConnector struct {
	d   driver.Driver
	dsn string
}

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.d.Open(c.dsn) }
func (c dsnConnector) Driver() driver.Driver                        { return c.d }

// A wrapped driver, for tracing, sees what is sent, and takes nothing away: units, the look
// at the socket, the kill of what was abandoned.
func TestWrappedDriver(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	px := proxyTo(t, s)
	var seen traced
	p := openWith(t, withParams(s.DSNVia(px.Addr()), "pool_pre_ping=always"), func(c *livepool.Config) {
		c.Logger = labtest.DiscardLogger
		c.Wrap = func(inner driver.Connector) driver.Connector {
			return &tracedConnector{inner, &seen}
		}
	})
	px.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.RST)
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("a")); err != nil {
		t.Errorf("a unit whose COMMIT was lost: %v", err)
	}
	warmReal(t, p.DB, 2)
	if err := s.KillConnections(); err != nil {
		t.Fatal(err)
	}
	labtest.AwaitDisconnect(t, s)
	if err := insertOn(p, 2); err != nil {
		t.Errorf("after a KILL: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.ExecContext(ctx, "DO SLEEP(60)"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a statement whose context ended: %v", err)
	}
	labtest.Eventually(t, "it is killed", func() bool { return p.Stats().Killed == 1 })
	if n := count(t, s, "t"); n != 2 || seen.execs.Load() < 3 || seen.pings.Load() == 0 || seen.canEnd.Load() != 1 {
		t.Errorf("%d rows; traced: %d statements, %d of them under a context that can end, %d pings", n, seen.execs.Load(), seen.canEnd.Load(), seen.pings.Load())
	}
	half := openWith(t, s.DSN(), func(c *livepool.Config) {
		c.Logger = labtest.DiscardLogger
		c.Wrap = func(inner driver.Connector) driver.Connector { return halfConnector{inner} }
	})
	if _, err := half.ExecContext(t.Context(), "DO 1"); err == nil || !strings.Contains(err.Error(), "Config.Wrap lack driver.") {
		t.Errorf("a wrapper that hides what the driver can do: %v", err)
	}
	for name, wrap := range map[string]func(driver.Connector) driver.Connector{
		"nothing": func(driver.Connector) driver.Connector { return nil },
		"a panic": func(driver.Connector) driver.Connector { panic("no") },
	} {
		cfg, err := livepool.ParseDSN(s.DSN())
		if err != nil {
			t.Fatal(err)
		}
		cfg.Wrap, cfg.Logger = wrap, labtest.DiscardLogger
		if p, err := livepool.OpenConfig(cfg); err == nil || !strings.Contains(err.Error(), "Config.Wrap") {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

// halfConnector hides the optional interfaces of its connections.
type halfConnector struct{ driver.Connector }

func (c halfConnector) Connect(ctx context.Context) (driver.Conn, error) {
	dc, err := c.Connector.Connect(ctx)
	return struct{ driver.Conn }{dc}, err
}

// tracedConnector counts the statements on its connections.
type tracedConnector struct {
	driver.Connector
	seen *traced
}

// traced is what a wrapper has seen.
type traced struct{ execs, canEnd, pings atomic.Int64 }

func (c *tracedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	dc, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &tracedConn{dc.(driversConn), c.seen}, nil
}

// driversConn is what the driver's connections can do.
type driversConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.QueryerContext
	driver.ExecerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
	driver.NamedValueChecker
}

type tracedConn struct {
	driversConn
	seen *traced
}

func (c *tracedConn) Ping(ctx context.Context) error {
	c.seen.pings.Add(1)
	return c.driversConn.Ping(ctx)
}

func (c *tracedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.seen.execs.Add(1)
	if ctx.Done() != nil && query == "DO SLEEP(60)" {
		c.seen.canEnd.Add(1)
	}
	return c.driversConn.ExecContext(context.WithValue(ctx, c, "a span"), query, args)
}
