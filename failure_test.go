package livepool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// Nor is it after a refusal: its file cannot be read again.
func TestRefusedLoadIsNotSentAgain(t *testing.T) {
	f := &fakedb.DB{}
	p := openFake(t, f, nil)
	fakedb.Warm(t, p.DB, 1)
	f.Execs.Store(0)
	f.OnExec = func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1290, readOnlyText) }
	_, err := p.Exec("LOAD DATA LOCAL INFILE 'Reader::rows' INTO TABLE t")
	if n := f.Execs.Load(); !labtest.IsServerError(err, 1290) || n != 1 {
		t.Errorf("got %v after %d tries, want the server's own 1290 at the first", err, n)
	}
}

// A connection whose server has refused a statement, or is going away, does not
// go back to the pool, though the driver has nothing against it.
func TestConnectionGivenUpByItsServerIsClosedOnReturn(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refusal error
	}{
		{"the server shuts down", fakedb.ServerError(1053, "Server shutdown in progress")},
		{"the server takes no writes", fakedb.ServerError(1290, readOnlyText)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakedb.DB{}
			p := openFake(t, f, nil)
			fakedb.Warm(t, p.DB, 1)
			f.OnExec = func(context.Context, *fakedb.Conn, string) error { return tt.refusal }
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
			if !f.Conns()[0].Closed.Load() {
				t.Error("the connection went back to the pool")
			}
		})
	}
}

// A driver may call its own closing of the connection, when the context ends, a
// loss.
func TestLossAfterTheCallersCancelIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := openFake(t, f, nil)
		fakedb.Warm(t, p.DB, 1)
		f.OnExec = func(ctx context.Context, c *fakedb.Conn, _ string) error {
			<-ctx.Done()
			c.Valid.Store(false)
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

// anyTxConn is a connection that begins transactions of any kind, and does not
// mind a context.
type anyTxConn struct {
	*fakedb.Conn
	begin func() driver.Tx
}

func (b anyTxConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return b.begin(), nil
}

// A transaction begins on a connection that was checked, and stays there: what
// makes up for a check that a checkout missed does not replace the connection
// below it.
func TestTransactionNeverMovesToAnotherConnection(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.Open(t, wrappedFake{f, func(c *fakedb.Conn) driver.Conn {
		return anyTxConn{c, func() driver.Tx { return c }}
	}}, func(c *livepool.Config) { c.PingAfter = 0 })
	fakedb.Warm(t, p.DB, 1)
	ctx, cancel := context.WithCancel(t.Context())
	f.OnReset = func(*fakedb.Conn) error { cancel(); return nil }
	c, err := p.Conn(ctx) // whose check its context has prevented
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f.OnReset = nil
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
	f.Kill()
	if res, err := c.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); err == nil {
		id, _ := res.RowsAffected()
		t.Errorf("a statement of a transaction on connection 1 ran on connection %d", id)
	}
	if n := f.Connects.Load(); n != 1 {
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
	p := labtest.Open(t, wrappedFake{&fakedb.DB{}, func(c *fakedb.Conn) driver.Conn {
		return anyTxConn{c, func() driver.Tx {
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
		f := &fakedb.DB{}
		p := openFake(t, f, func(c *livepool.Config) { c.PingAfter, c.KeepAlive = time.Hour, 0 })
		held := make([]*sql.Conn, 3)
		for i := range held {
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fakedb.ServedBy(t, c)
			held[i] = c
		}
		silent, proved, early := held[0], held[1], held[2]
		f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
			if query != "a long statement" {
				return nil
			}
			time.Sleep(time.Minute)
			c.Valid.Store(false)
			return &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := silent.ExecContext(t.Context(), "a long statement"); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("got %v, want ETIMEDOUT", err)
			}
		})
		time.Sleep(10 * time.Second)
		fakedb.ServedBy(t, early)
		time.Sleep(45 * time.Second) // within the kernel's patience of 11s
		fakedb.ServedBy(t, proved)
		wg.Wait()
		for _, c := range held {
			c.Close()
		}
		fakedb.Warm(t, p.DB, 2)
		synctest.Wait()
		if s := p.Stats(); s.Pinged != 1 || s.KeptAlive != 1 || s.Deaths != 1 {
			t.Errorf("%d pings, %d of them in the background, %d deaths, want one each: the one that had not proved itself is asked, and no caller waits for it", s.Pinged, s.KeptAlive, s.Deaths)
		}
		if all := f.Conns(); all[1].Closed.Load() || all[2].Closed.Load() {
			t.Error("one that had proved itself, or did so when it was asked, is closed")
		}
	})
}

// Callers with less patience than PingTimeout do not each pay for a black hole:
// a ping goes on without its caller, and those who come later know.
func TestImpatientCallersInABlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: fakedb.BlackHole}
		p := openFake(t, f, nil)
		fakedb.Warm(t, p.DB, 10)
		f.Kill()
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
		f := &fakedb.DB{OnPing: fakedb.BlackHole}
		p := openFake(t, f, func(c *livepool.Config) { c.PrePing = livepool.PrePingOff })
		fakedb.Warm(t, p.DB, 3)
		f.Kill()
		time.Sleep(time.Minute)
		if err := p.Ping(); err != nil { // finds the silence
			t.Fatal(err)
		}
		start := time.Now()
		held, ids := fakedb.Take(t, p.DB, 3)
		fakedb.GiveBack(held)
		if slices.Min(ids) <= 3 || time.Since(start) != 0 {
			t.Errorf("served by connections %v after %s, want new ones at once", ids, time.Since(start))
		}
	})
}

// Of two deaths the one that is reported later may have been the earlier. It
// does not bring back trust that the other has taken.
func TestDeathsReportedInAnyOrderLeaveTheLatestNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: func(_ context.Context, c *fakedb.Conn) error {
			if !c.Dead.Load() {
				return nil
			}
			time.Sleep(700 * time.Millisecond)
			return fakedb.ErrGone
		}}
		p := openFake(t, f, nil)
		conns := make([]*sql.Conn, 3)
		for i := range conns {
			c, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fakedb.ServedBy(t, c)
			conns[i] = c
		}
		dies, watched := conns[1], conns[2]
		f.Conns()[0].Dead.Store(true)
		f.Conns()[1].Dead.Store(true)
		conns[0].Close()
		time.Sleep(10 * time.Second)

		var ping sync.WaitGroup
		ping.Go(func() { fakedb.ServedBy(t, p) }) // sent at 0s, answered at 0.7s
		time.Sleep(300 * time.Millisecond)
		fakedb.ServedBy(t, watched)
		time.Sleep(200 * time.Millisecond)
		if _, err := dies.ExecContext(t.Context(), "DO 1"); !errors.Is(err, fakedb.ErrGone) {
			t.Errorf("got %v, want %v", err, fakedb.ErrGone)
		}
		ping.Wait()
		dies.Close()
		watched.Close()
		f.Pings.Store(0)
		fakedb.Warm(t, p.DB, 2)
		if n := f.Pings.Load(); n != 1 {
			t.Errorf("%d pings, want 1: of the one that was proved between the two deaths", n)
		}
	})
}

// A connection that nobody has checked is checked before its first use, however
// long after its birth that is.
func TestConnectionHeldUnusedIsCheckedBeforeItsFirstUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := openFake(t, f, nil)
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		time.Sleep(time.Hour / 2)
		f.Kill()
		if id := fakedb.ServedBy(t, c); id != 2 {
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
					return fakedb.ServerError(4031, "The client was disconnected by the server because of inactivity")
				}
				f := &fakedb.DB{OnCommit: func(*fakedb.Conn) error { return answer() }}
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
				f.OnExec = func(context.Context, *fakedb.Conn, string) error { return answer() }
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
		"4031, late": fakedb.ServerError(4031, "The client was disconnected by the server because of inactivity"),
		"1053":       fakedb.ServerError(1053, "Server shutdown in progress"),
		"1927":       fakedb.ServerError(1927, "Connection was killed"),
		"2013":       fakedb.ServerError(2013, "Lost connection to server during query"),
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
				f := &fakedb.DB{
					OnBegin:   func(*fakedb.Conn) error { return answer() },
					OnPrepare: func(*fakedb.Conn) error { return answer() },
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
				f.OnExec = func(context.Context, *fakedb.Conn, string) error { return answer() }
				if _, err := p.ExecContext(livepool.Idempotent(t.Context()), "UPDATE t SET a = 1"); err != nil {
					t.Errorf("an idempotent statement: %v", err)
				}
				n = 0
				_, err = p.ExecContext(t.Context(), "UPDATE t SET a = a + 1")
				if class := livepool.Classify(err); err == nil || class&livepool.NotRun != 0 {
					t.Errorf("a statement: %v, which says %s", err, class)
				}
				n, f.OnExec, f.OnCommit = 0, nil, func(*fakedb.Conn) error { return answer() }
				f.OnBegin = nil
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
			f := &fakedb.DB{}
			sent := 0
			f.OnExec = func(_ context.Context, c *fakedb.Conn, q string) error {
				sent++
				return fakedb.ServerError(number, "read-only; Too many active concurrent transactions")
			}
			p := openFake(t, f, nil)
			_, err := p.ExecContext(t.Context(), q)
			if sent != 1 {
				t.Errorf("%d: %q was sent %d times: %v", number, q, sent, err)
			}
		}
	}
}
