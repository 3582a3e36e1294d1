package livepool_test

// Promises that are easily broken by a small change, shown without a server.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

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

func (c *commitConn) Close() error  { c.closed.Store(true); return nil }
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

func (r endlessRows) Columns() []string              { return []string{"v"} }
func (r endlessRows) Next(dest []driver.Value) error { dest[0] = int64(1); return nil }
func (r endlessRows) Close() error                   { return r.b.failClose }

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

// A result that is closed early may meet its error then: the caller is told, and
// what that error has ended is over.
func TestFailureOfRowsClose(t *testing.T) {
	b := &commitDB{failClose: fakedb.ServerError(1213, "Deadlock found")}
	p := b.pool(t)
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	rows, err := tx.Query("SELECT v FROM t FOR UPDATE")
	if err != nil || !rows.Next() {
		t.Fatalf("no rows: %v", err)
	}
	if err := rows.Close(); !labtest.IsServerError(err, 1213) {
		t.Errorf("Close: %v, want the deadlock", err)
	}
	if _, err := tx.Exec("INSERT"); !errors.Is(err, livepool.ErrPoisoned) {
		t.Errorf("the next statement: %v, want ErrPoisoned", err)
	}
	if err := tx.Commit(); !errors.Is(err, livepool.ErrPoisoned) || b.rows != 0 {
		t.Errorf("Commit: %v, %d rows", err, b.rows)
	}
}

// A session whose connection is found dead takes one that is ready in its place,
// and does not wait for a dial.
func TestSessionOnADeadConnectionTakesWhatIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnConnect: func(_ context.Context, n int64) error {
			if n > 2 {
				time.Sleep(time.Second)
			}
			return nil
		}}
		p := openFake(t, f, func(c *livepool.Config) { c.MinIdle = 2 })
		synctest.Wait()
		used := fakedb.ServedBy(t, p) // one of the two that are ready, and now database/sql's
		time.Sleep(time.Second)
		f.Conns()[used-1].Dead.Store(true)
		start := time.Now()
		if err := p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
			if id := fakedb.ServedBy(t, s); id == used || time.Since(start) != 0 {
				t.Errorf("served by connection %d after %s, want another than %d at once", id, time.Since(start), used)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// openBare opens a sql.DB on a connector of livepool's, for which nothing runs in
// the background: whatever is wrong with a connection is found at its checkout.
func openBare(t *testing.T, f *fakedb.DB, change func(*livepool.Config)) *sql.DB {
	t.Helper()
	cfg := livepool.NewConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	change(cfg)
	c, err := livepool.NewConnector(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	db.SetMaxIdleConns(10)
	t.Cleanup(func() { db.Close() })
	return db
}

// The news that a connection was closed has the others pinged at their checkout,
// also where nobody does it in the background before.
func TestHangUpIsNewsWithoutAPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		db := openBare(t, f, func(*livepool.Config) {})
		fakedb.Warm(t, db, 3)
		last := f.Conns()[2]
		last.Dead.Store(true)
		if _, err := db.Exec("DO 1"); !errors.Is(err, fakedb.ErrGone) {
			t.Fatalf("got %v from a connection that is gone", err)
		}
		time.Sleep(time.Millisecond)
		for range 2 {
			fakedb.Warm(t, db, 2)
			if n := f.Pings.Load(); n != 2 {
				t.Errorf("%d pings, want one of each of the others", n)
			}
		}
	})
}

func TestAgeLimitHoldsWithoutAPool(t *testing.T) {
	for _, tt := range []struct {
		age  time.Duration
		want int64
	}{
		{time.Minute - time.Nanosecond, 1},
		{time.Minute, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			db := openBare(t, &fakedb.DB{}, func(c *livepool.Config) { c.Recycle, c.RecycleJitter = time.Minute, 0 })
			fakedb.ServedBy(t, db)
			time.Sleep(tt.age)
			if id := fakedb.ServedBy(t, db); id != tt.want {
				t.Errorf("at the age of %s: served by connection %d, want %d", tt.age, id, tt.want)
			}
		})
	}
}

// A unit that was refused by a server that is read-only by now does not meet it
// again by each of the connections that are left of it.
func TestRefusedUnitMeetsNoOtherOldConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := openFake(t, f, nil)
		fakedb.Warm(t, p.DB, 5)
		f.OnExec = func(_ context.Context, c *fakedb.Conn, _ string) error {
			if c.ID <= 5 {
				return fakedb.ServerError(1290, readOnlyText)
			}
			return nil
		}
		if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.MaxAttempts(2)); err != nil {
			t.Errorf("got %v, want success at the second attempt", err)
		}
	})
}
