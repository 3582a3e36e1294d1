package proxy_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/loopback"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

func start(t *testing.T, upstream string, opts ...proxy.Option) *proxy.Proxy {
	t.Helper()
	p, err := proxy.New(upstream, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func open(t *testing.T, dsn string, change ...func(*mysql.Config)) *sql.DB {
	t.Helper()
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Logger = &mysql.NopLogger{}
	for _, f := range change {
		f(cfg)
	}
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	t.Cleanup(func() { db.Close() })
	return db
}

func connect(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func connectionID(ctx context.Context, c *sql.Conn) (id int, err error) {
	return id, c.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id)
}

// a while is long enough for an answer that is not held up.
const aWhile = 150 * time.Millisecond

func briefly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), aWhile)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// dial opens a connection as a client that knows no MySQL, and reads the server's greeting.
func dial(t *testing.T, p *proxy.Proxy) net.Conn {
	t.Helper()
	c, _ := greeted(t, p)
	return c
}

// greeted is dial for those who want to know the greeting.
func greeted(t *testing.T, p *proxy.Proxy) (net.Conn, []byte) {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	header := make([]byte, 4)
	if _, err := io.ReadFull(c, header); err != nil {
		t.Fatal(err)
	}
	greeting := make([]byte, header[0])
	if _, err := io.ReadFull(c, greeting); err != nil {
		t.Fatal(err)
	}
	return c, greeting
}

func TestCountsAreExact(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for name, upstream := range map[string]string{"tcp": s.Addr(), "socket": s.Socket()} {
			if name == "socket" && s.Kind() == server.MySQL {
				continue // see New
			}
			t.Run(name, func(t *testing.T) {
				p := start(t, upstream, proxy.WithQueries())
				db := open(t, s.DSNVia(p.Addr()))
				db.SetMaxOpenConns(1)
				big := strings.Repeat("x", 300_000)
				var n int
				err := errors.Join(
					db.PingContext(t.Context()),
					db.QueryRow("SELECT 1").Scan(&n),
					db.QueryRow("SELECT LENGTH('"+big+"')").Scan(&n),
					db.QueryRow("SELECT 1 + ?", 1).Scan(&n),
					db.QueryRow("SELECT LENGTH(?)", big).Scan(&n),
				)
				if err != nil || n != len(big) {
					t.Fatal(n, err)
				}
				db.Close()
				eventually(t, "the connection closes", func() bool { return p.Conns() == 0 })
				want := proxy.Counts{Conns: 1, Dials: 1, MostLogins: 1, Ping: 1, Query: 2, Prepare: 2, Execute: 2, StmtClose: 2, Quit: 1}
				if got := p.Counts(); got != want {
					t.Errorf("got  %+v\nwant %+v", got, want)
				}
				if got := p.Counts().RoundTrips(); got != 7 {
					t.Errorf("%d round trips, want 7", got)
				}
				if q := p.Queries(); len(q) != 2 || q[0] != "SELECT 1" {
					t.Errorf("queries: %.40q", q)
				}
				p.ResetCounts()
				if got := p.Counts(); got != (proxy.Counts{}) || p.Queries() != nil {
					t.Errorf("after ResetCounts: %+v", got)
				}
			})
		}
	})
}

func TestTLSAndCompressionPassUncounted(t *testing.T) {
	for _, kind := range server.Kinds() {
		s := servertest.RunOptions(t, kind, server.Options{TLS: true})
		for name, change := range map[string]func(*mysql.Config){
			"TLS":         func(c *mysql.Config) { c.TLS = s.TLSConfig() },
			"compression": func(c *mysql.Config) { c.Apply(mysql.EnableCompression(true)) },
		} {
			t.Run(fmt.Sprintf("%s %s", kind, name), func(t *testing.T) {
				p := start(t, s.Addr())
				conn := connect(t, open(t, s.DSNVia(p.Addr()), change))
				id, err := connectionID(t.Context(), conn)
				if err != nil {
					t.Fatal(err)
				}
				if n := p.Counts().RoundTrips(); n != 0 {
					t.Errorf("counted %d round trips", n)
				}
				p.Stall()
				time.AfterFunc(aWhile, p.Heal)
				if again, err := connectionID(t.Context(), conn); err != nil || again != id {
					t.Errorf("after a stall: connection %d, %v; was %d", again, err, id)
				}
			})
		}
	}
}

func TestHowAConnectionEndsIsWhatTheClientSees(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	for _, tt := range []struct {
		name string
		end  func(p *proxy.Proxy) error
		want error
	}{
		{"FIN", func(p *proxy.Proxy) error { p.FIN(); return nil }, io.EOF},
		{"RST", func(p *proxy.Proxy) error { p.RST(); return nil }, syscall.ECONNRESET},
		{"Close", (*proxy.Proxy).Close, syscall.ECONNRESET},
		{"FIN while stalled", func(p *proxy.Proxy) error { p.Stall(); p.FIN(); return nil }, io.EOF},
		{"the server's own end", func(*proxy.Proxy) error { return s.Stop() }, io.EOF},
		{"behind a stall, healed", func(p *proxy.Proxy) error {
			p.Stall()
			err := s.Stop()
			p.Heal()
			return err
		}, io.EOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			p := start(t, s.Addr())
			c := dial(t, p)
			if err := tt.end(p); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, c); tt.want == io.EOF && err != nil || tt.want != io.EOF && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			eventually(t, "the proxy forgets it", func() bool { return p.Conns() == 0 })
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the server forgets it", func() bool { list, err := s.Processes(); return err == nil && len(list) == 0 })
			if l := p.Lifetimes(); len(l) != 1 || !l[0].Closed.After(l[0].Opened) {
				t.Errorf("lifetimes: %+v", l)
			}
		})
	}
}

func TestAStallHealsWithTheSameConnection(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := start(t, s.Addr())
		db := open(t, s.DSNVia(p.Addr()))
		conn := connect(t, db)
		before, err := connectionID(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		p.Stall()
		var after int
		var wg sync.WaitGroup
		answered := make(chan error, 1)
		wg.Go(func() {
			var err error
			after, err = connectionID(t.Context(), conn)
			answered <- err
		})
		select {
		case err := <-answered:
			t.Fatalf("answered through a stall: %v", err)
		case <-time.After(aWhile):
		}
		if err := connect(t, db).PingContext(t.Context()); err != nil {
			t.Errorf("a new connection during a stall: %v", err)
		}
		p.Heal()
		if err := <-answered; err != nil || after != before {
			t.Errorf("after the stall: connection %d, %v; was %d", after, err, before)
		}
	})
}

func TestAHangingConnectionIsHeardOfWhenHealed(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := start(t, s.Addr())
	p.HangNew(true)
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(aWhile))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading from a hanging connection: %v", err)
	}
	if n := p.Counts(); n.Conns != 1 || n.Dials != 0 {
		t.Errorf("counts: %+v", n)
	}
	p.HangNew(false)
	dial(t, p) // a new one works
	p.Heal()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("reading from a healed connection: %v", err)
	}
}

func TestOneWayDrops(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := start(t, s.Addr())
	db := open(t, s.DSNVia(p.Addr()))
	if _, err := db.Exec("CREATE TABLE t (id INT)"); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		name    string
		drop    func(bool)
		arrives bool
	}{
		{"to the server", p.DropToServer, false},
		{"to the client", p.DropToClient, true},
	} {
		conn := connect(t, db)
		tt.drop(true)
		if _, err := conn.ExecContext(briefly(t), fmt.Sprintf("INSERT INTO t VALUES (%d)", i)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: the client got an answer: %v", tt.name, err)
		}
		tt.drop(false)
		var n int
		if err := s.QueryRow(fmt.Sprintf("SELECT COUNT(*) FROM t WHERE id = %d", i), &n); err != nil || (n == 1) != tt.arrives {
			t.Errorf("%s: %d rows, %v", tt.name, n, err)
		}
		if err := db.PingContext(t.Context()); err != nil {
			t.Errorf("%s: afterwards: %v", tt.name, err)
		}
	}
}

func TestRefusingAndReopening(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := start(t, s.Addr())
	conn := connect(t, open(t, s.DSNVia(p.Addr())))
	for range 3 {
		p.Refuse()
		if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialling: %v", err)
		}
		if err := conn.PingContext(t.Context()); err != nil {
			t.Errorf("the connection from before: %v", err)
		}
		if err := p.Reopen(); err != nil {
			t.Fatal(err)
		}
		dial(t, p)
	}
}

func TestUpstreamCanBeSwitchedAndBeGone(t *testing.T) {
	a, b := servertest.Run(t, server.MariaDB), servertest.Run(t, server.MariaDB)
	p := start(t, a.Addr())
	db := open(t, a.DSNVia(p.Addr()))
	toA := connect(t, db)
	p.SetUpstream(b.Addr())
	toB := connect(t, db)
	if whereTo(t, toA) != a.Addr() || whereTo(t, toB) != b.Addr() {
		t.Error("connections do not go where they should")
	}
	b.Kill()
	if err := turnedAway(p); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("with the upstream gone: %v", err)
	}
}

func TestConnectionsGoToTheUpstreamsInTurn(t *testing.T) {
	a, b := servertest.Run(t, server.MariaDB), servertest.Run(t, server.MariaDB)
	p := start(t, a.Addr())
	db := open(t, a.DSNVia(p.Addr()))
	next := func(want ...*server.Server) {
		t.Helper()
		for i, s := range want {
			if got := whereTo(t, connect(t, db)); got != s.Addr() {
				t.Errorf("connection %d goes to %s, want %s", i, got, s.Addr())
			}
		}
	}
	next(a, a)
	addrs := []string{a.Addr(), b.Addr()}
	p.SetUpstreams(addrs...)
	addrs[0] = "the caller's own affair"
	next(a, b, a)
	p.SetUpstreams(a.Addr(), b.Addr())
	next(a, b, a)
	p.SetUpstream(b.Addr())
	next(b, b)

	// A connection that hangs has had its turn.
	p.SetUpstreams(a.Addr(), b.Addr())
	p.HangNew(true)
	hanging := make(chan *sql.Conn, 1)
	before := p.Conns()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Error(err)
		}
		hanging <- c
	})
	eventually(t, "it is taken", func() bool { return p.Conns() > before })
	p.HangNew(false)
	next(b)
	p.Heal()
	if c := <-hanging; c != nil {
		defer c.Close()
		if got := whereTo(t, c); got != a.Addr() {
			t.Errorf("the hanging connection goes to %s, want %s", got, a.Addr())
		}
	}

	b.Kill()
	next(a)
	if err := turnedAway(p); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("at the turn of one that is gone: %v", err)
	}
	next(a)
	p.SetUpstreams()
	if err := turnedAway(p); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("without upstreams: %v", err)
	}
}

// whereTo is the address of the server that a connection has reached.
func whereTo(t *testing.T, c *sql.Conn) string {
	t.Helper()
	var port int
	if err := c.QueryRowContext(t.Context(), "SELECT @@port").Scan(&port); err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// turnedAway is the error of a connection that hears of no server.
func turnedAway(p *proxy.Proxy) error {
	c, err := net.Dial("tcp", p.Addr())
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	return err
}

// The whole point of the proxy: a COMMIT that never arrived and one that did look alike.
func TestCutsAroundACommit(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := start(t, s.Addr())
		db := open(t, s.DSNVia(p.Addr()))
		if _, err := db.Exec("CREATE TABLE t (id INT)"); err != nil {
			t.Fatal(err)
		}
		rows := func(id int) (n int) {
			if err := s.QueryRow(fmt.Sprintf("SELECT COUNT(*) FROM t WHERE id = %d", id), &n); err != nil {
				t.Error(err)
			}
			return n
		}
		transaction := func(ctx context.Context, id int) error {
			conn := connect(t, db)
			defer conn.Close()
			if _, err := conn.ExecContext(t.Context(), "BEGIN"); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.ExecContext(t.Context(), fmt.Sprintf("INSERT INTO t VALUES (%d)", id)); err != nil {
				t.Fatal(err)
			}
			_, err := conn.ExecContext(ctx, "commit")
			return err
		}
		for i, tt := range []struct {
			name   string
			cut    func(proxy.Match, proxy.Fault) *proxy.Cut
			how    proxy.Fault
			silent bool // the client learns nothing and gives up
			stays  int
			healed int // rows after Heal
		}{
			{"before, FIN", p.CutBefore, proxy.FIN, false, 0, 0},
			{"before, RST", p.CutBefore, proxy.RST, false, 0, 0},
			{"before, KillServerSide", p.CutBefore, proxy.KillServerSide, true, 0, 0},
			{"before, Stall", p.CutBefore, proxy.Stall, true, 0, 1},
			{"after, FIN", p.CutAfter, proxy.FIN, false, 1, 1},
			{"after, RST", p.CutAfter, proxy.RST, false, 1, 1},
			{"after, KillServerSide", p.CutAfter, proxy.KillServerSide, true, 1, 1},
			{"after, Stall", p.CutAfter, proxy.Stall, true, 1, 1},
		} {
			cut := tt.cut(proxy.QueryPrefix("COMMIT"), tt.how)
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			if tt.silent {
				go func() { <-cut.Done(); time.Sleep(aWhile); giveUp() }()
			}
			if cut.Fired() {
				t.Errorf("%s: fired before its time", tt.name)
			}
			err := transaction(ctx, i)
			if err == nil || tt.silent != errors.Is(err, context.Canceled) {
				t.Errorf("%s: COMMIT returned %v", tt.name, err)
			}
			<-cut.Done()
			if n := rows(i); n != tt.stays {
				t.Errorf("%s: %d rows, want %d", tt.name, n, tt.stays)
			}
			p.Heal()
			eventually(t, tt.name+": the connection ends", func() bool { return rows(i) == tt.healed && p.Conns() <= 1 })
			// It hits once.
			if err := transaction(t.Context(), 100+i); err != nil || rows(100+i) != 1 {
				t.Errorf("%s: the next transaction: %v", tt.name, err)
			}
		}
	})
}

func TestCutsHitWhatTheyMatch(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := start(t, s.Addr())
	db := open(t, s.DSNVia(p.Addr()))
	cancelled := p.CutBefore(proxy.Command(proxy.ComQuery), proxy.RST)
	cancelled.Cancel()
	first := p.CutBefore(proxy.QueryPrefix("select 2"), proxy.RST)
	second := p.CutAfter(proxy.Command(proxy.ComStmtExecute), proxy.FIN)
	var n int
	if err := db.QueryRow("SELECT 1").Scan(&n); err != nil || cancelled.Fired() || first.Fired() || second.Fired() {
		t.Errorf("a query that none matches: %v", err)
	}
	conn := connect(t, db)
	if _, err := conn.ExecContext(t.Context(), "DO ?", 1); err == nil || !second.Fired() || first.Fired() {
		t.Errorf("the execution of a statement: %v", err)
	}
	conn = connect(t, db)
	if err := conn.QueryRowContext(t.Context(), "SELECT 22").Scan(&n); err == nil || !first.Fired() {
		t.Errorf("the query meant: %v", err)
	}
}

func TestTheServerSeesTheClientsOwnPortWithAHeader(t *testing.T) {
	s := servertest.Run(t, server.MariaDB, "--proxy-protocol-networks=127.0.0.1")
	for _, tt := range []struct {
		name string
		opts []proxy.Option
		want bool
	}{
		{"with", []proxy.Option{proxy.WithProxyHeader()}, true},
		{"without", nil, false},
	} {
		c := dial(t, start(t, s.Addr(), tt.opts...))
		list, err := s.Processes()
		if err != nil {
			t.Fatal(err)
		}
		own := slices.ContainsFunc(list, func(pr server.Process) bool { return pr.Host == c.LocalAddr().String() })
		if own != tt.want {
			t.Errorf("%s: the client is %v, the server sees %+v", tt.name, c.LocalAddr(), list)
		}
	}
}

func TestTheClientIsToldAnotherThreadID(t *testing.T) {
	for _, tt := range []struct {
		kind server.Kind
		opts []proxy.Option
		args []string
	}{
		{server.MySQL, nil, nil},
		{server.MariaDB, nil, nil},
		{server.MariaDB, []proxy.Option{proxy.WithProxyHeader()}, []string{"--proxy-protocol-networks=127.0.0.1"}},
	} {
		t.Run(fmt.Sprint(tt.kind, tt.args), func(t *testing.T) {
			s := servertest.RunOptions(t, tt.kind, server.Options{Args: tt.args, TLS: true})
			var mu sync.Mutex
			var all []uint32
			seen := func() []uint32 {
				mu.Lock()
				defer mu.Unlock()
				return slices.Clone(all)
			}
			p := start(t, s.Addr(), append(tt.opts, proxy.WithThreadIDs(func(real uint32) uint32 {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, real)
				return 0xfffefdfc - uint32(len(all))
			}))...)
			for n := 1; n <= 2; n++ {
				_, greeting := greeted(t, p)
				_, rest, _ := bytes.Cut(greeting, []byte{0})
				told, ids := binary.LittleEndian.Uint32(rest), seen()
				if len(ids) != n || told != 0xfffefdfc-uint32(n) {
					t.Fatalf("connection %d is told %#x; the server's ids: %v", n, told, ids)
				}
				list, err := s.Processes()
				if err != nil || !slices.ContainsFunc(list, func(pr server.Process) bool { return pr.ID == uint64(ids[n-1]) }) {
					t.Errorf("the server's ids are %v, the server has %+v, %v", ids, list, err)
				}
			}
			for n, change := range []func(*mysql.Config){
				func(*mysql.Config) {},
				func(c *mysql.Config) { c.TLS = s.TLSConfig() },
			} {
				conn := connect(t, open(t, s.DSNVia(p.Addr()), change))
				id, err := connectionID(t.Context(), conn)
				if ids := seen(); err != nil || len(ids) != n+3 || uint32(id) != ids[n+2] {
					t.Errorf("connection %d, %v; the server's ids: %v", id, err, ids)
				}
				// A row that begins like a greeting, its 10 being a length.
				var text string
				if err := conn.QueryRowContext(t.Context(), `SELECT 'ten\0letter'`).Scan(&text); err != nil || text != "ten\x00letter" {
					t.Errorf("got %q, %v", text, err)
				}
			}
			if n := p.Counts().Query; n != 2 {
				t.Errorf("counted %d queries, want the 2 without TLS", n)
			}
		})
	}
}

// What a server sends is played here, to know every byte of it.
func TestOfTheGreetingOnlyTheThreadIDIsChanged(t *testing.T) {
	greeting := "\x0d\x00\x00\x00\x0a1.2\x00\x01\x02\x03\x04salt"
	for _, tt := range []struct{ name, sent, want string }{
		{"the first packet", greeting + greeting, strings.Replace(greeting, "\x01\x02\x03\x04", "\xf1\xf2\xf3\xf4", 1) + greeting},
		{"an error", "\x0b\x00\x00\x00\xff\x10\x04Too many", "\x0b\x00\x00\x00\xff\x10\x04Too many"},
		{"half a greeting", greeting[:12], greeting[:12]},
		{"no id", "\x05\x00\x00\x00\x0a1.2\x00", "\x05\x00\x00\x00\x0a1.2\x00"},
		{"no NUL", "\x05\x00\x00\x00\x0a1.23", "\x05\x00\x00\x00\x0a1.23"},
		{"an empty packet", "\x00\x00\x00\x00" + greeting, "\x00\x00\x00\x00" + greeting},
	} {
		l, err := loopback.Listen()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var wg sync.WaitGroup
		wg.Go(func() {
			if c, err := l.Accept(); err == nil {
				io.WriteString(c, tt.sent)
				c.Close()
			}
		})
		p := start(t, l.Addr().String(), proxy.WithThreadIDs(func(real uint32) uint32 {
			if real != 0x04030201 {
				t.Errorf("%s: the server's id was read as %#x", tt.name, real)
			}
			return 0xf4f3f2f1
		}))
		c, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := io.ReadAll(c); err != nil || string(got) != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
		wg.Wait()
	}
}

func TestCloseEndsWhateverHangs(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := start(t, s.Addr())
	dial(t, p)
	p.Stall()
	dial(t, p)
	p.HangNew(true)
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "all are taken", func() bool { return p.Conns() == 3 })
	p.Close()
	if p.Conns() != 0 {
		t.Errorf("%d connections are left", p.Conns())
	}
	if err := p.Reopen(); err != nil || p.Close() != nil {
		t.Error("closing twice")
	}
}
