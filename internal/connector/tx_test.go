package connector_test

// Transactions on connections that fail.

import (
	"context"
	"database/sql/driver"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

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

func (tx *distinctTx) Commit() error { tx.end += "commit"; return nil }

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

// commitDB is a database with a table of rows and the commit table. What a
// transaction writes is there once the transaction is committed.
type commitDB struct {
	mu    sync.Mutex
	rows  int
	keys  map[string]bool
	conns []*commitConn

	// loseCommit loses the answer to the next COMMIT, which the server has done
	// or has not. failRollback is the answer to each ROLLBACK, failClose that to
	// the closing of each result.
	loseCommit       bool
	commitBeforeLoss bool
	failRollback     error
	failClose        error
}

// commitConn is a connection to a book.
type commitConn struct {
	b      *commitDB
	inTx   bool // a transaction
	rows   int  // what it has written
	keys   []string
	lost   atomic.Bool
	closed atomic.Bool
}

func (b *commitDB) Driver() driver.Driver { return nil }

func (b *commitDB) Connect(context.Context) (driver.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &commitConn{b: b}
	b.conns = append(b.conns, c)
	return c, nil
}

func (b *commitDB) pool(t *testing.T) *livepool.Pool {
	t.Helper()
	b.keys = map[string]bool{}
	return labtest.Open(t, b, func(c *livepool.Config) { c.Logger = slog.New(slog.DiscardHandler) })
}

func (c *commitConn) Close() error { c.closed.Store(true); return nil }

func (c *commitConn) IsValid() bool { return !c.lost.Load() }

func (c *commitConn) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("page: nothing is prepared")
}

func (c *commitConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *commitConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	c.inTx = true
	return c, nil
}

func (c *commitConn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	switch {
	case strings.HasPrefix(query, "INSERT INTO livepool_commits"):
		if c.b.keys[query] {
			return nil, fakedb.ServerError(1062, "Duplicate entry")
		}
		c.keys = append(c.keys, query)
	case strings.HasPrefix(query, "DELETE FROM livepool_commits"):
		c.keys = nil
	case strings.HasPrefix(query, "INSERT"):
		c.rows++
	}
	if !c.inTx {
		c.write()
	}
	return driver.RowsAffected(1), nil
}

func (c *commitConn) write() {
	c.b.rows += c.rows
	for _, key := range c.keys {
		c.b.keys[key] = true
	}
	c.rows, c.keys = 0, nil
}

func (c *commitConn) Commit() error {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	c.inTx = false
	if lose := c.b.loseCommit; lose || c.lost.Load() {
		c.b.loseCommit = false
		if lose && c.b.commitBeforeLoss {
			c.write()
		}
		c.lost.Store(true)
		return mysql.ErrInvalidConn
	}
	c.write()
	return nil
}

func (c *commitConn) Rollback() error {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	if c.b.failRollback != nil {
		return c.b.failRollback // the transaction is still open
	}
	c.inTx, c.rows, c.keys = false, 0, nil
	return nil
}

func (c *commitConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return endlessRows{c.b}, nil
}

// endlessRows are a result without end.
type endlessRows struct{ b *commitDB }

func (r endlessRows) Columns() []string { return []string{"v"} }

func (r endlessRows) Next(dest []driver.Value) error { dest[0] = int64(1); return nil }

func (r endlessRows) Close() error { return r.b.failClose }

// The answer to COMMIT is lost, and the server has done it or has not. A unit is
// run again only where that applies nothing twice, and is told what happened where
// that can be known.
func TestLostCommitOfEachKindOfUnit(t *testing.T) {
	for _, tt := range []struct {
		name     string
		opts     []livepool.SessionOption
		resolved bool
		readOnly bool
	}{
		{"plain", nil, false, false},
		{"Once", []livepool.SessionOption{livepool.Once("k")}, true, false},
		{"VerifyCommit", []livepool.SessionOption{livepool.VerifyCommit()}, true, false},
		{"ReadOnly", []livepool.SessionOption{livepool.ReadOnly()}, false, true},
	} {
		for _, done := range []bool{false, true} {
			t.Run(map[bool]string{false: tt.name + ", not done", true: tt.name + ", done"}[done], func(t *testing.T) {
				b := &commitDB{loseCommit: true, commitBeforeLoss: done}
				p := b.pool(t)
				ran, hooks := 0, 0
				unit := func(ctx context.Context, s *livepool.Session) error {
					ran++
					s.AfterCommit(func(context.Context) { hooks++ })
					query := "INSERT"
					if tt.readOnly {
						query = "DO 1"
					}
					_, err := s.ExecContext(ctx, query)
					return err
				}
				err := p.WithSession(t.Context(), unit, tt.opts...)
				wantRan, wantRows, wantHooks := 1, 0, 1
				switch {
				case tt.resolved:
					wantRows = 1
					if !done {
						wantRan = 2
					}
				case tt.readOnly:
					wantRan = 2
				default:
					wantHooks = 0
					if done {
						wantRows = 1
					}
				}
				if unknown := !tt.resolved && !tt.readOnly; (err != nil) != unknown || errors.Is(err, livepool.ErrCommitUnknown) != unknown {
					t.Errorf("got %v, want unknown: %v", err, unknown)
				}
				if ran != wantRan || b.rows != wantRows || hooks != wantHooks {
					t.Errorf("fn ran %d times, AfterCommit %d times, %d rows; want %d, %d and %d", ran, hooks, b.rows, wantRan, wantHooks, wantRows)
				}
			})
		}
	}
}

// The key of a unit that was not committed is free: it goes with the transaction.
func TestKeyOfAUnitThatFailedIsFree(t *testing.T) {
	refused := errors.New("refused by the job")
	b := &commitDB{}
	p := b.pool(t)
	for i, want := range []error{refused, nil, nil} {
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			if _, err := s.ExecContext(ctx, "INSERT"); err != nil {
				return err
			}
			return want
		}, livepool.Once("k"))
		if err != want {
			t.Errorf("delivery %d: got %v, want %v", i, err, want)
		}
	}
	if b.rows != 1 {
		t.Errorf("%d rows, want that of the second delivery", b.rows)
	}
}

// A connection on which ROLLBACK failed may still be in its transaction: it is
// closed, by which the server rolls back, also where the server has answered.
func TestConnectionWhoseRollbackFailedIsClosed(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, p *livepool.Pool)
	}{
		{"a transaction", func(t *testing.T, p *livepool.Pool) {
			tx, err := p.Begin()
			if err != nil {
				t.Fatal(err)
			}
			tx.Exec("INSERT")
			if tx.Rollback() == nil {
				t.Error("the failure of ROLLBACK is lost")
			}
		}},
		{"a unit", func(t *testing.T, p *livepool.Pool) {
			p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				s.ExecContext(ctx, "INSERT")
				return errors.New("refused by the job")
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &commitDB{failRollback: fakedb.ServerError(1317, "Query execution was interrupted")}
			p := b.pool(t)
			tt.run(t, p)
			if !b.conns[0].closed.Load() {
				t.Error("the connection is still open")
			}
			if _, err := p.Exec("INSERT"); err != nil || b.rows != 1 || len(b.conns) != 2 {
				t.Errorf("the next statement: %v, %d rows, %d connections", err, b.rows, len(b.conns))
			}
		})
	}
}

// Whatever has ended a transaction, nothing more runs in it, by whatever way it
// is sent; what has not ended it leaves it alone.
func TestNothingRunsInATransactionThatIsOver(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		over bool
	}{
		{"deadlock", fakedb.ServerError(1213, "Deadlock found"), true},
		{"lost connection", mysql.ErrInvalidConn, true},
		{"COMMIT failed half-way", fakedb.ServerError(1180, "Got error 6 during COMMIT"), true},
		{"Galera node without quorum", fakedb.ServerError(1047, "WSREP has not yet prepared node for application use"), true},
		{"Group Replication rolled back", fakedb.ServerError(3101, "Plugin instructed the server to rollback"), true},
		{"duplicate key", fakedb.ServerError(1062, "Duplicate entry"), false},
		{"syntax", fakedb.ServerError(1064, "You have an error"), false},
		{"read-only server", fakedb.ServerError(1290, readOnlyText), false},
		{"query killed", fakedb.ServerError(1317, "Query execution was interrupted"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, nil)
			tx, err := p.Begin()
			if err != nil {
				t.Fatal(err)
			}
			prepared, err := tx.Prepare("INSERT INTO t VALUES (?)")
			if err != nil {
				t.Fatal(err)
			}
			f.OnExec = func(context.Context, *fakedb.Conn, string) error { return tt.err }
			if _, err := tx.Exec("UPDATE t SET a = 1"); !errors.Is(err, tt.err) {
				t.Fatalf("got %v", err)
			}
			f.OnExec = nil
			sent := f.Execs.Load()
			_, exec := tx.Exec("INSERT INTO t VALUES (1)")
			_, execPrepared := prepared.Exec(1)
			_, prepare := tx.Prepare("SELECT 1")
			for what, err := range map[string]error{"Exec": exec, "prepared Exec": execPrepared, "Prepare": prepare, "Commit": tx.Commit()} {
				if errors.Is(err, livepool.ErrPoisoned) != tt.over {
					t.Errorf("%s: %v", what, err)
				}
				if tt.over && !errors.Is(err, tt.err) {
					t.Errorf("%s: %v does not say why", what, err)
				}
			}
			if n := f.Execs.Load() - sent; (n == 0) != tt.over {
				t.Errorf("%d statements were sent afterwards", n)
			}
		})
	}
}

// The next transaction on the connection is a new one.
func TestPoisonEndsWithItsTransaction(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	f.OnExec = func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1213, "Deadlock found") }
	tx.Exec("UPDATE t SET a = 1")
	f.OnExec = nil
	tx.Rollback()
	if tx, err = p.Begin(); err != nil {
		t.Fatal(err)
	}
	if id := fakedb.ServedBy(t, tx); id != 1 {
		t.Errorf("served by connection %d, want the same", id)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
}

// A goroutine that outlives its unit leaves no transaction behind.
func TestLateGoroutineOfAUnit(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	for range 200 {
		done := make(chan struct{})
		if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			go func() {
				defer close(done)
				s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
			}()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		<-done
		if n := p.Stats().InUse; n != 0 {
			t.Fatalf("%d connections in use after the unit", n)
		}
	}
}
