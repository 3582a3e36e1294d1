package livepool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"go.uber.org/goleak"
)

// A pool in what is to be serialised, as an argument of a job, is a mistake
// that is told at once, at whatever depth it lies.
func TestPoolInsideAnotherValueRefusesJSON(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	for _, v := range []any{p, []any{p}, map[string]any{"pool": p}, struct{ Pool *livepool.Pool }{p}} {
		if b, err := json.Marshal(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
			t.Errorf("json of %s: %s, %v", reflect.TypeOf(v), b, err)
		}
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(withExamples{m}) }

func TestOpenDoesNotDial(t *testing.T) {
	p, err := livepool.Open("app:secret@tcp(127.0.0.1:1)/shop")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Ping(); err == nil {
		t.Error("a ping to a closed port succeeded")
	} else if strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "tcp(127.0.0.1:1)") {
		t.Errorf("%q: want the address and no password", err)
	}
}

func TestPoolSizes(t *testing.T) {
	for _, tt := range []struct {
		name           string
		size, overflow int
		take           int
		limit, kept    int
	}{
		{"overflow is closed on return", 2, 3, 5, 5, 2},
		{"no overflow", 2, 0, 2, 2, 2},
		{"no limit", 2, -1, 50, 0, 2},
		{"none kept", 0, 10, 3, 10, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakedb.DB{}
			p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = tt.size, tt.overflow })
			fakedb.Warm(t, p.DB, tt.take)
			if got := p.Stats().MaxOpenConnections; got != tt.limit {
				t.Errorf("limit %d, want %d", got, tt.limit)
			}
			if got := f.OpenConns(); got != tt.kept {
				t.Errorf("%d connections kept, want %d", got, tt.kept)
			}
		})
	}
}

func TestIdleTimeoutClosesConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.IdleTimeout = time.Minute })
		fakedb.Warm(t, p.DB, 5)
		time.Sleep(3 * time.Minute)
		if n := f.OpenConns(); n != 0 {
			t.Errorf("%d connections open after IdleTimeout, want none", n)
		}
	})
}

func TestCloseIsIdempotentAndClosesEverything(t *testing.T) {
	for _, tt := range []struct {
		name  string
		close func(*livepool.Pool) error
	}{
		{"Pool.Close", (*livepool.Pool).Close},
		{"Close of the sql.DB alone", func(p *livepool.Pool) error { return p.DB.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			others := goleak.IgnoreCurrent()
			f := &fakedb.DB{}
			p, err := livepool.OpenConnector(f, nil)
			if err != nil {
				t.Fatal(err)
			}
			fakedb.Warm(t, p.DB, 5)
			for range 2 {
				if err := tt.close(p); err != nil {
					t.Errorf("close: %v", err)
				}
			}
			if n := f.OpenConns(); n != 0 {
				t.Errorf("%d connections open", n)
			}
			p.Recycle() // harmless
			goleak.VerifyNone(t, others)
		})
	}
}

// Hole of database/sql: a server that accepts and says nothing wedges a pool
// for good, because one goroutine, without a deadline, opens the connections of
// all waiters.
func TestSilentServerDoesNotWedgeThePool(t *testing.T) {
	for _, tt := range []struct {
		name  string
		open  func(f *fakedb.DB) *sql.DB
		works bool
	}{
		{"plain is dead", func(f *fakedb.DB) *sql.DB { return sql.OpenDB(f) }, false},
		{"livepool", func(f *fakedb.DB) *sql.DB {
			p, err := livepool.OpenConnector(f, nil)
			if err != nil {
				t.Fatal(err)
			}
			return p.DB
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				healed := make(chan struct{}) // what a hung connect never sees
				var silent atomic.Bool
				silent.Store(true)
				f := &fakedb.DB{OnConnect: func(ctx context.Context, _ int64) error {
					if !silent.Load() {
						return nil
					}
					select {
					case <-ctx.Done():
						return ctx.Err()
					case <-healed:
						return errors.New("hung for good")
					}
				}}
				db := tt.open(f)
				defer db.Close()
				defer close(healed)
				db.SetMaxOpenConns(1)
				var wg sync.WaitGroup
				for i := range 3 {
					wg.Go(func() {
						// The first dials itself; when it gives up, the one
						// goroutine dials for those who still wait.
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*2*time.Second)
						defer cancel()
						if _, err := db.ExecContext(ctx, "DO 1"); err == nil {
							t.Error("a statement succeeded on a silent server")
						}
					})
					synctest.Wait()
				}
				wg.Wait()
				silent.Store(false)
				time.Sleep(10 * time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				_, err := db.ExecContext(ctx, "DO 1")
				if (err == nil) != tt.works {
					t.Errorf("after the server was healed: %v", err)
				}
			})
		})
	}
}

// Hole of database/sql: one goroutine opens the connections of all waiters, one
// after the other.
func TestWaitersOpenTheirConnectionsAtTheSameTime(t *testing.T) {
	for _, tt := range []struct {
		name string
		open func(f *fakedb.DB) *sql.DB
		took time.Duration
	}{
		{"plain serves the last after four connects", func(f *fakedb.DB) *sql.DB { return sql.OpenDB(f) }, 4 * time.Second},
		{"livepool", func(f *fakedb.DB) *sql.DB { return labtest.OpenFake(t, f, nil).DB }, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				db := tt.open(f)
				defer db.Close()
				db.SetMaxOpenConns(4)
				held := make([]*sql.Conn, 4)
				for i := range held {
					held[i], _ = db.Conn(t.Context())
				}
				f.OnConnect = func(context.Context, int64) error { time.Sleep(time.Second); return nil }
				start := time.Now()
				var served, done sync.WaitGroup
				for range 4 {
					served.Add(1)
					done.Go(func() {
						c, err := db.Conn(t.Context())
						if err != nil {
							t.Error(err)
						}
						fakedb.ServedBy(t, c)
						served.Done()
						served.Wait() // nobody is served by another's return
						c.Close()
					})
				}
				synctest.Wait()
				for _, c := range held {
					c.Raw(func(any) error { return driver.ErrBadConn })
				}
				done.Wait()
				if took := time.Since(start); took != tt.took {
					t.Errorf("four waiters were served after %s, want %s", took, tt.took)
				}
			})
		})
	}
}

// The connection that a waiter opens himself works like any other, whatever is
// asked of it first, and can be tried again when it could not be opened.
func TestFirstUseOfAWaitersConnection(t *testing.T) {
	waiters := func(t *testing.T, f *fakedb.DB) *sql.Conn {
		db := labtest.OpenFake(t, f, nil).DB
		db.SetMaxOpenConns(1)
		held, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan *sql.Conn)
		go func() {
			c, err := db.Conn(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- c
		}()
		for db.Stats().WaitCount == 0 {
			time.Sleep(time.Millisecond)
		}
		held.Raw(func(any) error { return driver.ErrBadConn })
		c := <-got
		t.Cleanup(func() { c.Close() })
		if n := f.Connects.Load(); n != 1 {
			t.Fatalf("%d connections opened, want the second to wait for its first use", n)
		}
		return c
	}
	down := errors.New("server is down")
	for _, tt := range []struct {
		name string
		use  func(c *sql.Conn) error
	}{
		{"Exec", func(c *sql.Conn) error { _, err := c.ExecContext(t.Context(), "DO 1"); return err }},
		{"Begin", func(c *sql.Conn) error {
			tx, err := c.BeginTx(t.Context(), nil)
			if err != nil {
				return err
			}
			return tx.Commit()
		}},
		{"Prepare", func(c *sql.Conn) error {
			s, err := c.PrepareContext(t.Context(), "DO 1")
			if err != nil {
				return err
			}
			return s.Close()
		}},
		{"Ping", func(c *sql.Conn) error { return c.PingContext(t.Context()) }},
		{"Raw", func(c *sql.Conn) error {
			return c.Raw(func(dc any) error {
				if dc.(interface{ Raw() driver.Conn }).Raw() == nil {
					return down
				}
				return nil
			})
		}},
		{"Close", func(c *sql.Conn) error { return nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakedb.DB{}
			c := waiters(t, f)
			if err := tt.use(c); err != nil {
				t.Error(err)
			}
		})
		t.Run(tt.name+" at the second try", func(t *testing.T) {
			f := &fakedb.DB{}
			c := waiters(t, f)
			f.OnConnect = func(context.Context, int64) error { return down }
			if err := tt.use(c); tt.name != "Close" && !errors.Is(err, down) {
				t.Errorf("got %v, want %v", err, down)
			}
			f.OnConnect = nil
			if err := tt.use(c); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("arguments are converted as the driver does", func(t *testing.T) {
		f := &fakedb.DB{OnExec: func(_ context.Context, c *fakedb.Conn, _ string) error {
			if len(c.Args) != 2 || c.Args[0].Value != "converted uint64" || c.Args[1].Value != int64(7) {
				return fmt.Errorf("the driver got %v", c.Args)
			}
			return nil
		}}
		c := waiters(t, f)
		if _, err := c.ExecContext(t.Context(), "DO ?, ?", uint64(1<<63), int32(7)); err != nil {
			t.Error(err)
		}
	})
}

func TestConnectTimeoutIsToldFromTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnConnect: func(ctx context.Context, _ int64) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.OutageWait = 0 })
		start := time.Now()
		_, err := p.ExecContext(t.Context(), "DO 1")
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %s, want ConnectTimeout, 5s", took)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a timeout that is not the caller's", err)
		}
		if !strings.Contains(err.Error(), "after 5s, the ConnectTimeout (pool_connect_timeout)") {
			t.Errorf("%q does not say which limit", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p = labtest.OpenFake(t, f, nil)
		if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the caller's own deadline", err)
		}
	})
}

// Any driver will do: its optional interfaces are forwarded, and those it lacks
// are made up for.
func TestOpenConnectorOnSqlmock(t *testing.T) {
	dsn := fmt.Sprint("checkout ", time.Now().UnixNano()) // sqlmock takes each once
	db, mock, err := sqlmock.NewWithDSN(dsn, sqlmock.MonitorPingsOption(true))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p, err := livepool.OpenConnector(fakedb.ByDSN{Of: db.Driver(), DSN: dsn}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mock.ExpectPing()
	mock.ExpectBegin()
	mock.ExpectExec("UPDATE accounts").WithArgs(5, "a").WillReturnResult(sqlmock.NewResult(0, 1))
	mock.ExpectQuery("SELECT balance").WillReturnRows(sqlmock.NewRows([]string{"balance"}).AddRow(7))
	mock.ExpectCommit()
	mock.ExpectPrepare("DELETE").ExpectExec().WithArgs(1).WillReturnResult(sqlmock.NewResult(0, 1))
	mock.ExpectClose()

	if err := p.Ping(); err != nil {
		t.Fatal(err)
	}
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE accounts SET balance = balance + ? WHERE id = ?", 5, "a"); err != nil {
		t.Fatal(err)
	}
	var balance int
	if err := tx.QueryRow("SELECT balance FROM accounts").Scan(&balance); err != nil || balance != 7 {
		t.Fatalf("balance %d, %v", balance, err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	s, err := p.Prepare("DELETE FROM accounts WHERE id = ?")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exec(1); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := mock.ExpectationsWereMet(); err != nil {
		t.Error(err)
	}
}

func TestConnForwardsAllOptionalInterfaces(t *testing.T) {
	ctr, err := livepool.NewConnector(&fakedb.DB{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ctr.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(interface {
		driver.Pinger
		driver.ExecerContext
		driver.QueryerContext
		driver.ConnPrepareContext
		driver.ConnBeginTx
		driver.SessionResetter
		driver.Validator
		driver.NamedValueChecker
	}); !ok {
		t.Errorf("%T lacks an optional interface of driver.Conn", c)
	}
	if raw, ok := c.(interface{ Raw() driver.Conn }); !ok {
		t.Error("Raw is missing")
	} else if _, ok := raw.Raw().(*fakedb.Conn); !ok {
		t.Errorf("Raw returns %T, want the driver's own", raw.Raw())
	}
}

func TestGetDBConnIsTheDB(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	if db, err := p.GetDBConn(); err != nil || db != p.DB {
		t.Errorf("got %v, %v", db, err)
	}
}

// Close ends what waits for it, and nothing is opened afterwards.
func TestCloseLeavesNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(cfg *livepool.Config) { cfg.PoolSize, cfg.MaxOverflow = 1, 0 })
		held, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		busy := make(chan struct{})
		unit := func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "UPDATE t SET a = 1")
			<-busy
			return err
		}
		done := make(chan error, 2)
		for range 2 { // one waits for a connection, the other for a place
			go func() { done <- p.WithSession(t.Context(), unit) }()
			synctest.Wait()
		}
		start := time.Now()
		p.Close()
		close(busy)
		for range 2 {
			if err := <-done; err == nil || errors.Is(err, livepool.ErrPoolTimeout) {
				t.Errorf("got %v, want to be told that the pool is closed", err)
			}
		}
		if waited := time.Since(start); waited > time.Second {
			t.Errorf("units waited for %s after Close", waited)
		}
		f.Kill()
		if err := held.PingContext(t.Context()); err == nil {
			t.Error("a ping on a connection that is held beyond Close says nil")
		}
		if n := f.Connects.Load(); n != 1 {
			t.Errorf("%d connections opened, want none after Close", n-1)
		}
		held.Close()
	})
}
