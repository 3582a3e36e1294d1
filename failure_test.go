package livepool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
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
			eventually(t, "the server has closed the connection", func() bool {
				list, err := s.Processes()
				return err == nil && !slices.ContainsFunc(list, func(p server.Process) bool { return p.User == server.User })
			})
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

// Nor is it after a refusal: its file cannot be read again.
func TestRefusedLoadIsNotSentAgain(t *testing.T) {
	f := &fake{}
	p := openFake(t, f, nil)
	warm(t, p.DB, 1)
	f.execs.Store(0)
	f.onExec = func(context.Context, *fakeConn, string) error { return serverError(1290, readOnlyText) }
	_, err := p.Exec("LOAD DATA LOCAL INFILE 'Reader::rows' INTO TABLE t")
	if n := f.execs.Load(); !isServerError(err, 1290) || n != 1 {
		t.Errorf("got %v after %d tries, want the server's own 1290 at the first", err, n)
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
			return openOn(t, driversConnector(t, withParams(s.DSN(), "multiStatements=true")), nil)
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
			warmReal(t, p.DB, 2) // connections that have worked are not believed a refusal
			_, err := p.Exec(fmt.Sprintf("INSERT INTO t VALUES (%d); SET SESSION TRANSACTION READ ONLY; INSERT INTO t VALUES (100)", i))
			if !isServerError(err, 1792) {
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
	if _, err := c.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); !isServerError(err, 1792) {
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

// A connection whose server has refused a statement, or is going away, does not
// go back to the pool, though the driver has nothing against it.
func TestConnectionGivenUpByItsServerIsClosedOnReturn(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refusal error
	}{
		{"the server shuts down", serverError(1053, "Server shutdown in progress")},
		{"the server takes no writes", serverError(1290, readOnlyText)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fake{}
			p := openFake(t, f, nil)
			warm(t, p.DB, 1)
			f.onExec = func(context.Context, *fakeConn, string) error { return tt.refusal }
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			// database/sql is not told: it would close the connection itself.
			c.Raw(func(dc any) error {
				if _, err := dc.(driver.ExecerContext).ExecContext(t.Context(), "INSERT INTO t VALUES (1)", nil); err == nil {
					t.Error("the statement succeeded")
				}
				return nil
			})
			c.Close()
			if !f.all()[0].closed.Load() {
				t.Error("the connection went back to the pool")
			}
		})
	}
}

// tunnel is a net.Conn of which a read that this side's own Close interrupts
// ends as if the other side had closed it, like a channel of ssh's.
type tunnel struct {
	net.Conn
	closed atomic.Bool
}

func (t *tunnel) Close() error {
	t.closed.Store(true)
	return t.Conn.Close()
}

func (t *tunnel) Read(b []byte) (int, error) {
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
					return &tunnel{Conn: nc}, nil
				}
			})
		}},
		{"a connector of the driver's", func(t *testing.T) *livepool.Pool { return openOn(t, driversConnector(t, s.DSN()), nil) }},
	} {
		for _, inTx := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in a transaction %v", tt.name, inTx), func(t *testing.T) {
				p := tt.open(t)
				connectionID(t, p)
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				var db execer = p
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
				eventually(t, "the connection is back", func() bool { return p.Stats().InUse == 0 })
				if n := p.Stats().Deaths; n != 0 {
					t.Errorf("%d deaths, want none", n)
				}
			})
		}
	}
}

// A driver may call its own closing of the connection, when the context ends, a
// loss.
func TestLossAfterTheCallersCancelIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := openFake(t, f, nil)
		warm(t, p.DB, 1)
		f.onExec = func(ctx context.Context, c *fakeConn, _ string) error {
			<-ctx.Done()
			c.valid.Store(false)
			return mysql.ErrInvalidConn
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, mysql.ErrInvalidConn) {
			t.Errorf("got %v, want what the driver says", err)
		}
		if s := p.Stats(); s.Deaths != 0 || s.OpenConnections != 0 {
			t.Errorf("%d deaths, %d connections open, want 0 and 0", s.Deaths, s.OpenConnections)
		}
	})
}

// beginning is a connection that begins transactions of any kind, and does not
// mind a context.
type beginning struct {
	*fakeConn
	begin func() driver.Tx
}

func (b beginning) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return b.begin(), nil
}

// A transaction begins on a connection that was checked, and stays there: what
// makes up for a check that a checkout missed does not replace the connection
// below it.
func TestTransactionNeverMovesToAnotherConnection(t *testing.T) {
	f := &fake{}
	p := openOn(t, variant{f, func(c *fakeConn) driver.Conn {
		return beginning{c, func() driver.Tx { return c }}
	}}, func(c *livepool.Config) { c.PingAfter = 0 })
	warm(t, p.DB, 1)
	ctx, cancel := context.WithCancel(t.Context())
	f.onReset = func(*fakeConn) error { cancel(); return nil }
	c, err := p.Conn(ctx) // whose check its context has prevented
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f.onReset = nil
	begin := func(ctx context.Context) (tx driver.Tx, err error) {
		// database/sql would not pass an ended context on.
		c.Raw(func(dc any) error {
			tx, err = dc.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
			return nil
		})
		return tx, err
	}
	if _, err := begin(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("begun without a check under a context that has ended: %v", err)
	}
	tx, err := begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.kill()
	if res, err := c.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); err == nil {
		id, _ := res.RowsAffected()
		t.Errorf("a statement of a transaction on connection 1 ran on connection %d", id)
	}
	if n := f.connects.Load(); n != 1 {
		t.Errorf("%d connections opened, want 1", n)
	}
	tx.Rollback()
}

// distinctTx is a transaction that is told from the others.
type distinctTx struct{ end string }

func (tx *distinctTx) Commit() error   { tx.end += "commit"; return nil }
func (tx *distinctTx) Rollback() error { tx.end += "rollback"; return nil }

// A second transaction on a sql.Conn leaves the first its own end.
func TestTransactionBegunTwiceEndsEachOnItsOwn(t *testing.T) {
	var begun []*distinctTx
	p := openOn(t, variant{&fake{}, func(c *fakeConn) driver.Conn {
		return beginning{c, func() driver.Tx {
			begun = append(begun, &distinctTx{})
			return begun[len(begun)-1]
		}}
	}}, nil)
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Commit(), second.Rollback()); err != nil {
		t.Error(err)
	}
	if len(begun) != 2 || begun[0].end != "commit" || begun[1].end != "rollback" {
		t.Errorf("the driver's transactions: %+v, want the first committed and the second rolled back", begun)
	}
}

// The kernel reports a silence long after it began. What was proved meanwhile
// is not suspect, what was not is asked.
func TestSilenceReportedByTheKernelSparesTheProved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := openFake(t, f, func(c *livepool.Config) { c.PingAfter, c.KeepAlive = time.Hour, 0 })
		held := make([]*sql.Conn, 3)
		for i := range held {
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			servedBy(t, c)
			held[i] = c
		}
		silent, proved, early := held[0], held[1], held[2]
		f.onExec = func(_ context.Context, c *fakeConn, query string) error {
			if query != "a long statement" {
				return nil
			}
			time.Sleep(time.Minute)
			c.valid.Store(false)
			return &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := silent.ExecContext(t.Context(), "a long statement"); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("got %v, want ETIMEDOUT", err)
			}
		})
		time.Sleep(10 * time.Second)
		servedBy(t, early)
		time.Sleep(45 * time.Second) // within the kernel's patience of 11s
		servedBy(t, proved)
		wg.Wait()
		for _, c := range held {
			c.Close()
		}
		warm(t, p.DB, 2)
		synctest.Wait()
		if s := p.Stats(); s.Pinged != 1 || s.KeptAlive != 1 || s.Deaths != 1 {
			t.Errorf("%d pings, %d of them in the background, %d deaths, want one each: the one that had not proved itself is asked, and no caller waits for it", s.Pinged, s.KeptAlive, s.Deaths)
		}
		if all := f.all(); all[1].closed.Load() || all[2].closed.Load() {
			t.Error("one that had proved itself, or did so when it was asked, is closed")
		}
	})
}

// Callers with less patience than PingTimeout do not each pay for a black hole:
// a ping goes on without its caller, and those who come later know.
func TestImpatientCallersInABlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{onPing: blackHole}
		p := openFake(t, f, nil)
		warm(t, p.DB, 10)
		f.kill()
		time.Sleep(10 * time.Second)
		failed := 0
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
			start := time.Now()
			if _, err := p.ExecContext(ctx, "DO 1"); err != nil {
				failed++
			}
			if took := time.Since(start); took > 900*time.Millisecond {
				t.Errorf("a caller waited %s, beyond his patience of 900ms", took)
			}
			cancel()
		}
		if failed > 2 {
			t.Errorf("%d of 20 callers paid for the black hole, want at most 2", failed)
		}
		time.Sleep(5 * time.Second)
		if n := p.Stats().Deaths; n == 0 {
			t.Error("nobody learnt of the silence")
		}
	})
}

// PrePingOff sends no ping, but it does not hand out what is known to be
// suspect.
func TestWhatIsSuspectIsNotHandedOutUnderPrePingOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{onPing: blackHole}
		p := openFake(t, f, func(c *livepool.Config) { c.PrePing = livepool.PrePingOff })
		warm(t, p.DB, 3)
		f.kill()
		time.Sleep(time.Minute)
		if err := p.Ping(); err != nil { // finds the silence
			t.Fatal(err)
		}
		start := time.Now()
		held, ids := takes(t, p.DB, 3)
		giveBack(held)
		if slices.Min(ids) <= 3 || time.Since(start) != 0 {
			t.Errorf("served by connections %v after %s, want new ones at once", ids, time.Since(start))
		}
	})
}

// A ping that the driver's own readTimeout ends, before PingTimeout does, went
// unanswered all the same.
func TestReadTimeoutOfAPingIsSilence(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "readTimeout=2s&pool_ping_timeout=20s")
	warmReal(t, p.DB, 10)
	time.Sleep(600 * time.Millisecond) // beyond the trust of a recent round trip
	via.Stall()
	warmReal(t, p.DB, 10)
	if s := p.Stats(); s.Pinged-s.KeptAlive != 1 {
		t.Errorf("callers waited for %d pings, want 1", s.Pinged-s.KeptAlive)
	}
}

// Of two deaths the one that is reported later may have been the earlier. It
// does not bring back trust that the other has taken.
func TestDeathsReportedInAnyOrderLeaveTheLatestNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{onPing: func(_ context.Context, c *fakeConn) error {
			if !c.dead.Load() {
				return nil
			}
			time.Sleep(700 * time.Millisecond)
			return errGone
		}}
		p := openFake(t, f, nil)
		conns := make([]*sql.Conn, 3)
		for i := range conns {
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			servedBy(t, c)
			conns[i] = c
		}
		dies, watched := conns[1], conns[2]
		f.all()[0].dead.Store(true)
		f.all()[1].dead.Store(true)
		conns[0].Close()
		time.Sleep(10 * time.Second)

		var ping sync.WaitGroup
		ping.Go(func() { servedBy(t, p) }) // sent at 0s, answered at 0.7s
		time.Sleep(300 * time.Millisecond)
		servedBy(t, watched)
		time.Sleep(200 * time.Millisecond)
		if _, err := dies.ExecContext(t.Context(), "DO 1"); !errors.Is(err, errGone) {
			t.Errorf("got %v, want %v", err, errGone)
		}
		ping.Wait()
		dies.Close()
		watched.Close()
		f.pings.Store(0)
		warm(t, p.DB, 2)
		if n := f.pings.Load(); n != 1 {
			t.Errorf("%d pings, want 1: of the one that was proved between the two deaths", n)
		}
	})
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

// A connection that nobody has checked is checked before its first use, however
// long after its birth that is.
func TestConnectionHeldUnusedIsCheckedBeforeItsFirstUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := openFake(t, f, nil)
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		time.Sleep(time.Hour / 2)
		f.kill()
		if id := servedBy(t, c); id != 2 {
			t.Errorf("served by connection %d, want a new one", id)
		}
	})
}

// A server closes a connection that was idle for wait_timeout and says 4031. In
// place of an answer that was lost on the way that comes a second after the
// request at the earliest, and tells nothing of it.
func TestIdleCloseThatMayComeAfterTheRequest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		after   time.Duration
		unknown bool
	}{
		{"at once: the request was not read", 900 * time.Millisecond, false},
		{"late: it may have been", 1100 * time.Millisecond, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lost, sent int
				answer := func() error {
					sent++
					if lost++; lost > 1 {
						return nil
					}
					time.Sleep(tt.after)
					return serverError(4031, "The client was disconnected by the server because of inactivity")
				}
				f := &fake{onCommit: func(*fakeConn) error { return answer() }}
				p := openFake(t, f, nil)
				defer p.Close()
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
					return err
				})
				if got := errors.Is(err, livepool.ErrCommitUnknown); got != tt.unknown || (err == nil) == tt.unknown {
					t.Errorf("COMMIT: %v", err)
				}
				lost, sent = 0, 0
				f.onExec = func(context.Context, *fakeConn, string) error { return answer() }
				if _, err := p.ExecContext(t.Context(), "INSERT INTO t VALUES (2)"); (err != nil) != tt.unknown || (sent == 1) != tt.unknown {
					t.Errorf("a statement: sent %d times, %v", sent, err)
				}
			})
		})
	}
}

// What has no effect, or may have it twice, is sent again whatever the server
// said in place of an answer; and nobody is told that it has not run.
func TestWhatAServerSaysUnasked(t *testing.T) {
	said := map[string]error{
		"4031, late": serverError(4031, "The client was disconnected by the server because of inactivity"),
		"1053":       serverError(1053, "Server shutdown in progress"),
		"1927":       serverError(1927, "Connection was killed"),
		"2013":       serverError(2013, "Lost connection to server during query"),
	}
	for name, err := range said {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				answer := func() error {
					if n++; n > 1 {
						return nil
					}
					time.Sleep(1100 * time.Millisecond)
					return err
				}
				f := &fake{
					onBegin:   func(*fakeConn) error { return answer() },
					onPrepare: func(*fakeConn) error { return answer() },
				}
				p := openFake(t, f, nil)
				defer p.Close()
				tx, err := p.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatalf("BEGIN: %v", err)
				}
				tx.Rollback()
				n = 0
				st, err := p.PrepareContext(t.Context(), "SELECT 1")
				if err != nil {
					t.Fatalf("PREPARE: %v", err)
				}
				st.Close()
				n = 0
				f.onExec = func(context.Context, *fakeConn, string) error { return answer() }
				if _, err := p.ExecContext(livepool.Idempotent(t.Context()), "UPDATE t SET a = 1"); err != nil {
					t.Errorf("an idempotent statement: %v", err)
				}
				n = 0
				_, err = p.ExecContext(t.Context(), "UPDATE t SET a = a + 1")
				if class := livepool.Classify(err); err == nil || class&livepool.NotRun != 0 {
					t.Errorf("a statement: %v, which says %s", err, class)
				}
				n, f.onExec, f.onCommit = 0, nil, func(*fakeConn) error { return answer() }
				f.onBegin = nil
				err = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
					return err
				})
				if class := livepool.Classify(err); !errors.Is(err, livepool.ErrCommitUnknown) || class&livepool.NotRun != 0 {
					t.Errorf("a unit: %v, which says %s", err, class)
				}
			})
		})
	}
}

// What was refused may have been a later part of it: of a procedure, of several
// statements in one, of a file whose reader is at its end.
func TestRefusalOfAPartIsNotSentAgain(t *testing.T) {
	for _, q := range []string{"CALL p()", "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)", "LOAD DATA LOCAL INFILE 'Reader::x' INTO TABLE t"} {
		for _, number := range []uint16{1290, 1637, 1040, 1203} {
			f := &fake{}
			sent := 0
			f.onExec = func(_ context.Context, c *fakeConn, q string) error {
				sent++
				return serverError(number, "read-only; Too many active concurrent transactions")
			}
			p := openFake(t, f, nil)
			_, err := p.ExecContext(t.Context(), q)
			if sent != 1 {
				t.Errorf("%d: %q was sent %d times: %v", number, q, sent, err)
			}
		}
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
