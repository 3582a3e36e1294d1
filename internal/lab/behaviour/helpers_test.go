package behaviour_test

// What the tests on real servers share: pools, ways to them, units of work, logs.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"log/slog"
	"slices"
	"strings"
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

// open opens a pool on a driver's DSN with parameters appended.
func open(t testing.TB, dsn, params string) *livepool.Pool {
	t.Helper()
	p, err := livepool.Open(withParams(dsn, params))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// openWith opens a pool on a driver's DSN with the defaults as changed by
// change, for what a DSN cannot say.
func openWith(t *testing.T, dsn string, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg, err := livepool.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	change(cfg)
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// driversConnector is the driver's own, with no dialer of livepool's below it.
func driversConnector(t *testing.T, dsn string) driver.Connector {
	t.Helper()
	my, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	c, err := mysql.NewConnector(my)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openPlain(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// openLogged opens a pool whose log is kept.
func openLogged(t testing.TB, dsn, params string) (*livepool.Pool, *labtest.CapturedLog) {
	t.Helper()
	cfg, err := livepool.ParseDSN(withParams(dsn, params))
	if err != nil {
		t.Fatal(err)
	}
	log := &labtest.CapturedLog{}
	cfg.Logger = slog.New(log)
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, log
}

func withParams(dsn, params string) string {
	switch {
	case params == "":
		return dsn
	case strings.Contains(dsn, "?"):
		return dsn + "&" + params
	}
	return dsn + "?" + params
}

// proxyTo puts a fault proxy before a server.
func proxyTo(t testing.TB, s *server.Server) *proxy.Proxy {
	t.Helper()
	p, err := proxy.New(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// connectionID asks the server which connection this is.
func connectionID(t testing.TB, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}) (id int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// takeConn takes a connection out of the pool.
func takeConn(t *testing.T, p *livepool.Pool) (c *sql.Conn, id int64) {
	t.Helper()
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, connectionID(t, c)
}

// idsOf asks n connections of a pool, held at the same time, who they are.
func idsOf(t testing.TB, p *livepool.Pool, n int) (ids []int64) {
	t.Helper()
	var held []*sql.Conn
	for range n {
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held, ids = append(held, c), append(ids, connectionID(t, c))
	}
	fakedb.GiveBack(held)
	slices.Sort(ids)
	return ids
}

// warmReal opens n connections to a server and returns them to the pool.
func warmReal(t testing.TB, db *sql.DB, n int) {
	t.Helper()
	conns := make([]*sql.Conn, n)
	for i := range conns {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		connectionID(t, c)
		conns[i] = c
	}
	for _, c := range conns {
		c.Close()
	}
}

// transactions counts those that are open on a server and meet the condition.
// InnoDB repeats its last answer to those who ask again within 0.1s, however
// often: each look is of its own.
func transactions(s *server.Server, where string) (n int, err error) {
	time.Sleep(120 * time.Millisecond)
	err = s.QueryRow("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE "+where, &n)
	return n, err
}

// openLedger is a server with a table of units and their rows, and accounts 1 to 9.
func openLedger(t *testing.T, kind server.Kind, args ...string) (*server.Server, *livepool.Pool) {
	t.Helper()
	s := servertest.Run(t, kind, args...)
	for _, q := range []string{
		"CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)",
		"CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)",
		"INSERT INTO test.account VALUES (1,0),(2,0),(3,0),(4,0),(5,0),(6,0),(7,0),(8,0),(9,0)",
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	p := open(t, s.DSN(), "")
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, p
}

func count(t *testing.T, s *server.Server, where string) (n int) {
	t.Helper()
	if err := s.QueryRow("SELECT COUNT(*) FROM test."+where, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// afterNextQuery runs f a moment after the next query has come by.
func afterNextQuery(via *proxy.Proxy, f func()) {
	seen := via.Counts().Query
	go func() {
		for end := time.Now().Add(20 * time.Second); via.Counts().Query == seen && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		f()
	}()
}
