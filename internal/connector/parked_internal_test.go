package connector

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// exclusiveDB is a database whose connections do not bear two calls at a time, nor any
// beside an open result. Its zero value works.
type exclusiveDB struct {
	pings, calls, overlaps atomic.Int64
	opDelay                func(call string) time.Duration            // how long a call takes
	onPing                 func(ctx context.Context) error            // in place of that
	onExec                 func(c *exclusiveConn, query string) error // what a statement says
	endErr                 error                                      // what COMMIT and ROLLBACK say
}

type exclusiveConn struct {
	db     *exclusiveDB
	busy   atomic.Int32
	closed atomic.Bool
}

func (l *exclusiveDB) Connect(context.Context) (driver.Conn, error) {
	return &exclusiveConn{db: l}, nil
}
func (l *exclusiveDB) Driver() driver.Driver { return nil }

func (l *exclusiveDB) pool(t *testing.T, change func(*Settings)) *testPool {
	t.Helper()
	cfg := defaults()
	cfg.KeepAlive = time.Second
	if change != nil {
		change(cfg)
	}
	p, err := openTest(l, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.ctr.keepParkedAlive = true // as with livepool's dialer
	t.Cleanup(func() { p.Close() })
	return p
}

func (c *exclusiveConn) begin(call string) {
	c.db.calls.Add(1)
	if c.busy.Add(1) != 1 {
		c.db.overlaps.Add(1)
	}
	if c.db.opDelay != nil && call != "CLOSE" {
		time.Sleep(c.db.opDelay(call))
	}
}
func (c *exclusiveConn) end() { c.busy.Add(-1) }

func (c *exclusiveConn) Close() error              { c.closed.Store(true); return nil }
func (c *exclusiveConn) Begin() (driver.Tx, error) { c.begin("BEGIN"); c.end(); return c, nil }
func (c *exclusiveConn) Commit() error             { return c.endTx("COMMIT") }
func (c *exclusiveConn) Rollback() error           { return c.endTx("ROLLBACK") }
func (c *exclusiveConn) endTx(how string) error {
	c.begin(how)
	defer c.end()
	return c.db.endErr
}
func (c *exclusiveConn) IsValid() bool { return !c.closed.Load() }
func (c *exclusiveConn) ResetSession(context.Context) error {
	c.begin("")
	c.end()
	return nil
}
func (c *exclusiveConn) Prepare(string) (driver.Stmt, error) {
	c.begin("PREPARE")
	c.end()
	return exclusiveStmt{c}, nil
}
func (c *exclusiveConn) Ping(ctx context.Context) error {
	c.db.pings.Add(1)
	if c.db.onPing == nil {
		c.begin("ping")
		c.end()
		return nil
	}
	if c.busy.Add(1) != 1 {
		c.db.overlaps.Add(1)
	}
	defer c.end()
	return c.db.onPing(ctx)
}
func (c *exclusiveConn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	c.begin(query)
	defer c.end()
	if c.db.onExec != nil {
		if err := c.db.onExec(c, query); err != nil {
			return nil, err
		}
	}
	return driver.ResultNoRows, nil
}
func (c *exclusiveConn) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	c.begin(query)
	return &exclusiveRows{c: c}, nil
}

type exclusiveRows struct {
	c    *exclusiveConn
	read int
}

func (r *exclusiveRows) Columns() []string { return []string{"n"} }
func (r *exclusiveRows) Close() error      { r.c.end(); return nil }
func (r *exclusiveRows) Next(dest []driver.Value) error {
	if r.read++; r.read > 3 {
		return io.EOF
	}
	dest[0] = int64(r.read)
	return nil
}

type exclusiveStmt struct{ c *exclusiveConn }

func (s exclusiveStmt) Close() error  { s.c.begin("CLOSE"); s.c.end(); return nil } // waits for nobody
func (s exclusiveStmt) NumInput() int { return -1 }
func (s exclusiveStmt) Exec([]driver.Value) (driver.Result, error) {
	s.c.begin("EXECUTE")
	s.c.end()
	return driver.ResultNoRows, nil
}
func (s exclusiveStmt) Query([]driver.Value) (driver.Rows, error) {
	s.c.begin("EXECUTE")
	return &exclusiveRows{c: s.c}, nil
}

// Whatever the owner does, and however long it is elsewhere before, no ping gets
// between, and none that is needed is left out.
func TestNoPingBesideItsOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &exclusiveDB{opDelay: func(string) time.Duration { return rand.N(3 * time.Millisecond) }}
		p := l.pool(t, func(c *Settings) { c.KeepAlive, c.PoolSize = 5*time.Millisecond, 12 })
		ctx := t.Context()
		pause := func() { time.Sleep(rand.N(20 * time.Millisecond)) }
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		read := func(rows *sql.Rows, err error) {
			check(err)
			for rows.Next() {
				pause()
			}
			check(rows.Err())
			check(rows.Close())
		}
		inTx := func(tx *sql.Tx, err error) {
			check(err)
			pause()
			_, err = tx.ExecContext(ctx, "DO 1")
			check(err)
			pause()
			read(tx.QueryContext(ctx, "SELECT 1"))
			pause()
			if rand.N(2) == 0 {
				check(tx.Commit())
			} else {
				check(tx.Rollback())
			}
		}
		prepared := func(s *sql.Stmt, err error) {
			check(err)
			pause()
			_, err = s.ExecContext(ctx)
			check(err)
			pause()
			read(s.QueryContext(ctx))
			pause()
			check(s.Close())
		}
		done := make(chan struct{})
		for range 6 {
			go func() {
				defer func() { done <- struct{}{} }()
				for range 150 {
					c, err := p.Conn(ctx)
					check(err)
					for range rand.N(4) {
						pause()
						switch rand.N(6) {
						case 0:
							_, err := c.ExecContext(ctx, "DO 1")
							check(err)
						case 1:
							read(c.QueryContext(ctx, "SELECT 1"))
						case 2:
							inTx(c.BeginTx(ctx, nil))
						case 3:
							prepared(c.PrepareContext(ctx, "DO 1"))
						case 4:
							check(c.PingContext(ctx))
						case 5:
							inTx(p.BeginTx(ctx, nil))
						}
					}
					pause()
					check(c.Close())
				}
			}()
		}
		for range 6 {
			<-done
		}
		if n := l.overlaps.Load(); n > 0 {
			t.Errorf("%d of %d calls overlapped another one", n, l.calls.Load())
		}
		if n := l.pings.Load(); n < 2000 {
			t.Errorf("%d pings in the owners' absence and between", n)
		}
		if st := p.Stats(); st.Deaths > 0 || st.Opened > 12 {
			t.Errorf("%d deaths, %d opened", st.Deaths, st.Opened)
		}
	})
}

// A request beside an open result is the program's mistake. It ends, and the result is
// still being read: no ping may get between its rows.
func TestNoPingBesideAnOpenResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &exclusiveDB{}
		p := l.pool(t, func(c *Settings) { c.KeepAlive = time.Second })
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows, err := c.QueryContext(t.Context(), "SELECT 1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ExecContext(t.Context(), "DO 1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if n := l.pings.Load(); n > 0 {
			t.Errorf("%d pings beside an open result", n)
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if l.pings.Load() == 0 {
			t.Error("no ping after the result was closed")
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// holdPings makes the pings of a database wait until they are let go.
func (l *exclusiveDB) holdPings() (answer chan error) {
	answer = make(chan error)
	l.onPing = func(context.Context) error { return <-answer }
	return answer
}

// pingUnderWay is an owner in whose absence a ping is under way.
func pingUnderWay(t *testing.T, begin bool) (l *exclusiveDB, answer chan error, c *sql.Conn, tx *sql.Tx, p *testPool) {
	l = &exclusiveDB{}
	answer = l.holdPings()
	p = l.pool(t, func(c *Settings) { c.CommitTimeout = 10 * time.Second })
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExecContext(t.Context(), "DO 1"); err != nil {
		t.Fatal(err)
	}
	if begin {
		if tx, err = c.BeginTx(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(3 * time.Second)
	if n := l.pings.Load(); n != 1 {
		t.Fatalf("%d pings", n)
	}
	return l, answer, c, tx, p
}

// An owner who comes back waits for the ping, and within his own context; he has
// the connection all the same, and a slow server costs nobody a transaction.
func TestOwnerComesBackDuringAPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, answer, c, _, p := pingUnderWay(t, false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.ExecContext(ctx, "DO 2"); err != context.DeadlineExceeded {
			t.Errorf("his context ended: %v", err)
		}
		time.AfterFunc(20*time.Second, func() { answer <- nil })
		start := time.Now()
		if _, err := c.ExecContext(t.Context(), "DO 3"); err != nil || time.Since(start) != 20*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		close(answer)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if l.overlaps.Load() > 0 || p.Stats().Opened != 1 || p.Stats().Deaths != 0 {
			t.Errorf("%d overlaps, %d opened, %d deaths", l.overlaps.Load(), p.Stats().Opened, p.Stats().Deaths)
		}
	})
}

// What has no context of its own waits for CommitTimeout.
func TestCommitDuringAPing(t *testing.T) {
	for name, end := range map[string]func(*sql.Tx) error{"commit": (*sql.Tx).Commit, "rollback": (*sql.Tx).Rollback} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, answer, c, tx, _ := pingUnderWay(t, true)
				time.AfterFunc(5*time.Second, func() { answer <- nil })
				if err := end(tx); err != nil {
					t.Error(err)
				}
				close(answer)
				c.Close()
				if n := l.overlaps.Load(); n > 0 {
					t.Errorf("%d overlaps", n)
				}

				l, answer, c, tx, _ = pingUnderWay(t, true)
				start := time.Now()
				err := end(tx)
				if err == nil || time.Since(start) != 10*time.Second || !strings.Contains(err.Error(), "CommitTimeout") || errors.Is(err, mysqlerr.ErrCommitUnknown) {
					t.Errorf("after %s: %v", time.Since(start), err)
				}
				c.Close()
				close(answer)
				synctest.Wait()
				if n := l.overlaps.Load(); n > 0 {
					t.Errorf("%d overlaps", n)
				}
			})
		})
	}
}

// What a ping finds is told at the next statement, which is not sent.
func TestWhatAPingFindsIsTold(t *testing.T) {
	deadlock := &mysql.MySQLError{Number: 1213, Message: "Deadlock found"}
	for name, tt := range map[string]struct {
		err  error
		inTx bool
		want error // nil: the statement runs
	}{
		"lost, in a transaction":                 {errors.New("cut"), true, driver.ErrBadConn},
		"lost":                                   {errors.New("cut"), false, driver.ErrBadConn},
		"the transaction is gone":                {deadlock, true, deadlock},
		"a refusal that is no statement's":       {deadlock, false, nil},
		"the server is going, in a transaction":  {&mysql.MySQLError{Number: 1053}, true, driver.ErrBadConn},
		"the server is going, and ends the idle": {&mysql.MySQLError{Number: 4031, Message: "The client was disconnected by the server because of inactivity."}, false, driver.ErrBadConn},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, answer, c, tx, p := pingUnderWay(t, tt.inTx)
				answer <- tt.err
				synctest.Wait()
				close(answer)
				time.Sleep(10 * time.Second)
				sent := l.calls.Load()
				exec := c.ExecContext
				if tx != nil {
					exec = tx.ExecContext
				}
				_, err := exec(t.Context(), "DO 2")
				told := errors.Is(err, tt.want)
				if tt.want == driver.ErrBadConn && tt.inTx { // on which database/sql would wait for the transaction
					told = !told && errors.As(err, new(*idleLossError)) && mysqlerr.Classify(err)&(mysqlerr.ConnDead|mysqlerr.Retry) == mysqlerr.ConnDead|mysqlerr.Retry
				}
				if !told || tt.want != nil && l.calls.Load() != sent {
					t.Errorf("%v, %d calls, want %v", err, l.calls.Load()-sent, tt.want)
				}
				if tx != nil {
					if _, err := exec(t.Context(), "DO 3"); !errors.Is(err, ErrPoisoned) {
						t.Errorf("the next statement: %v", err)
					}
					if err := tx.Commit(); err == nil || errors.Is(err, mysqlerr.ErrCommitUnknown) {
						t.Errorf("commit: %v", err)
					}
				}
				c.Close()
				if err != nil && tt.want == driver.ErrBadConn && (!strings.Contains(err.Error(), "before the statement was sent") || p.Stats().Deaths != 1) {
					t.Errorf("%d deaths: %v", p.Stats().Deaths, err)
				}
				if _, err := p.Exec("DO 4"); err != nil || l.overlaps.Load() > 0 {
					t.Errorf("afterwards: %v, %d overlaps", err, l.overlaps.Load())
				}
			})
		})
	}
}

// A pool is closed while a connection is pinged in its owner's absence.
func TestCloseDuringAPingOfAHeldConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, answer, c, _, p := pingUnderWay(t, false)
		time.AfterFunc(500*time.Millisecond, func() { close(answer) })
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.ExecContext(t.Context(), "DO 2"); err != nil {
			t.Errorf("what is in use is closed when it is returned: %v", err)
		}
		c.Close()
		if n := l.overlaps.Load(); n > 0 {
			t.Errorf("%d overlaps", n)
		}
	})
}

// An idle pool is looked at when something is due, and not before; and not all of
// it for each ping.
func TestIdlePoolIsLeftAlone(t *testing.T) {
	for _, tt := range []struct {
		name      string
		conns     int
		keepAlive time.Duration
		most      int64 // rounds in ten minutes
	}{
		{"nothing due", 10, 0, 0},
		{"pings due", 10, 30 * time.Second, 2 * 10 * 20},
		{"many", 300, 30 * time.Second, 20 * 110},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &exclusiveDB{}
				p := l.pool(t, func(c *Settings) {
					c.PoolSize, c.KeepAlive, c.Recycle, c.IdleTimeout, c.LeakAfter = tt.conns, tt.keepAlive, 0, 0, time.Hour
				})
				conns := make([]*sql.Conn, tt.conns)
				for i := range conns {
					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					conns[i] = c
				}
				for _, c := range conns {
					time.Sleep(min(time.Minute/time.Duration(tt.conns), 15*time.Millisecond))
					c.Close()
				}
				time.Sleep(5 * time.Minute)
				rounds, pings := p.ctr.maintainer.rounds.Load(), l.pings.Load()
				time.Sleep(10 * time.Minute)
				if n := p.ctr.maintainer.rounds.Load() - rounds; n > tt.most {
					t.Errorf("%d rounds, want at most %d", n, tt.most)
				}
				if tt.keepAlive > 0 {
					if n := l.pings.Load() - pings; n < int64(tt.conns)*19 || n > int64(tt.conns)*23 {
						t.Errorf("%d pings of %d connections in 20 times KeepAlive", n, tt.conns)
					}
				}
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				time.Sleep(2 * time.Hour)
				if n := p.Stats().Leaks; n != 1 {
					t.Errorf("%d leaks reported of one that was taken while the maintainer slept", n)
				}
			})
		})
	}
}

// A dead connection is not the maintainer's to look at: its owner does not wait for that.
func TestDeadConnectionIsNotParked(t *testing.T) {
	for _, isDead := range []bool{false, true} {
		c := &conn{ctr: &Connector{keepParkedAlive: true}, dead: isDead}
		for what, end := range map[string]func(){
			"the end of a request": func() { c.state.Store(inUse); c.park() },
			"the end of a ping, which the owner has given up": func() {
				c.state.Store(parkedReserved)
				c.reservation = &reservation{done: make(chan struct{})}
				c.releaseParked(c.reservation, link{}, nil)
			},
		} {
			if end(); (c.state.Load() == parked) == isDead {
				t.Errorf("dead %v: state %d after %s", isDead, c.state.Load(), what)
			}
		}
	}
}

// Whether its connection is kept alive or not: a transaction whose statement lost the
// connection is told by COMMIT for what it is, with the cause.
func TestCommitOfATransactionThatLostItsConnectionSaysWhy(t *testing.T) {
	for _, isKeptAlive := range []bool{false, true} {
		l := &exclusiveDB{onExec: func(*exclusiveConn, string) error { return &mysql.MySQLError{Number: 1153} }}
		p := l.pool(t, nil)
		p.ctr.keepParkedAlive = isKeptAlive
		tx, err := p.Begin()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = tx.Exec("INSERT") // swallowed
		if err := tx.Commit(); !errors.Is(err, ErrPoisoned) || mysqlerr.Number(err) != 1153 {
			t.Errorf("kept alive %v: %v", isKeptAlive, err)
		}
	}
}

// COMMIT or ROLLBACK has failed, or was given up beside a ping without an answer: the transaction
// may still be open, and what is sent after it would be committed or lost with it. Not if the server
// says that it has ended it.
func TestNothingIsSentIntoATransactionWhoseEndFailed(t *testing.T) {
	commit, rollback := (*sql.Tx).Commit, (*sql.Tx).Rollback
	for _, tt := range []struct {
		name    string
		end     func(*sql.Tx) error
		refusal uint16 // 0: it is given up
		isOver  bool
	}{
		{"commit, given up", commit, 0, false},
		{"rollback, given up", rollback, 0, false},
		{"commit, refused", commit, 1047, false},
		{"rollback, refused", rollback, 1047, false},
		{"commit, a deadlock with another node", commit, 1213, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, answer, c, tx, p := pingUnderWay(t, true)
				if tt.refusal != 0 {
					l.endErr = &mysql.MySQLError{Number: tt.refusal}
					answer <- nil // to the ping
				}
				if err := tt.end(tx); err == nil || errors.Is(err, driver.ErrBadConn) {
					t.Error(err)
				}
				close(answer)
				synctest.Wait()
				sent := l.calls.Load()
				_, err := c.ExecContext(t.Context(), "INSERT")
				if tt.isOver {
					if n := l.calls.Load() - sent; err != nil || n != 1 {
						t.Errorf("then a statement: %v, %d calls", err, n)
					}
					return
				}
				if !errors.Is(err, driver.ErrBadConn) || !strings.Contains(err.Error(), "may still be open") {
					t.Errorf("then a statement: %v", err)
				}
				if _, err := c.BeginTx(t.Context(), nil); !errors.Is(err, sql.ErrConnDone) {
					t.Errorf("the connection is still in use: %v", err)
				}
				if n := l.calls.Load() - sent; n != 0 || l.overlaps.Load() != 0 || p.DB.Stats().OpenConnections != 0 {
					t.Errorf("%d calls, %d overlaps, %d connections are kept", n, l.overlaps.Load(), p.DB.Stats().OpenConnections)
				}
			})
		})
	}
}

// Of two transactions that were begun on a sql.Conn the first is refused: the second can be neither
// used nor committed, and its owner can end it.
func TestTransactionBesideOneWhoseEndFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &exclusiveDB{endErr: &mysql.MySQLError{Number: 1290}}
		p := l.pool(t, nil)
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		first, err1 := c.BeginTx(t.Context(), nil)
		second, err2 := c.BeginTx(t.Context(), nil)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if err := first.Commit(); err == nil {
			t.Fatal("committed")
		}
		l.endErr = nil
		sent := l.calls.Load()
		_, err = c.ExecContext(t.Context(), "INSERT") // database/sql would wait for second, to close c
		if err == nil || errors.Is(err, driver.ErrBadConn) || mysqlerr.Classify(err) != mysqlerr.NotSent {
			t.Errorf("a statement: %v, %v", err, mysqlerr.Classify(err))
		}
		if _, err := second.Exec("INSERT"); err == nil {
			t.Error("a statement in the second was sent")
		}
		if err := second.Commit(); err == nil || l.calls.Load() != sent {
			t.Errorf("the second: %v, %d calls", err, l.calls.Load()-sent)
		}
		if c.Close(); p.DB.Stats().OpenConnections != 0 {
			t.Error("the connection is kept")
		}
	})
}
