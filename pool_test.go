package livepool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/livepool/livepool"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
			f := &fake{}
			p := openFake(t, f, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = tt.size, tt.overflow })
			warm(t, p.DB, tt.take)
			if got := p.Stats().MaxOpenConnections; got != tt.limit {
				t.Errorf("limit %d, want %d", got, tt.limit)
			}
			if got := f.open(); got != tt.kept {
				t.Errorf("%d connections kept, want %d", got, tt.kept)
			}
		})
	}
}

func TestIdleTimeoutClosesConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := openFake(t, f, func(c *livepool.Config) { c.IdleTimeout = time.Minute })
		warm(t, p.DB, 5)
		time.Sleep(3 * time.Minute)
		if n := f.open(); n != 0 {
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
			f := &fake{}
			p, err := livepool.OpenConnector(f, nil)
			if err != nil {
				t.Fatal(err)
			}
			warm(t, p.DB, 5)
			for range 2 {
				if err := tt.close(p); err != nil {
					t.Errorf("close: %v", err)
				}
			}
			if n := f.open(); n != 0 {
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
		open  func(f *fake) *sql.DB
		works bool
	}{
		{"plain is dead", func(f *fake) *sql.DB { return sql.OpenDB(f) }, false},
		{"livepool", func(f *fake) *sql.DB {
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
				f := &fake{onConnect: func(ctx context.Context, _ int64) error {
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

func TestConnectTimeoutIsToldFromTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{onConnect: func(ctx context.Context, _ int64) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		p := openFake(t, f, nil)
		start := time.Now()
		_, err := p.ExecContext(t.Context(), "DO 1")
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %s, want ConnectTimeout, 5s", took)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a timeout that is not the caller's", err)
		}
		if !strings.Contains(err.Error(), "ConnectTimeout (pool_connect_timeout) 5s") {
			t.Errorf("%q does not say which limit", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
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
	p, err := livepool.OpenConnector(dsnConnector{db.Driver(), dsn}, nil)
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

type dsnConnector struct {
	driver driver.Driver
	dsn    string
}

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c dsnConnector) Driver() driver.Driver                        { return c.driver }

func TestConnForwardsAllOptionalInterfaces(t *testing.T) {
	ctr, err := livepool.NewConnector(&fake{}, nil)
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
	} else if _, ok := raw.Raw().(*fakeConn); !ok {
		t.Errorf("Raw returns %T, want the driver's own", raw.Raw())
	}
}

func TestGetDBConnIsTheDB(t *testing.T) {
	p := openFake(t, &fake{}, nil)
	if db, err := p.GetDBConn(); err != nil || db != p.DB {
		t.Errorf("got %v, %v", db, err)
	}
}
