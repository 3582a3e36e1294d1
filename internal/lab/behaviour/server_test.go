package behaviour_test

// Behaviour on real servers, of each kind, under real faults.

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// waysToUse are the ways to use a *sql.DB: none of them may meet a stale
// connection.
var waysToUse = []struct {
	name string
	use  func(ctx context.Context, db *sql.DB) error
}{
	{"QueryRow", func(ctx context.Context, db *sql.DB) error {
		var n int
		return db.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(&n)
	}},
	{"QueryRow with arguments", func(ctx context.Context, db *sql.DB) error {
		var n int
		return db.QueryRowContext(ctx, "SELECT COUNT(*) FROM t WHERE id > ?", 1).Scan(&n)
	}},
	{"Exec", func(ctx context.Context, db *sql.DB) error {
		_, err := db.ExecContext(ctx, "INSERT INTO t (v) VALUES (1)")
		return err
	}},
	{"Exec with arguments", func(ctx context.Context, db *sql.DB) error {
		_, err := db.ExecContext(ctx, "INSERT INTO t (v) VALUES (?)", 2)
		return err
	}},
	{"Begin, Exec, Commit", func(ctx context.Context, db *sql.DB) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, "INSERT INTO t (v) VALUES (?)", 3); err != nil {
			return err
		}
		return tx.Commit()
	}},
	{"Prepare, Exec", func(ctx context.Context, db *sql.DB) error {
		s, err := db.PrepareContext(ctx, "INSERT INTO t (v) VALUES (?)")
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.ExecContext(ctx, 4)
		return err
	}},
	{"Conn, Exec", func(ctx context.Context, db *sql.DB) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.ExecContext(ctx, "INSERT INTO t (v) VALUES (5)")
		return err
	}},
	{"Ping", func(ctx context.Context, db *sql.DB) error { return db.PingContext(ctx) }},
}

// idleDeaths are what happens to idle connections.
var idleDeaths = []struct {
	name string
	do   func(t *testing.T, s *server.Server, via *proxy.Proxy)
}{
	{"wait_timeout", func(t *testing.T, s *server.Server, _ *proxy.Proxy) { // needs a short one
		labtest.AwaitDisconnect(t, s)
	}},
	{"KILL", func(t *testing.T, s *server.Server, _ *proxy.Proxy) {
		if err := s.KillConnections(); err != nil {
			t.Fatal(err)
		}
	}},
	{"SIGKILL and restart", func(t *testing.T, s *server.Server, _ *proxy.Proxy) {
		if err := errors.Join(s.Kill(), s.Restart()); err != nil {
			t.Fatal(err)
		}
	}},
	{"shutdown and restart", func(t *testing.T, s *server.Server, _ *proxy.Proxy) {
		if err := errors.Join(s.Stop(), s.Restart()); err != nil {
			t.Fatal(err)
		}
	}},
	{"FIN", func(_ *testing.T, _ *server.Server, via *proxy.Proxy) { via.FIN() }},
	{"RST", func(_ *testing.T, _ *server.Server, via *proxy.Proxy) { via.RST() }},
	{"black hole", func(_ *testing.T, _ *server.Server, via *proxy.Proxy) { via.Stall() }},
	{"replies dropped", func(t *testing.T, _ *server.Server, via *proxy.Proxy) {
		// On the connections that exist, and no longer on new ones.
		via.Stall()
		via.DropToClient(true)
		via.DropToClient(false)
	}},
}

// Whatever kills idle connections, 100 operations of every sort that follow
// see nothing of it.
func TestIdleDeathsNeverReachTheCaller(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		for _, death := range idleDeaths {
			t.Run(death.name, func(t *testing.T) {
				via := proxyTo(t, s)
				params := "pool_ping_timeout=300ms&pool_keepalive=0"
				if death.name == "wait_timeout" {
					params += "&wait_timeout=2"
				}
				p := open(t, s.DSNVia(via.Addr()), params)
				// A statement prepared before all that, too.
				prepared, err := p.PrepareContext(t.Context(), "INSERT INTO t (v) VALUES (?)")
				if err != nil {
					t.Fatal(err)
				}
				defer prepared.Close()
				warmReal(t, p.DB, 8)
				// Beyond the trust of a recent round trip: a black hole that
				// begins within it shows only in what is sent.
				time.Sleep(600 * time.Millisecond)
				death.do(t, s, via)
				if _, err := prepared.ExecContext(t.Context(), 6); err != nil {
					t.Errorf("a prepared statement: %v", err)
				}
				for i := range 100 {
					way := waysToUse[i%len(waysToUse)]
					if err := way.use(t.Context(), p.DB); err != nil {
						t.Errorf("operation %d, %s: %v", i, way.name, err)
					}
				}
				// Of a silence that comes some time after the callers went on.
				labtest.Eventually(t, "a death was seen, without which the test shows nothing", func() bool { return p.Stats().Deaths > 0 })
			})
		}
	})
}

// The same from many goroutines at once: with more dead connections than
// database/sql tries, each caller still gets a living one.
func TestIdleDeathsUnderParallelUse(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
		t.Fatal(err)
	}
	p := open(t, s.DSN(), "pool_size=20&pool_max_overflow=0")
	for range 10 {
		warmReal(t, p.DB, 20)
		if err := s.KillConnections(); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 50 {
			way := waysToUse[i%len(waysToUse)]
			wg.Go(func() {
				if err := way.use(t.Context(), p.DB); err != nil {
					t.Errorf("%s: %v", way.name, err)
				}
			})
		}
		wg.Wait()
	}
}

// Every pooled connection is in a black hole: the first operation waits about
// one PingTimeout, those that follow wait for none.
func TestBlackHoleCostsOnePingTimeout(t *testing.T) {
	// Long beside a handshake on a slow machine, so that who waited for a ping
	// shows in how long he took. The sweep's pings begin when the first is late.
	const patience = 4 * time.Second
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		via := proxyTo(t, s)
		p := open(t, s.DSNVia(via.Addr()), fmt.Sprintf("pool_size=20&pool_ping_timeout=%s", patience))
		warmReal(t, p.DB, 20)
		time.Sleep(600 * time.Millisecond)
		via.Stall()
		take := func() time.Duration {
			began := time.Now()
			connectionID(t, p.DB)
			return time.Since(began)
		}
		first := take()
		took := make([]time.Duration, 20)
		var wg sync.WaitGroup
		for i := range took {
			wg.Go(func() { took[i] = take() })
		}
		wg.Wait()
		others := slices.Max(took)
		t.Logf("the first operation took %s, the longest of the others %s", first, others)
		if first < patience || first > patience+patience/2 {
			t.Errorf("the first operation took %s, want about one PingTimeout of %s", first, patience)
		}
		if others > patience/2 {
			t.Errorf("a later operation took %s: it waited for a ping", others)
		}
		// Besides the callers' pings there are those by which the pool finds out in
		// the background which connections are dead. They are counted when it knows.
		labtest.Eventually(t, "the silent connections are found dead, and nobody pings", func() bool {
			before := p.Stats()
			time.Sleep(50 * time.Millisecond)
			after := p.Stats()
			return before.Deaths > 0 && before.Pinged == after.Pinged && before.KeptAlive == after.KeptAlive && before.ClosedByPing == after.ClosedByPing
		})
		st := p.Stats()
		if n := st.Pinged - st.KeptAlive; n != 1 {
			t.Errorf("callers sent %d pings into the black hole, want 1: %+v", n, st)
		}
	})
}

// A server that accepts and says nothing: a pool of one works again after it.
func TestPoolOfOneSurvivesASilentServer(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	for _, tt := range []struct {
		name  string
		open  func(dsn string) *sql.DB
		works bool
	}{
		{"plain is dead", func(dsn string) *sql.DB { return openPlain(t, withParams(dsn, "timeout=500ms")) }, false},
		{"livepool", func(dsn string) *sql.DB {
			return open(t, dsn, "pool_size=1&pool_max_overflow=0&pool_connect_timeout=500ms").DB
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			via := proxyTo(t, s)
			db := tt.open(s.DSNVia(via.Addr()))
			db.SetMaxOpenConns(1)
			via.HangNew(true)
			var wg sync.WaitGroup
			ping := func() (giveUp func()) {
				ctx, cancel := context.WithCancel(t.Context())
				wg.Go(func() {
					if err := db.PingContext(ctx); err == nil {
						t.Error("a ping succeeded on a silent server")
					}
				})
				return cancel
			}
			// The first dials itself; when it gives up, the one goroutine of
			// database/sql dials for those who still wait.
			first := ping()
			labtest.Eventually(t, "the first is dialling", func() bool { return via.Counts().Conns == 1 })
			others := []func(){ping(), ping(), ping()}
			labtest.Eventually(t, "the others wait", func() bool { return db.Stats().WaitCount == 3 })
			first()
			labtest.Eventually(t, "somebody dials for the others", func() bool { return via.Counts().Conns > 1 })
			for _, giveUp := range others {
				giveUp()
			}
			wg.Wait()
			via.HangNew(false)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			var one int
			if err := db.QueryRowContext(ctx, "SELECT 1").Scan(&one); (err == nil) != tt.works {
				t.Errorf("after it: %v", err)
			}
			via.Close() // lets go of what hangs for ever
		})
	}
}

// What a checkout costs on the wire.
func TestRoundTripsOfAHotLoop(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, tt := range []struct {
			mode     string
			min, max int
		}{{"idle", 0, 5}, {"always", 1000, 1000}, {"off", 0, 0}} {
			t.Run(tt.mode, func(t *testing.T) {
				via := proxyTo(t, s)
				p := open(t, s.DSNVia(via.Addr()), "pool_ping_timeout=20s&pool_pre_ping="+tt.mode)
				connectionID(t, p)
				via.ResetCounts()
				for range 1000 {
					connectionID(t, p)
				}
				c := via.Counts()
				if c.Ping < tt.min || c.Ping > tt.max {
					t.Errorf("%d pings in 1000 checkouts, want %d to %d", c.Ping, tt.min, tt.max)
				}
				if c.Query != 1000 || c.RoundTrips() != 1000+c.Ping || c.Conns != 0 {
					t.Errorf("%+v, want 1000 queries, the pings and nothing else", c)
				}
			})
		}
	})
}

// Opening a connection costs what the driver's own costs, but for one question of
// each to its server, and one more of the first to a server that is new to the
// pool. The beacon, where each needs one (the proxy here shows the server its own
// port), is a part of the question, but for the first, which does not know yet.
func TestRoundTripsOfOpening(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		const conns = 3
		opening := func(open func(dsn string) *sql.DB) proxy.Counts {
			via := proxyTo(t, s)
			warmReal(t, open(s.DSNVia(via.Addr())), conns)
			return via.Counts()
		}
		plain := opening(func(dsn string) *sql.DB {
			db := openPlain(t, dsn)
			db.SetMaxIdleConns(conns)
			return db
		})
		for params, more := range map[string]int{"pool_beacon=off": conns + 1, "": conns + 2} {
			want := plain
			want.Query += more
			if live := opening(func(dsn string) *sql.DB { return open(t, dsn, params).DB }); live != want {
				t.Errorf("%q: livepool %+v, plain %+v, want %d queries more", params, live, plain, more)
			}
		}
	})
}

// A hundred connections born together die one by one.
func TestRealConnectionsDieOneByOne(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "pool_size=100&pool_recycle=4s&pool_recycle_jitter=0.5")
	warmReal(t, p.DB, 100)
	labtest.Eventually(t, "the first hundred are gone", func() bool {
		return !slices.ContainsFunc(via.Lifetimes()[:100], func(l proxy.Lifetime) bool { return l.Closed.IsZero() })
	})
	var ages []time.Duration
	for _, l := range via.Lifetimes()[:100] {
		ages = append(ages, l.Closed.Sub(l.Opened))
	}
	slices.Sort(ages)
	if ages[0] < 2*time.Second || ages[99] > 15*time.Second {
		t.Errorf("ages from %s to %s, want from 2s to about 4s", ages[0], ages[99])
	}
	if spread := ages[89] - ages[10]; spread < 300*time.Millisecond {
		t.Errorf("80 of 100 died within %s, want them spread", spread)
	}
}

func TestRecycleReplacesRealConnections(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "")
	before := connectionID(t, p)
	p.Recycle()
	if after := connectionID(t, p); after == before {
		t.Errorf("connection %d served after Recycle", after)
	}
}

// A statement is closed while its connection is being replaced: the two never
// write at the same time; the race detector watches.
func TestStatementClosedDuringReplacement(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "")
	for range 300 {
		st, err := p.Prepare("SELECT ?")
		if err != nil {
			t.Fatal(err)
		}
		p.Recycle()
		time.Sleep(20 * time.Microsecond)
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is lost on the wire is sent again if it cannot have run, and only then:
// the rows tell.
func TestLostStatementsOnTheWire(t *testing.T) {
	background := func(t *testing.T) context.Context { return t.Context() }
	idempotent := func(t *testing.T) context.Context { return livepool.Idempotent(t.Context()) }
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		for i, tt := range []struct {
			name string
			ctx  func(*testing.T) context.Context
			args bool
			cut  func(*proxy.Proxy)
			want error
			rows int
		}{
			{"PREPARE lost", background, true, func(p *proxy.Proxy) { p.CutAfter(proxy.Command(proxy.ComStmtPrepare), proxy.FIN) }, nil, 1},
			{"PREPARE not delivered", background, true, func(p *proxy.Proxy) { p.CutBefore(proxy.Command(proxy.ComStmtPrepare), proxy.RST) }, nil, 1},
			{"EXECUTE lost", background, true, func(p *proxy.Proxy) { p.CutAfter(proxy.Command(proxy.ComStmtExecute), proxy.FIN) }, mysql.ErrInvalidConn, 1},
			{"EXECUTE lost, idempotent", idempotent, true, func(p *proxy.Proxy) { p.CutAfter(proxy.Command(proxy.ComStmtExecute), proxy.FIN) }, nil, 2},
			{"QUERY lost", background, false, func(p *proxy.Proxy) { p.CutAfter(proxy.QueryPrefix("INSERT"), proxy.RST) }, mysql.ErrInvalidConn, 1},
			{"QUERY not delivered, which nobody can know", background, false, func(p *proxy.Proxy) { p.CutBefore(proxy.QueryPrefix("INSERT"), proxy.FIN) }, mysql.ErrInvalidConn, 0},
			{"QUERY not delivered, idempotent", idempotent, false, func(p *proxy.Proxy) { p.CutBefore(proxy.QueryPrefix("INSERT"), proxy.FIN) }, nil, 1},
		} {
			t.Run(tt.name, func(t *testing.T) {
				via := proxyTo(t, s)
				p := open(t, s.DSNVia(via.Addr()), "")
				connectionID(t, p)
				tt.cut(via)
				query, args := fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", i), []any(nil)
				if tt.args {
					query, args = "INSERT INTO t (v) VALUES (?)", []any{i}
				}
				if _, err := p.ExecContext(tt.ctx(t), query, args...); !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				var rows int
				if err := s.QueryRow(fmt.Sprintf("SELECT COUNT(*) FROM test.t WHERE v = %d", i), &rows); err != nil || rows != tt.rows {
					t.Errorf("%d rows, %v, want %d", rows, err, tt.rows)
				}
			})
		}
	})
}

// A lost BEGIN is sent again; in the transaction nothing is.
func TestLostBeginOnTheWire(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	if err := s.Exec("CREATE TABLE test.t (v INT)"); err != nil {
		t.Fatal(err)
	}
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	connectionID(t, p)
	via.CutAfter(proxy.QueryPrefix("START TRANSACTION"), proxy.FIN)
	tx, err := p.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	via.CutAfter(proxy.QueryPrefix("INSERT"), proxy.FIN)
	if _, err := tx.ExecContext(livepool.Idempotent(t.Context()), "INSERT INTO t VALUES (1)"); err == nil {
		t.Error("a statement lost in a transaction was sent again")
	}
	if err := tx.Commit(); err == nil {
		t.Error("a transaction whose connection is lost was committed")
	}
	var rows int
	if err := s.QueryRow("SELECT COUNT(*) FROM test.t", &rows); err != nil || rows != 0 {
		t.Errorf("%d rows, %v, want none", rows, err)
	}
}

// The old primary has become read-only and the address leads to the new one: a
// write finds its way there.
func TestWritesLeaveADemotedServer(t *testing.T) {
	t.Parallel()
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			old, fresh := servertest.Run(t, kind), servertest.Run(t, kind)
			for _, s := range []*server.Server{old, fresh} {
				if err := s.Exec("CREATE TABLE test.t (v INT)"); err != nil {
					t.Fatal(err)
				}
			}
			via := proxyTo(t, old)
			p := open(t, old.AppDSN(via.Addr()), "") // an ordinary user: read_only binds no other
			write := func() error {
				_, err := p.ExecContext(t.Context(), "INSERT INTO t VALUES (?)", 1)
				return err
			}
			if err := write(); err != nil {
				t.Fatal(err)
			}
			if err := old.SetReadOnly(true); err != nil {
				t.Fatal(err)
			}
			var my *mysql.MySQLError
			if err := write(); !errors.As(err, &my) || my.Number != 1290 {
				t.Errorf("no server takes writes: got %v, want the server's own 1290", err)
			}
			via.SetUpstream(fresh.Addr())
			p.Recycle() // or wait a second
			if err := write(); err != nil {
				t.Errorf("after the failover: %v", err)
			}
			var rows int
			if err := fresh.QueryRow("SELECT COUNT(*) FROM test.t", &rows); err != nil || rows != 1 {
				t.Errorf("%d rows on the new primary, %v, want 1", rows, err)
			}
		})
	}
}

func TestWriteAfterFailoverWithoutRecycle(t *testing.T) {
	old, fresh := servertest.Run(t, server.MariaDB), servertest.Run(t, server.MariaDB)
	for _, s := range []*server.Server{old, fresh} {
		if err := s.Exec("CREATE TABLE test.t (v INT)"); err != nil {
			t.Fatal(err)
		}
	}
	via := proxyTo(t, old)
	p := open(t, old.AppDSN(via.Addr()), "")
	warmReal(t, p.DB, 5)
	if err := old.SetReadOnly(true); err != nil {
		t.Fatal(err)
	}
	via.SetUpstream(fresh.Addr())
	for range 20 {
		if _, err := p.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); err != nil {
			t.Errorf("after the failover: %v", err)
		}
	}
}

// The idle death that only the next statement learns of, where nothing looks
// before it: MySQL answers it with 4031, before it has read anything.
func TestIdleDeathFoundByTheStatementItself(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MySQL)
	p := open(t, s.DSN(), "pool_pre_ping=off&checkConnLiveness=false&wait_timeout=1&pool_keepalive=0")
	if err := s.Exec("CREATE TABLE test.t (v INT)"); err != nil {
		t.Fatal(err)
	}
	connectionID(t, p)
	idleDeaths[0].do(t, s, nil)
	if _, err := p.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); err != nil {
		t.Errorf("insert: %v", err)
	}
	var rows int
	if err := s.QueryRow("SELECT COUNT(*) FROM test.t", &rows); err != nil || rows != 1 {
		t.Errorf("%d rows, %v, want 1", rows, err)
	}
}

// The thread id is read off the handshake over TCP, a unix socket and TLS, and
// a dead connection is seen there without a round trip.
func TestTransports(t *testing.T) {
	t.Parallel()
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s := servertest.RunOptions(t, kind, server.Options{TLS: true})
			if err := mysql.RegisterTLSConfig(string(kind), s.TLSConfig()); err != nil {
				t.Fatal(err)
			}
			for name, dsn := range map[string]string{
				"tcp":         s.DSN(),
				"unix socket": s.SocketDSN(),
				"TLS":         withParams(s.DSN(), "tls="+string(kind)),
				"compression": withParams(s.DSN(), "compress=true"),
			} {
				t.Run(name, func(t *testing.T) {
					var log labtest.Buffer
					cfg, err := livepool.ParseDSN(dsn)
					if err != nil {
						t.Fatal(err)
					}
					cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
					p, err := livepool.OpenConfig(cfg)
					if err != nil {
						t.Fatal(err)
					}
					defer p.Close()
					id := connectionID(t, p)
					if err := s.KillConnections(); err != nil {
						t.Fatal(err)
					}
					labtest.Eventually(t, "the death is seen", func() bool {
						connectionID(t, p)
						return p.Stats().Deaths > 0
					})
					if n := p.Stats().ClosedByPeek; n != 1 {
						t.Errorf("%d connections closed by a look at the socket, want 1", n)
					}
					if want := fmt.Sprintf("thread_id=%d ", id); !strings.Contains(log.String(), want) {
						t.Errorf("the log does not say %q: %s", want, log.String())
					}
					if strings.Contains(log.String(), server.Password) {
						t.Errorf("the log holds the password: %s", log.String())
					}
				})
			}
		})
	}
}

// Hole of the driver: its look at the socket passes silently where the net.Conn
// is no syscall.Conn. There livepool pings instead.
func TestConnectionThatCannotBeLookedAtIsPinged(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return struct{ net.Conn }{nc}, err
	}
	insert := func(db *sql.DB) error {
		connectionID(t, db)
		if err := s.KillConnections(); err != nil {
			t.Fatal(err)
		}
		_, err := db.ExecContext(t.Context(), "DO 1")
		return err
	}

	my, err := mysql.ParseDSN(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	my.DialFunc = dial
	c, err := mysql.NewConnector(my)
	if err != nil {
		t.Fatal(err)
	}
	plain := sql.OpenDB(c)
	defer plain.Close()
	if err := insert(plain); err == nil {
		t.Error("plain: the dead connection was seen, the hole is closed")
	}

	cfg := livepool.NewConfig()
	cfg.MySQL = my
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := insert(p.DB); err != nil {
		t.Errorf("livepool: %v", err)
	}
}

// A server that waits for a lock in the middle of LOAD DATA LOCAL takes no
// bytes for as long as that: it is there all the same.
func TestLoadDataMayWaitForALock(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes as long as the kernel's patience, 15s")
	}
	s := servertest.Run(t, server.MariaDB, "--local-infile=1")
	if err := s.Exec("CREATE TABLE test.t (id INT PRIMARY KEY, v VARCHAR(200))"); err != nil {
		t.Fatal(err)
	}
	p := open(t, s.DSN(), "")
	locker, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer locker.Rollback()
	if _, err := locker.Exec("INSERT INTO t VALUES (1000, 'x')"); err != nil {
		t.Fatal(err)
	}
	var rows bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintf(&rows, "%d\t%s\n", i, strings.Repeat("v", 200)) // 20 MB: more than sockets hold
	}
	mysql.RegisterReaderHandler("rows", func() io.Reader { return &rows })
	defer mysql.DeregisterReaderHandler("rows")
	loaded := make(chan error, 1)
	go func() {
		_, err := p.Exec("LOAD DATA LOCAL INFILE 'Reader::rows' REPLACE INTO TABLE t")
		loaded <- err
	}()
	select {
	case err := <-loaded:
		t.Fatalf("the load ended while the row was locked: %v", err)
	case <-time.After(15 * time.Second):
	}
	if err := locker.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-loaded; err != nil {
		t.Errorf("the load: %v", err)
	}
}

// The hot path on a real connection allocates less than plain database/sql,
// whose driver allocates to look at the socket.
func TestRealCheckoutAllocatesLessThanPlain(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	checkout := func(db *sql.DB) float64 {
		return testing.AllocsPerRun(100, func() {
			c, err := db.Conn(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
	if l, p := checkout(open(t, s.DSN(), "").DB), checkout(openPlain(t, s.DSN())); l >= p {
		t.Errorf("%v allocations, plain database/sql has %v", l, p)
	}
}
