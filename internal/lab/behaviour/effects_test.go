package behaviour_test

// What a statement leaves on its connection, and what ends a transaction inside
// of one, on real servers.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// leftovers are statements that leave something on their connection.
var leftovers = []string{
	"SET @x = 1", "SET @x := 1", "SELECT @x := 1", "SELECT 1 INTO @x", "DO @x := 1", "/* why */ SET /* how */ @x = 1",
	"SET SESSION time_zone = '+07:00'", "SET @@time_zone = '+07:00'", "SET sql_mode = ''", "SET NAMES latin1",
	"USE other", "USE `other`",
	"CREATE TEMPORARY TABLE test.t (v INT)", "SELECT GET_LOCK('a lock', 0)", "SELECT `get_lock`('a lock', 0)", "DO GET_LOCK('a lock', 0)",
	"LOCK TABLES t READ", "FLUSH TABLES t WITH READ LOCK", "BEGIN", "START TRANSACTION", "SET autocommit = 0", "SET @@session.autocommit = 0", "XA START 'a'",
	"SET SESSION TRANSACTION READ ONLY", "SET TRANSACTION READ ONLY",
	"CALL leaves()", "PREPARE s FROM 'SET @x = 1'", "HANDLER t OPEN",
}

// waysToLeave are who may leave it there. An error says that it could not.
var waysToLeave = []struct {
	name string
	run  func(ctx context.Context, p *livepool.Pool, query string) error
}{
	{"db.Exec", func(ctx context.Context, p *livepool.Pool, query string) error {
		_, err := p.ExecContext(ctx, query)
		return err
	}},
	{"db.Query", func(ctx context.Context, p *livepool.Pool, query string) error {
		rows, err := p.QueryContext(ctx, query)
		if err != nil {
			return err
		}
		return rows.Close()
	}},
	{"db.Prepare", func(ctx context.Context, p *livepool.Pool, query string) error {
		st, err := p.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		defer st.Close()
		_, err = st.ExecContext(ctx)
		return err
	}},
	{"sql.Conn", func(ctx context.Context, p *livepool.Pool, query string) error {
		c, err := p.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.ExecContext(ctx, query)
		return err
	}},
	{"driver.Conn", func(ctx context.Context, p *livepool.Pool, query string) error {
		c, err := p.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Raw(func(dc any) error {
			own := dc.(interface{ Raw() driver.Conn }).Raw()
			_, err := own.(driver.ExecerContext).ExecContext(ctx, query, nil)
			return err
		})
	}},
	{"sql.Tx", func(ctx context.Context, p *livepool.Pool, query string) error {
		tx, err := p.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, query); err != nil {
			return err
		}
		return tx.Commit()
	}},
	{"unit", func(ctx context.Context, p *livepool.Pool, query string) error {
		return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, query)
			return err
		})
	}},
}

// What one borrower leaves on a connection the next one does not meet: neither
// by its own statements nor by where its rows go.
func TestStateStaysWithItsBorrower(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		createShop(t, s)
		for name, p := range map[string]*livepool.Pool{
			"Open":          open(t, s.DSN(), "pool_size=1&pool_max_overflow=0&pool_keepalive=0"),
			"OpenConnector": labtest.Open(t, driversConnector(t, s.DSN()), func(c *livepool.Config) { c.PoolSize, c.MaxOverflow, c.KeepAlive = 1, 0, 0 }),
		} {
			for _, way := range waysToLeave {
				for _, left := range leftovers {
					err := way.run(t.Context(), p, left)
					if err != nil && way.name != "db.Prepare" && way.name != "unit" && way.name != "sql.Tx" {
						t.Errorf("%s, %s: %q: %v", name, way.name, left, err)
					}
					if found := stateFound(t, s, p); found != "" {
						t.Errorf("%s, %s: %q: the next borrower finds %s", name, way.name, left, found)
					}
				}
			}
		}
	})
}

func createShop(t *testing.T, s *server.Server) {
	t.Helper()
	for _, q := range []string{
		"CREATE TABLE test.t (v INT)", "CREATE DATABASE other", "CREATE TABLE other.t (v INT)",
		"CREATE PROCEDURE test.leaves() SET @x = 1",
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
}

// stateFound says what there is on the connection that a pool of one hands out, ""
// if nothing.
func stateFound(t *testing.T, s *server.Server, p *livepool.Pool) string {
	t.Helper()
	const question = `SELECT CONCAT_WS(',', IF(@x IS NULL, NULL, '@x'), IF(@@time_zone = '+07:00', 'time_zone', NULL),
		IF(@@sql_mode = @@global.sql_mode, NULL, 'sql_mode'), IF(@@character_set_client = 'latin1', 'names', NULL),
		IF(DATABASE() = 'test', NULL, DATABASE()), IF(@@autocommit, NULL, 'no autocommit'))`
	before := count(t, s, "t")
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var what string
	if err := c.QueryRowContext(t.Context(), question).Scan(&what); err != nil || what != "" {
		return fmt.Sprint(what, err)
	}
	if _, err := c.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); err != nil {
		return err.Error()
	}
	if _, err := c.ExecContext(t.Context(), "EXECUTE s"); err == nil {
		return "a prepared statement"
	}
	if _, err := c.ExecContext(t.Context(), "HANDLER t CLOSE"); err == nil {
		return "an open handler"
	}
	var free bool
	if err := s.QueryRow("SELECT IS_FREE_LOCK('a lock')", &free); err != nil || !free {
		return fmt.Sprint("the lock is held: ", err)
	}
	if after := count(t, s, "t"); after != before+1 {
		return fmt.Sprintf("a transaction or another table: %d rows of its own", after-before)
	}
	return ""
}

// A connection that is held keeps what its borrower leaves on it, such as the
// named lock under which migrations run, and frees it at once when it is
// returned.
func TestStateIsKeptForItsBorrower(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		createShop(t, s)
		p := open(t, s.DSN(), "pool_size=1&pool_max_overflow=0")
		c, id := takeConn(t, p)
		for _, q := range []string{"SELECT GET_LOCK('a lock', 10)", "SET @x = 7", "CREATE TEMPORARY TABLE mine (v INT)", "CREATE TABLE made (v INT)", "INSERT INTO mine VALUES (1)"} {
			if _, err := c.ExecContext(t.Context(), q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
		if err := c.PingContext(t.Context()); err != nil {
			t.Error(err)
		}
		var x, rows, mine int
		var held int64
		err := c.QueryRowContext(t.Context(), "SELECT @x, (SELECT COUNT(*) FROM mine), CONNECTION_ID(), IS_USED_LOCK('a lock')").Scan(&x, &rows, &mine, &held)
		if err != nil || x != 7 || rows != 1 || int64(mine) != id || held != id {
			t.Errorf("on connection %d: @x = %d, %d rows, connection %d, the lock is held by %d: %v", id, x, rows, mine, held, err)
		}
		c.Close()
		var got int
		if err := s.QueryRow("SELECT GET_LOCK('a lock', 0)", &got); err != nil || got != 1 {
			t.Errorf("after the return the lock is not free: %v", err)
		}
		if found := stateFound(t, s, p); found != "" {
			t.Error("the next borrower finds", found)
		}
	})
}

// setupConnector is a connector that wraps livepool's and sets up each connection.
type setupConnector struct{ driver.Connector }

func (c setupConnector) Connect(ctx context.Context) (driver.Conn, error) {
	dc, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	_, err = dc.(driver.ExecerContext).ExecContext(ctx, "SET @x = 5", nil)
	return dc, err
}

// What a connector above livepool's sets up on each connection is for all who
// borrow it.
func TestSetUpAboveLivepoolIsKept(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		cfg, err := livepool.ParseDSN(s.DSN())
		if err != nil {
			t.Fatal(err)
		}
		c, err := livepool.NewConnector(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(setupConnector{c})
		defer db.Close()
		db.SetMaxOpenConns(1)
		id := connectionID(t, db)
		for range 3 {
			var x int
			if err := db.QueryRow("SELECT @x").Scan(&x); err != nil || x != 5 || connectionID(t, db) != id {
				t.Errorf("@x is %d, on another connection or not: %v", x, err)
			}
		}
		if _, err := db.Exec("SET @x = 6"); err != nil {
			t.Error(err)
		}
		var x int
		if err := db.QueryRow("SELECT @x").Scan(&x); err != nil || x != 5 {
			t.Errorf("after a borrower's own SET the next one finds %d: %v", x, err)
		}
	})
}

// What leaves nothing costs no connection.
func TestHarmlessStatementsKeepTheirConnection(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		createShop(t, s)
		p := open(t, s.DSN(), "pool_size=1&pool_max_overflow=0&pool_keepalive=0&multiStatements=true")
		id := connectionID(t, p)
		for _, q := range []string{
			"SELECT 1", "INSERT INTO t VALUES (1)", "UPDATE t SET v = 2", "DELETE FROM t", "REPLACE INTO t VALUES (1)", "SHOW TABLES", "DO 1", "DO SLEEP(0)",
			"/*!50000 SELECT 1 */", "SELECT /*!50000 1 + */ 1", "CHECKSUM TABLE t", "HELP 'SELECT'", "XA RECOVER", "USE test", "USE `test`;",
			"SELECT 'GET_LOCK(', \":=\", 'into @x'", "SELECT 1 -- := into @x", "SELECT 'a@b.c' /* GET_LOCK('a', 1) */", "SELECT RELEASE_LOCK('none')",
			"DROP TEMPORARY TABLE IF EXISTS none", "CREATE TABLE x (v INT)", "ALTER TABLE x ADD w INT", "TRUNCATE x", "DROP TABLE x",
			"UPDATE t SET v = 3; UPDATE t SET v = 4", "COMMIT", "ROLLBACK", "EXPLAIN SELECT 1", "SIGNAL SQLSTATE '45000'", "GET DIAGNOSTICS x = NUMBER",
			"UNLOCK TABLES", "ANALYZE TABLE t", "ANALYZE FORMAT=JSON SELECT 1", "SET STATEMENT max_statement_time = 9 FOR SELECT 1", "SET GLOBAL max_connections = 99",
		} {
			if rows, err := p.QueryContext(t.Context(), q); err == nil { // some exist on one kind of server only
				rows.Close()
			}
			if now := connectionID(t, p); now != id {
				t.Errorf("%q cost its connection", q)
				id = now
			}
		}
		tx, err := p.Begin()
		if err == nil {
			_, err = tx.Exec("INSERT INTO t VALUES (1)")
			err = errors.Join(err, tx.Commit())
		}
		if err != nil || connectionID(t, p) != id {
			t.Error("a transaction cost its connection", err)
		}
	})
}

// A connection on which a user left state is closed at its return, and another is opened in
// the background: the next user waits for no login. There are never more than before.
func TestConnectionWithStateIsReplacedInTheBackground(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, c := range []struct {
			name     string
			size     int
			others   int // connections that are idle beside it
			replaced bool
		}{
			{"the only one", 2, 0, true},
			{"beside an idle one", 2, 1, true},
			{"while the pool is full", 2, 2, false}, // it was above the size
			{"a pool that keeps none", 0, 0, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				p := open(t, s.DSN(), fmt.Sprintf("pool_size=%d&pool_keepalive=0", c.size))
				idsOf(t, p, c.others)
				var held []*sql.Conn
				for range c.others {
					conn, _ := takeConn(t, p)
					held = append(held, conn)
				}
				dirty, _ := takeConn(t, p)
				if _, err := dirty.ExecContext(t.Context(), "SET @tenant = 7"); err != nil {
					t.Fatal(err)
				}
				for _, conn := range held {
					conn.Close()
				}
				want := p.Stats().Opened
				if c.replaced {
					want++
				}
				dirty.Close()
				labtest.Eventually(t, "the replacement is open", func() bool { return p.Stats().Opened >= want })
				time.Sleep(50 * time.Millisecond) // it is given to the pool, and no other is opened
				if !c.replaced {
					if got := p.Stats().Opened; got != want {
						t.Errorf("%d were opened, want %d", got, want)
					}
					return
				}
				conns := make([]*sql.Conn, c.others+1)
				for i := range conns {
					conns[i], _ = takeConn(t, p)
					var tenant sql.NullInt64
					if err := conns[i].QueryRowContext(t.Context(), "SELECT @tenant").Scan(&tenant); err != nil || tenant.Valid {
						t.Errorf("the next user finds tenant %v: %v", tenant, err)
					}
				}
				for _, conn := range conns {
					conn.Close()
				}
				if got := p.Stats().Opened; got != want {
					t.Errorf("the next users opened %d connections", got-want)
				}
			})
		}
	})
}

// There is never one connection more than the limit, whoever opens the next one.
func TestReplacementOfAConnectionWithStateKeepsTheLimit(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MariaDB)
	for _, size := range []int{1, 2} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var conns connCounter
			p := openWith(t, withParams(s.DSN(), fmt.Sprintf("pool_size=%d&pool_max_overflow=0", size)), func(c *livepool.Config) { c.MySQL.DialFunc = conns.dial })
			var users sync.WaitGroup
			for range 3 {
				users.Go(func() {
					for range 40 {
						if _, err := p.ExecContext(t.Context(), "SET @tenant = 7"); err != nil {
							t.Error(err)
						}
					}
				})
			}
			users.Wait()
			if most := conns.most.Load(); most > int64(size) {
				t.Errorf("%d connections at the same time", most)
			}
			if got := p.Stats().ConnectFailed; got > 0 {
				t.Errorf("%d attempts to connect failed", got)
			}
		})
	}
}

// connCounter counts the connections that are open at the same time.
type connCounter struct{ now, most atomic.Int64 }

func (k *connCounter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	for now := k.now.Add(1); ; {
		if most := k.most.Load(); now <= most || k.most.CompareAndSwap(most, now) {
			break
		}
	}
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		k.now.Add(-1)
		return nil, err
	}
	tcp := c.(*net.TCPConn)
	return &countedConn{TCPConn: tcp, closed: sync.OnceFunc(func() { k.now.Add(-1) })}, nil
}

type countedConn struct {
	*net.TCPConn
	closed func()
}

func (c *countedConn) Close() error {
	err := c.TCPConn.Close()
	c.closed()
	return err
}
