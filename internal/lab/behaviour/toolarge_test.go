package behaviour_test

// What is large in all, and not above max_allowed_packet, is lost like anything
// else.

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// isOrdinaryLoss says whether an error is that of a statement that may have run.
func isOrdinaryLoss(err error) bool {
	class := livepool.Classify(err)
	return errors.Is(err, mysql.ErrInvalidConn) && !errors.Is(err, driver.ErrBadConn) && !labtest.IsServerError(err, 1153) &&
		class&livepool.NotRun == 0 && class&livepool.Retry != 0
}

// rowStream gives rows, and those that come next to those who ask again, as a file
// that is read once. At half of them it calls half, at the end end.
type rowStream struct {
	reads     int
	half, end func()
}

func (r *rowStream) Read(b []byte) (int, error) {
	const all = 200 // of 16 KB
	switch r.reads++; {
	case r.reads == all/2 && r.half != nil:
		r.half()
	case r.reads > all:
		if r.end != nil {
			r.end()
		}
		return 0, io.EOF
	}
	row := strings.Repeat("0", 126) + "1\n" // few and long, for the server's sake
	return copy(b, strings.Repeat(row, len(b)/len(row))), nil
}

// registerRows registers a rowStream for LOAD DATA LOCAL, and counts how often it is asked for.
func registerRows(t *testing.T, name string, r *rowStream) (query string, sent *int) {
	sent = new(int)
	mysql.RegisterReaderHandler(name, func() io.Reader { *sent++; return r })
	t.Cleanup(func() { mysql.DeregisterReaderHandler(name) })
	return "LOAD DATA LOCAL INFILE 'Reader::" + name + "' INTO TABLE t (v)", sent
}

// resetMidway ends the connection, and waits until that is known here.
func resetMidway(px *proxy.Proxy) func() {
	return func() {
		time.Sleep(100 * time.Millisecond)
		px.RST()
		time.Sleep(100 * time.Millisecond)
	}
}

// LOAD DATA LOCAL of more than max_allowed_packet, in packets that are all small,
// is not sent again with what is left of its rows, whether livepool has dialled or
// the driver.
func TestLoadOfMoreThanAPacketIsNotSentAgain(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		for name, open := range map[string]func(dsn string) *livepool.Pool{
			"dialled by livepool": func(dsn string) *livepool.Pool { return open(t, dsn, "pool_size=1") },
			"by the driver":       func(dsn string) *livepool.Pool { return labtest.Open(t, driversConnector(t, dsn), nil) },
		} {
			t.Run(name, func(t *testing.T) {
				px := proxyTo(t, s)
				query, sent := registerRows(t, t.Name(), &rowStream{half: resetMidway(px)})
				p := open(s.DSNVia(px.Addr()))
				if err := p.Ping(); err != nil {
					t.Fatal(err)
				}
				for _, query := range []string{query, "/* job */ " + query, "/*!40000 " + query + " */"} {
					*sent = 0
					_, err := p.Exec(query)
					if n := count(t, s, "t"); *sent != 1 || n != 0 || !isOrdinaryLoss(err) {
						t.Errorf("%.20s: sent %d times, %d rows, %v; want once, none, a loss", query, *sent, n, err)
					}
					mysql.DeregisterReaderHandler(t.Name())
					_, sent = registerRows(t, t.Name(), &rowStream{half: resetMidway(px)})
				}
			})
		}
	}, "--local-infile=1", "--max-allowed-packet=1M")
}

// Its answer may be lost after it has run.
func TestLoadOfMoreThanAPacketMayHaveRun(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		px := proxyTo(t, s)
		query, sent := registerRows(t, t.Name(), &rowStream{end: func() { px.DropToClient(true) }})
		p := open(t, s.DSNVia(px.Addr()), "pool_size=1")
		if err := p.Ping(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { _, err := p.Exec(query); done <- err }()
		labtest.Eventually(t, "it has run", func() bool { return count(t, s, "t") > 0 })
		px.RST()
		if err := <-done; *sent != 1 || !isOrdinaryLoss(err) {
			t.Errorf("sent %d times, %v; want once, a loss", *sent, err)
		}
	}, "--local-infile=1", "--max-allowed-packet=1M")
}

// cutAtChunk is a connection that ends where the second piece of a packet begins.
type cutAtChunk struct {
	*net.TCPConn
	begun *int
}

func (c *cutAtChunk) Write(b []byte) (int, error) {
	if len(b) > 1<<20 {
		if b[3] > 0 {
			return 0, syscall.ECONNRESET
		}
		*c.begun++
	}
	return c.TCPConn.Write(b)
}

// The driver says of the second piece of a packet that nothing was sent.
func TestTooLargeIsNeverErrBadConn(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MariaDB, "--max-allowed-packet=17M")
	withTable(t, s)
	begun := 0
	p := openWith(t, s.DSN(), func(c *livepool.Config) {
		c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &cutAtChunk{nc.(*net.TCPConn), &begun}, nil
		}
	})
	_, err := p.Exec("INSERT INTO t (v) VALUES (LENGTH('" + strings.Repeat("x", 20<<20) + "'))")
	if begun != 1 || !labtest.IsServerError(err, 1153) || errors.Is(err, driver.ErrBadConn) {
		t.Errorf("sent %d times, %v; want once, 1153", begun, err)
	}
}

// Values that are sent as long data, each smaller than max_allowed_packet, are a
// statement that runs. A unit that loses its connection over it, by a reset or by
// silence, is run again, and what it has left on the server is ended.
func TestLongDataOfMoreThanAPacketIsLostLikeAnyStatement(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.blobs (a LONGBLOB, b LONGBLOB)"); err != nil {
			t.Fatal(err)
		}
		px := proxyTo(t, s)
		p := open(t, s.DSNVia(px.Addr()), "maxAllowedPacket=1000000&pool_size=1&pool_stall_after=500ms")
		big := strings.Repeat("x", 700_000)
		const insert = "INSERT INTO blobs VALUES (?, ?)"
		if _, err := p.Exec(insert, big, big); err != nil {
			t.Fatal(err)
		}
		px.CutAfter(proxy.Command(proxy.ComStmtExecute), proxy.RST)
		if _, err := p.Exec(insert, big, big); !isOrdinaryLoss(err) {
			t.Errorf("got %v, want a loss", err)
		}
		if n := count(t, s, "blobs"); n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
		faults := []proxy.Fault{proxy.RST}
		if s.Kind() == server.MariaDB { // on one, for the server is given 20s to read as much
			faults = append(faults, proxy.Stall)
		}
		rows := 2
		for _, how := range faults {
			px.CutAfter(proxy.Command(proxy.ComStmtExecute), how)
			runs := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				runs++
				_, err := u.ExecContext(ctx, insert, big, big)
				return err
			})
			rows++
			if n := count(t, s, "blobs"); err != nil || runs != 2 || n != rows {
				t.Errorf("%v: %v after %d runs, %d rows; want it applied by the second, %d rows", how, err, runs, n, rows)
			}
		}
		if st := awaitOrphans(t, p, int64(1+len(faults))); int(st.Stalled) != len(faults)-1 {
			t.Errorf("Stalled %d, want %d", st.Stalled, len(faults)-1)
		}
	}, "--max-allowed-packet=1M")
}

// What silence ends is no refusal, however large it is: the unit's transaction is
// ended on the server, and the unit run again.
func TestSilenceOverALargeStatementLeavesNoTransaction(t *testing.T) {
	t.Parallel()
	s, _ := openLedger(t, server.MariaDB, "--max-allowed-packet=1M")
	px := proxyTo(t, s)
	p := open(t, s.DSNVia(px.Addr()), "pool_size=1&pool_stall_after=500ms&pool_max_elapsed=2m")
	query := "INSERT INTO t (v) VALUES (LENGTH('" + strings.Repeat("x", 1<<20) + "'))"
	runs := 0
	var left int64
	err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
		if err := labtest.Insert(1)(ctx, u); err != nil {
			return err
		}
		if runs++; runs == 1 {
			left = connectionID(t, u)
			px.Stall()
		}
		_, err := u.ExecContext(ctx, query)
		return err
	})
	labtest.Eventually(t, "the first transaction is gone", func() bool { return !isThreadAlive(t, s, left) })
	if n := count(t, s, "t"); !labtest.IsServerError(err, 1153) || runs != 2 || n != 0 {
		t.Errorf("%v after %d runs, %d rows; want 1153 after 2, none", err, runs, n)
	}
}

// It is the connection's own max_allowed_packet that counts, and not what new ones
// get meanwhile.
func TestMaxAllowedPacketIsTheSessions(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		px := proxyTo(t, s)
		query := "INSERT INTO t (v) VALUES (LENGTH('" + strings.Repeat("x", 3<<20) + "'))"
		for _, limits := range [][2]int{{16 << 20, 1 << 20}, {1 << 20, 16 << 20}} {
			if err := s.SetGlobal("max_allowed_packet", limits[0]); err != nil {
				t.Fatal(err)
			}
			p := open(t, s.DSNVia(px.Addr()), "pool_size=1")
			if err := p.Ping(); err != nil {
				t.Fatal(err)
			}
			if err := s.SetGlobal("max_allowed_packet", limits[1]); err != nil {
				t.Fatal(err)
			}
			cut := px.CutAfter(proxy.QueryPrefix("INSERT"), proxy.RST)
			_, err := p.Exec(query)
			cut.Cancel()
			n := count(t, s, "t")
			switch ran := limits[0] > len(query); {
			case ran && (n != 1 || !isOrdinaryLoss(err)):
				t.Errorf("%v: %d rows, %v; want one, a loss", limits, n, err)
			case !ran && (n != 1 || !labtest.IsServerError(err, 1153)):
				t.Errorf("%v: %d rows, %v; want none more, 1153", limits, n, err)
			}
		}
	})
}

// A packet that fits into net_buffer_length is read, however small
// max_allowed_packet is.
func TestPacketThatFitsIntoTheBufferMayHaveRun(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		px := proxyTo(t, s)
		p := open(t, s.DSNVia(px.Addr()), "pool_size=1")
		if err := p.Ping(); err != nil {
			t.Fatal(err)
		}
		px.CutAfter(proxy.QueryPrefix("INSERT"), proxy.RST)
		_, err := p.Exec("INSERT INTO t (v) VALUES (LENGTH('" + strings.Repeat("x", 8<<10) + "'))")
		n := count(t, s, "t")
		t.Log(n, err)
		if n == 1 && !isOrdinaryLoss(err) {
			t.Errorf("it has run, and %v", err)
		}
	}, "--max-allowed-packet=4096", "--net-buffer-length=16384")
}

// Behind TLS the text of the statement is known still.
func TestStatementAboveMaxAllowedPacketByTLS(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MySQL, "--max-allowed-packet=1M")
	withTable(t, s)
	p := open(t, s.DSN(), "tls=skip-verify&pool_size=1")
	if err := p.Ping(); err != nil {
		t.Fatal(err)
	}
	_, err := p.Exec("INSERT INTO t (v) VALUES (LENGTH('" + strings.Repeat("x", 3<<20) + "'))")
	if !labtest.IsServerError(err, 1153) || !strings.Contains(err.Error(), "max_allowed_packet of 1048576 bytes") {
		t.Errorf("got %v, want 1153", err)
	}
}
