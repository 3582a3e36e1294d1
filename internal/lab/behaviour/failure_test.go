package behaviour_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A death is one however many requests meet it.
func TestDeathIsCountedOnce(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "")
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.KillConnections(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := tx.Exec("DO 1"); err == nil {
			t.Error("a statement of a dead transaction succeeded")
		}
	}
	tx.Rollback()
	c.Close()
	connectionID(t, p)
	if n := p.Stats().Deaths; n != 1 {
		t.Errorf("%d deaths, want 1", n)
	}
}

// Within sql.Conn.Raw too a transaction's statement is neither sent elsewhere
// nor reported as driver.ErrBadConn, on which database/sql would close the
// connection and wait for the transaction to end.
func TestRawInATransactionOnADeadConnection(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "")
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tx, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := s.KillConnections(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			err := c.Raw(func(dc any) error {
				_, err := dc.(driver.ExecerContext).ExecContext(livepool.Idempotent(t.Context()), "DO 1", nil)
				return err
			})
			if err == nil || errors.Is(err, driver.ErrBadConn) {
				t.Errorf("got %v, want an error that database/sql leaves alone", err)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		t.Error("Raw blocks while the transaction is open")
		tx.Rollback()
		<-done
	}
}

// cutRows gives a row, has the connection killed, and gives more.
type cutRows struct {
	row  int
	kill func()
}

func (r *cutRows) Read(b []byte) (int, error) {
	r.row++
	switch {
	case r.row == 2:
		r.kill()
	case r.row > 10:
		return 0, io.EOF
	case r.row > 2:
		time.Sleep(20 * time.Millisecond) // the first writes are only answered with a reset
	}
	return fmt.Fprintf(writerTo(b), "%d\n", r.row)
}

// writerTo writes to the beginning of a slice.
type writerTo []byte

func (w writerTo) Write(b []byte) (int, error) { return copy(w, b), nil }

// When a later packet of LOAD DATA LOCAL cannot be written the driver says that
// nothing was sent. But the server may have loaded what it got, and the rows
// cannot be read again.
func TestLoadThatLosesItsConnectionIsNotSentAgain(t *testing.T) {
	s := servertest.Run(t, server.MariaDB, "--local-infile=1")
	if err := s.Exec("CREATE TABLE test.t (id INT)"); err != nil {
		t.Fatal(err)
	}
	p := open(t, s.DSN(), "")
	loads := 0
	mysql.RegisterReaderHandler("cut rows", func() io.Reader {
		loads++
		return &cutRows{kill: func() {
			if err := s.KillConnections(); err != nil {
				t.Error(err)
			}
			labtest.AwaitDisconnect(t, s)
		}}
	})
	defer mysql.DeregisterReaderHandler("cut rows")
	_, err := p.Exec("LOAD DATA LOCAL INFILE 'Reader::cut rows' INTO TABLE t")
	if !errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, driver.ErrBadConn) {
		t.Errorf("got %v, want mysql.ErrInvalidConn", err)
	}
	if loads != 1 {
		t.Errorf("the rows were asked for %d times, want once", loads)
	}
}

// Rows that cannot be read are the caller's affair, whatever their error looks
// like: the connection is as good as before.
func TestRowsToLoadThatCannotBeReadAreNoDeath(t *testing.T) {
	s := servertest.Run(t, server.MariaDB, "--local-infile=1")
	if err := s.Exec("CREATE TABLE test.t (id INT)"); err != nil {
		t.Fatal(err)
	}
	p := open(t, s.DSN(), "allowAllFiles=true")
	mysql.RegisterReaderHandler("broken", func() io.Reader { return iotest.ErrReader(io.ErrUnexpectedEOF) })
	defer mysql.DeregisterReaderHandler("broken")
	for source, want := range map[string]error{"/nonexistent": fs.ErrNotExist, "Reader::broken": io.ErrUnexpectedEOF} {
		for _, ctx := range []context.Context{t.Context(), livepool.Idempotent(t.Context())} {
			if _, err := p.ExecContext(ctx, fmt.Sprintf("LOAD DATA LOCAL INFILE '%s' INTO TABLE t", source)); !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", source, err, want)
			}
		}
	}
	if s := p.Stats(); s.Opened != 1 || s.Deaths != 0 || s.Resent != 0 {
		t.Errorf("opened %d, deaths %d, resent %d, want one connection for all", s.Opened, s.Deaths, s.Resent)
	}
	for _, errno := range []error{syscall.ENOENT, syscall.ETIMEDOUT} { // the latter of a network file system
		err := &fs.PathError{Op: "open", Path: "/mnt/rows", Err: errno}
		if class := livepool.Classify(err); class != 0 {
			t.Errorf("Classify(%v) is %v, want 0", err, class)
		}
	}
}

// A refusal may come from a later one of several statements, when the first
// has run. The setting that allows several is not livepool's to see.
func TestSeveralStatementsInOneAreNotSentAgain(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	if err := s.Exec("CREATE TABLE test.t (id INT)"); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		name string
		open func(t *testing.T) *livepool.Pool
	}{
		{"a setting of livepool's", func(t *testing.T) *livepool.Pool { return open(t, s.DSN(), "multiStatements=true") }},
		{"a connector of the driver's", func(t *testing.T) *livepool.Pool {
			return labtest.Open(t, driversConnector(t, withParams(s.DSN(), "multiStatements=true")), nil)
		}},
		{"set before each connect", func(t *testing.T) *livepool.Pool {
			return openWith(t, s.DSN(), func(c *livepool.Config) {
				if err := c.MySQL.Apply(mysql.BeforeConnect(func(_ context.Context, my *mysql.Config) error {
					my.MultiStatements = true
					return nil
				})); err != nil {
					t.Fatal(err)
				}
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.open(t)
			warmReal(t, p.DB, 2) // a refusal on a connection that has worked is not trusted
			_, err := p.Exec(fmt.Sprintf("INSERT INTO t VALUES (%d); SET SESSION TRANSACTION READ ONLY; INSERT INTO t VALUES (100)", i))
			if !labtest.IsServerError(err, 1792) {
				t.Errorf("got %v, want the server's own 1792", err)
			}
			if n := count(t, s, fmt.Sprintf("t WHERE id = %d", i)); n != 1 {
				t.Errorf("the first statement ran %d times, want once", n)
			}
		})
	}
}

// The caller of a sql.Conn has state on it, and need not lose it to a refusal
// that he brought about himself.
func TestRefusalLeavesAConnThatWasUsedIntact(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	if err := s.Exec("CREATE TABLE test.t (id INT)"); err != nil {
		t.Fatal(err)
	}
	p := open(t, s.DSN(), "")
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	id := connectionID(t, c)
	for _, q := range []string{"SET @x = 7", "START TRANSACTION READ ONLY"} {
		if _, err := c.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); !labtest.IsServerError(err, 1792) {
		t.Errorf("got %v, want the server's own 1792", err)
	}
	var x sql.NullInt64
	if err := c.QueryRowContext(t.Context(), "SELECT @x").Scan(&x); err != nil || x.Int64 != 7 {
		t.Errorf("@x is %v, %v, want 7", x, err)
	}
	if now := connectionID(t, c); now != id {
		t.Errorf("connection %d became %d", id, now)
	}
}

// closeEOFConn is a net.Conn of which a read that this side's own Close interrupts
// ends as if the other side had closed it, like a channel of ssh's.
type closeEOFConn struct {
	net.Conn
	closed atomic.Bool
}

func (t *closeEOFConn) Close() error {
	t.closed.Store(true)
	return t.Conn.Close()
}

func (t *closeEOFConn) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	if err != nil && t.closed.Load() {
		err = io.EOF
	}
	return n, err
}

// A caller who gives up in the middle of a statement costs the connection, but
// says nothing of the others.
func TestCallersCancelOfAStatementIsNoDeath(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	for _, tt := range []struct {
		name string
		open func(t *testing.T) *livepool.Pool
	}{
		{"livepool's dialer", func(t *testing.T) *livepool.Pool { return open(t, s.DSN(), "") }},
		{"a tunnel", func(t *testing.T) *livepool.Pool {
			return openWith(t, s.DSN(), func(c *livepool.Config) {
				c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					nc, err := (&net.Dialer{}).DialContext(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					return &closeEOFConn{Conn: nc}, nil
				}
			})
		}},
		{"a connector of the driver's", func(t *testing.T) *livepool.Pool { return labtest.Open(t, driversConnector(t, s.DSN()), nil) }},
	} {
		for _, inTx := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in a transaction %v", tt.name, inTx), func(t *testing.T) {
				p := tt.open(t)
				connectionID(t, p)
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				var db fakedb.Execer = p
				if inTx {
					tx, err := p.BeginTx(ctx, nil)
					if err != nil {
						t.Fatal(err)
					}
					defer tx.Rollback()
					db = tx
				}
				if _, err := db.ExecContext(ctx, "DO SLEEP(5)"); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want the caller's own deadline", err)
				}
				labtest.Eventually(t, "the connection is back", func() bool { return p.Stats().InUse == 0 })
				if n := p.Stats().Deaths; n != 0 {
					t.Errorf("%d deaths, want none", n)
				}
			})
		}
	}
}

// A ping that the driver's own readTimeout ends, before PingTimeout does, went
// unanswered all the same.
func TestReadTimeoutOfAPingIsSilence(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "readTimeout=2s&pool_ping_timeout=20s")
	warmReal(t, p.DB, 10)
	time.Sleep(600 * time.Millisecond) // beyond the trust of a recent round trip
	via.Stall()
	warmReal(t, p.DB, 10)
	if s := p.Stats(); s.Pinged-s.KeptAlive != 1 {
		t.Errorf("callers waited for %d pings, want 1", s.Pinged-s.KeptAlive)
	}
}

// A connection may die while the rows of a plain query are read, where only its
// return can notice; the others prove themselves then.
func TestDeathWhileRowsAreReadIsNews(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	if err := s.Exec("CREATE TABLE test.t (v VARCHAR(1000))"); err != nil {
		t.Fatal(err)
	}
	if err := s.Exec("INSERT INTO test.t VALUES (?)"+strings.Repeat(", ('x')", 99), strings.Repeat("v", 1000)); err != nil {
		t.Fatal(err)
	}
	p := open(t, s.DSN(), "pool_ping_after=1h")
	warmReal(t, p.DB, 3)
	rows, err := p.Query("SELECT CONNECTION_ID(), a.v, b.v, c.v FROM t a, t b, t c") // more than sockets hold
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var id int64
	var a, b, c string
	if !rows.Next() || rows.Scan(&id, &a, &b, &c) != nil {
		t.Fatalf("no row: %v", rows.Err())
	}
	if err := s.Exec(fmt.Sprint("KILL ", id)); err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
	}
	if err := rows.Err(); !errors.Is(err, mysql.ErrInvalidConn) {
		t.Errorf("the rows ended with %v, want mysql.ErrInvalidConn", err)
	}
	rows.Close()
	warmReal(t, p.DB, 2)
	if s := p.Stats(); s.Deaths != 1 || s.Pinged != 2 {
		t.Errorf("%d deaths, %d pings, want 1 and 2: each of the others once", s.Deaths, s.Pinged)
	}
}

// A procedure that has written before it is refused, on real servers.
func TestProcedureThatIsRefusedMidwayIsNotCalledAgain(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, q := range []string{
			"CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)",
			"CREATE PROCEDURE test.p() BEGIN INSERT INTO test.t (v) VALUES (1); SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1637, MESSAGE_TEXT = 'Too many active concurrent transactions'; END",
			"CREATE PROCEDURE test.big() BEGIN INSERT INTO test.t (v) VALUES (2); SELECT REPEAT('x', 15000000), REPEAT('x', 15000000), REPEAT('y', 15000000); END",
			"CREATE PROCEDURE test.big2() BEGIN INSERT INTO test.t (v) VALUES (3); SELECT JSON_EXTRACT('{}', REPEAT('x', 15000000)), CONCAT(REPEAT('x', 15000000), REPEAT('y', 15000000)) c; END",
		} {
			if err := s.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		p := open(t, s.DSN(), "")
		_, err := p.ExecContext(t.Context(), "CALL p()")
		t.Logf("%.200v", err)
		_, err = p.ExecContext(t.Context(), "CALL big()")
		t.Logf("%.200v", err)
		_, err = p.ExecContext(t.Context(), "CALL big2()")
		t.Logf("%.200v", err)
		for v := 1; v <= 3; v++ {
			if n := count(t, s, "t WHERE v = "+string(rune('0'+v))); n != 1 {
				t.Errorf("v=%d: one CALL, %d rows", v, n)
			}
		}
	})
}
