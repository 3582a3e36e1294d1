package connector_test

// What is sent again after a failure, what is closed, and what the caller is told.

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

const readOnlyText = "The MariaDB server is running with the --read-only option so it cannot execute this statement"

// idleCloseText is the part of 4031's text by which it is recognized.
const idleCloseText = "The client was disconnected by the server because of inactivity"

// A statement outside a transaction is sent again only if it cannot have run,
// or may run twice.
func TestWhatIsSentAgain(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		query string
		idem  bool
		again bool
	}{
		{"nothing was written", driver.ErrBadConn, "INSERT INTO t VALUES (1)", false, true},
		{"lost after it was written", mysql.ErrInvalidConn, "INSERT INTO t VALUES (1)", false, false},
		{"lost after it was written, idempotent", mysql.ErrInvalidConn, "INSERT INTO t VALUES (1)", true, true},
		{"a read lost after it was written", mysql.ErrInvalidConn, "SELECT 1", false, false},
		{"4031: closed while idle", fakedb.ServerError(4031, idleCloseText), "INSERT INTO t VALUES (1)", false, true},
		{"4031, a procedure", fakedb.ServerError(4031, idleCloseText), "CALL p()", false, true},
		{"1290 of a read-only server", fakedb.ServerError(1290, readOnlyText), "INSERT INTO t VALUES (1)", false, true},
		{"1290 behind a tracing comment", fakedb.ServerError(1290, readOnlyText), "/* trace=1 */ -- x\n update t set a=1", false, true},
		{"1290 for another option", fakedb.ServerError(1290, "The MySQL server is running with the --secure-file-priv option so it cannot execute this statement"), "SELECT 1 INTO OUTFILE 'x'", false, false},
		{"1290 in a procedure, which may have committed half", fakedb.ServerError(1290, readOnlyText), "CALL p()", false, false},
		{"1290 in an executable comment", fakedb.ServerError(1290, readOnlyText), "/*! CALL p() */", false, false},
		{"1792", fakedb.ServerError(1792, "Cannot execute statement in a READ ONLY transaction"), "DELETE FROM t", false, true},
		{"1836", fakedb.ServerError(1836, "Running in read-only mode"), "DELETE FROM t", false, true},
		{"4094 of a group that changes its primary", fakedb.ServerError(4094, "All queries have been blocked while function 'group_replication_set_as_primary()' is executing."), "DELETE FROM t", false, true},
		{"1047 of a Galera node", fakedb.ServerError(1047, "WSREP has not yet prepared node for application use"), "SELECT a FROM t", false, true},
		{"1047 for another reason", fakedb.ServerError(1047, "Unknown command"), "SELECT a FROM t", false, false},
		{"a duplicate key", fakedb.ServerError(1062, "Duplicate entry"), "INSERT INTO t VALUES (1)", false, false},
		{"a duplicate key, idempotent", fakedb.ServerError(1062, "Duplicate entry"), "INSERT INTO t VALUES (1)", true, false},
		{"a deadlock", fakedb.ServerError(1213, "Deadlock found"), "UPDATE t SET a=1", false, false},
		{"shutdown in progress", fakedb.ServerError(1053, "Server shutdown in progress"), "UPDATE t SET a=1", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, nil)
			fakedb.Warm(t, p.DB, 1)
			f.Execs.Store(0)
			f.OnExec = func(_ context.Context, c *fakedb.Conn, _ string) error {
				if c.ID == 1 {
					return tt.err
				}
				return nil
			}
			ctx := t.Context()
			if tt.idem {
				ctx = livepool.Idempotent(ctx)
			}
			_, err := p.ExecContext(ctx, tt.query)
			switch n := f.Execs.Load(); {
			case tt.again && (err != nil || n != 2):
				t.Errorf("got %v after %d tries, want success at the second", err, n)
			case !tt.again && (err == nil || n != 1 || err.Error() != tt.err.Error()):
				t.Errorf("got %v after %d tries, want the driver's own error at the first", err, n)
			}
		})
	}
}

func TestNothingIsSentAgainInsideATransaction(t *testing.T) {
	for _, failure := range []error{
		driver.ErrBadConn, mysql.ErrInvalidConn,
		fakedb.ServerError(4031, idleCloseText), fakedb.ServerError(1290, readOnlyText),
	} {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		tx, err := p.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		f.OnExec = func(context.Context, *fakedb.Conn, string) error { return failure }
		if _, err := tx.ExecContext(livepool.Idempotent(t.Context()), "INSERT INTO t VALUES (1)"); failure == driver.ErrBadConn {
			// database/sql would wait for the transaction if it were on a sql.Conn.
			if errors.Is(err, failure) || err.Error() != failure.Error() || livepool.Classify(err) != livepool.Classify(failure) {
				t.Errorf("got %v (%s), want what says the same and is not driver.ErrBadConn", err, livepool.Classify(err))
			}
		} else if err != failure {
			t.Errorf("got %v, want %v as the driver has it", err, failure)
		}
		if n := f.Execs.Load(); n != 1 {
			t.Errorf("%v: sent %d times, want once", failure, n)
		}
		tx.Rollback()
	}
}

// A context may end as the answer of one statement arrives: the driver closes the
// connection, and says of the next statement under that context only that it is bad.
func TestTheEndOfItsContextIsToldAsThat(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	f.OnExec = func(_ context.Context, c *fakedb.Conn, _ string) error {
		cancel()
		c.Valid.Store(false)
		return driver.ErrBadConn
	}
	if _, err := c.ExecContext(ctx, "INSERT INTO t VALUES (1)"); !errors.Is(err, context.Canceled) || errors.Is(err, driver.ErrBadConn) {
		t.Errorf("got %v, want the end of its context", err)
	}
	if n := f.Execs.Load(); n != 1 {
		t.Errorf("sent %d times", n)
	}
}

// PREPARE and BEGIN have no effect that outlives their connection.
func TestLostPrepareAndBeginAreSentAgain(t *testing.T) {
	lostOnce := func(c *fakedb.Conn) error {
		if c.ID == 1 {
			c.Valid.Store(false)
			return mysql.ErrInvalidConn
		}
		return nil
	}
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	fakedb.Warm(t, p.DB, 1)
	f.OnPrepare = lostOnce
	s, err := p.PrepareContext(t.Context(), "INSERT INTO t VALUES (?)")
	if err != nil {
		t.Fatalf("prepare: %v", err)
	}
	s.Close()

	f = &fakedb.DB{}
	p = labtest.OpenFake(t, f, nil)
	fakedb.Warm(t, p.DB, 1)
	f.OnBegin = lostOnce
	tx, err := p.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// When every try fails the caller is told why, not just "bad connection".
func TestLastErrorTellsTheStory(t *testing.T) {
	f := &fakedb.DB{OnBegin: func(c *fakedb.Conn) error { return mysql.ErrInvalidConn }}
	p := labtest.OpenFake(t, f, nil)
	_, err := p.BeginTx(t.Context(), nil)
	if !errors.Is(err, mysql.ErrInvalidConn) || !errors.Is(err, driver.ErrBadConn) {
		t.Errorf("got %v, want both causes within reach", err)
	}
	for _, part := range []string{"livepool: connection", "old", "last answer", "before the statement ran"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if n := f.Connects.Load(); n != 3 {
		t.Errorf("%d connections tried, want 3", n)
	}
}

// A server that is read-only for good says so itself, and a program that goes
// on writing to it does not reconnect each time.
func TestRefusalByEveryServerIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		fakedb.Warm(t, p.DB, 3)
		f.OnExec = func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1290, readOnlyText) }
		insert := func() {
			t.Helper()
			_, err := p.ExecContext(t.Context(), "INSERT INTO t VALUES (1)")
			var my *mysql.MySQLError
			if !errors.As(err, &my) || my.Number != 1290 || errors.Is(err, driver.ErrBadConn) {
				t.Errorf("got %v, want the server's own 1290", err)
			}
		}
		for range 100 {
			insert()
		}
		if n := f.Connects.Load(); n != 4 {
			t.Errorf("%d connections opened for 100 refused writes at once, want 4: three old ones, one that tells the truth", n)
		}
		// But it is asked anew later: the address may lead elsewhere by then.
		time.Sleep(2 * time.Second)
		before := f.Connects.Load()
		f.OnExec = func(_ context.Context, c *fakedb.Conn, _ string) error {
			if c.ID <= before {
				return fakedb.ServerError(1290, readOnlyText)
			}
			return nil
		}
		if _, err := p.ExecContext(t.Context(), "INSERT INTO t VALUES (1)"); err != nil {
			t.Errorf("after the failover: %v", err)
		}
	})
}

func TestClassifyOverride(t *testing.T) {
	odd := errors.New("proxy: backend moved")
	f := &fakedb.DB{OnExec: func(_ context.Context, c *fakedb.Conn, _ string) error {
		if c.ID == 1 {
			return odd
		}
		return nil
	}}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.Classify = func(err error) (livepool.Class, bool) {
			return livepool.ConnDead, errors.Is(err, odd)
		}
	})
	if _, err := p.ExecContext(livepool.Idempotent(t.Context()), "SELECT 1"); err != nil {
		t.Errorf("got %v, want it sent again on another connection", err)
	}
}

// A prepared statement of the pool survives the replacement of the connection
// it was prepared on.
func TestPreparedStatementSurvivesReplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.Recycle = time.Minute })
		s, err := p.PrepareContext(t.Context(), "INSERT INTO t VALUES (?)")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for range 10 {
			if _, err := s.ExecContext(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		if n := p.Stats().ClosedByAge; n < 9 {
			t.Errorf("%d connections closed by age, want them replaced every minute", n)
		}
	})
}

// Nor is it after a refusal: its file cannot be read again.
func TestRefusedLoadIsNotSentAgain(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
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
			p := labtest.OpenFake(t, f, nil)
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
		p := labtest.OpenFake(t, f, nil)
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
					return fakedb.ServerError(4031, idleCloseText)
				}
				f := &fakedb.DB{OnCommit: func(*fakedb.Conn) error { return answer() }}
				p := labtest.OpenFake(t, f, nil)
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
		"4031, late": fakedb.ServerError(4031, idleCloseText),
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
				p := labtest.OpenFake(t, f, nil)
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
			p := labtest.OpenFake(t, f, nil)
			_, err := p.ExecContext(t.Context(), q)
			if sent != 1 {
				t.Errorf("%d: %q was sent %d times: %v", number, q, sent, err)
			}
		}
	}
}
