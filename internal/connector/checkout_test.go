package connector_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/connector"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

func TestPrePingModes(t *testing.T) {
	for _, tt := range []struct {
		name  string
		mode  livepool.PrePing
		idle  time.Duration // between two checkouts
		pings int64         // in ten checkouts of a warm connection
	}{
		{"idle trusts a connection that has just answered", livepool.PrePingIdle, 0, 0},
		{"idle trusts an answer up to PingAfter old", livepool.PrePingIdle, 500 * time.Millisecond, 0},
		{"idle pings after PingAfter", livepool.PrePingIdle, 501 * time.Millisecond, 10},
		{"always pings at every checkout", livepool.PrePingAlways, 0, 10},
		{"off never pings", livepool.PrePingOff, time.Minute, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PrePing = tt.mode })
				fakedb.ServedBy(t, p)
				for range 10 {
					time.Sleep(tt.idle)
					fakedb.ServedBy(t, p)
				}
				if got := f.Pings.Load(); got != tt.pings {
					t.Errorf("%d pings, want %d", got, tt.pings)
				}
				if got := f.Connects.Load(); got != 1 {
					t.Errorf("%d connections opened, want 1", got)
				}
			})
		})
	}
}

func TestDeadIdleConnectionsNeverReachTheCaller(t *testing.T) {
	for name, idle := range map[string]time.Duration{
		"a caller finds them":       connector.DefaultKeepAlive / 2,
		"the maintainer finds them": 2 * connector.DefaultKeepAlive,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				p := labtest.OpenFake(t, f, nil)
				fakedb.Warm(t, p.DB, 8)
				f.Kill()
				time.Sleep(idle)
				for range 20 {
					c, err := p.Conn(t.Context()) // on which database/sql sends nothing again
					if err != nil {
						t.Fatal(err)
					}
					fakedb.ServedBy(t, c)
					c.Close()
				}
				// database/sql tries two and opens a third; the others are swept meanwhile.
				if s := p.Stats(); s.ClosedByPing-s.Swept > 2 || s.Deaths < 2 {
					t.Errorf("closed by ping %d, of them in the background %d, deaths %d: want 2 at most that callers paid for", s.ClosedByPing, s.Swept, s.Deaths)
				}
			})
		})
	}
}

// A black hole costs one PingTimeout, not one a connection.
func TestNoCallerWaitsForWhatIsSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: func(ctx context.Context, c *fakedb.Conn) error {
			if !c.Dead.Load() {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		p := labtest.OpenFake(t, f, nil)
		fakedb.Warm(t, p.DB, 10)
		f.Kill()
		time.Sleep(10 * time.Second)

		start := time.Now()
		fakedb.ServedBy(t, p)
		if took := time.Since(start); took != time.Second {
			t.Errorf("the first caller waited %s, want one PingTimeout of 1s", took)
		}
		synctest.Wait() // those in the background are counted twice
		if s := p.Stats(); s.Pinged-s.KeptAlive != 1 {
			t.Errorf("%d pings by callers, want 1", s.Pinged-s.KeptAlive)
		}
		start = time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { fakedb.ServedBy(t, p) })
		}
		wg.Wait()
		if took := time.Since(start); took != 0 {
			t.Errorf("the twenty that followed waited %s, want nothing", took)
		}
		if s := p.Stats(); s.Pinged-s.KeptAlive != 1 {
			t.Errorf("%d pings by callers in the end, want 1", s.Pinged-s.KeptAlive)
		}
	})
}

// A connection that completed a round trip after the silence began is none of
// its victims.
func TestSilenceSparesThoseThatAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: func(ctx context.Context, c *fakedb.Conn) error {
			if !c.Dead.Load() {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		p := labtest.OpenFake(t, f, nil)
		held, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		healthy := fakedb.ServedBy(t, held)
		fakedb.ServedBy(t, p) // a second connection
		f.Conns()[1].Dead.Store(true)
		time.Sleep(10 * time.Second)

		var wg sync.WaitGroup
		wg.Go(func() { fakedb.ServedBy(t, p) }) // finds the silence
		time.Sleep(500 * time.Millisecond)
		fakedb.ServedBy(t, held) // proves itself meanwhile
		wg.Wait()
		held.Close()
		if got := fakedb.ServedBy(t, p); got != healthy {
			t.Errorf("served by connection %d, want %d, which had proved itself", got, healthy)
		}
	})
}

func TestHangUpMakesTheOthersProveThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		fakedb.Warm(t, p.DB, 3)
		f.Conns()[2].Dead.Store(true) // the one that was returned last
		time.Sleep(100 * time.Millisecond)
		if _, err := p.ExecContext(t.Context(), "DO 1"); !errors.Is(err, fakedb.ErrGone) {
			t.Fatalf("got %v, want %v from a statement that was sent", err, fakedb.ErrGone)
		}
		for range 2 {
			time.Sleep(time.Millisecond)
			fakedb.Warm(t, p.DB, 2)
			if n := f.Pings.Load(); n != 2 {
				t.Errorf("%d pings, want 2: one each, although both are within PingAfter", n)
			}
		}
		if n := f.Connects.Load(); n != 3 {
			t.Errorf("%d connections opened, want 3: the two that answered stay", n)
		}
	})
}

func TestCallersCancelIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: func(ctx context.Context, c *fakedb.Conn) error {
			select {
			case <-ctx.Done():
				c.Valid.Store(false) // as the driver does
				return ctx.Err()
			case <-time.After(300 * time.Millisecond):
				return nil
			}
		}}
		p := labtest.OpenFake(t, f, nil)
		fakedb.Warm(t, p.DB, 2)
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want the caller's own deadline", err)
		}
		time.Sleep(time.Second)
		if s := p.Stats(); s.Deaths != 0 || f.OpenConns() != 2 || s.OpenConnections != 2 {
			t.Errorf("deaths %d, %d open, the pool says %d, want 0, 2 and 2: the answer came", s.Deaths, f.OpenConns(), s.OpenConnections)
		}
	})
}

func TestWhateverTheDriversResetSaysTheConnectionIsNotHandedOut(t *testing.T) {
	bad := errors.New("no ErrBadConn at all")
	f := &fakedb.DB{OnReset: func(c *fakedb.Conn) error {
		if c.ID == 1 {
			return bad
		}
		return nil
	}}
	p := labtest.OpenFake(t, f, nil)
	fakedb.ServedBy(t, p) // its first use resets it too, finds it bad, and renews it in place
	if id := fakedb.ServedBy(t, p); id != 2 {
		t.Errorf("served by connection %d, want 2", id)
	}
}

// leaveUnclaimed leaves a connection in the pool that was opened for a waiter who gave up:
// one is in use, and turns out bad; a new one is opened for the waiter, slowly,
// and he gives up meanwhile.
func leaveUnclaimed(t *testing.T, f *fakedb.DB, db *sql.DB) {
	t.Helper()
	db.SetMaxOpenConns(1)
	f.OnConnect = func(_ context.Context, n int64) error {
		if n > 1 {
			time.Sleep(10 * time.Second)
		}
		return nil
	}
	held, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := db.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the waiter got %v", err)
		}
	})
	synctest.Wait()
	held.Raw(func(any) error { return driver.ErrBadConn })
	wg.Wait()
	time.Sleep(time.Hour / 2)
	synctest.Wait()
	f.OnConnect = nil
}

// Hole of database/sql: a connection opened for a waiter that gave up is parked
// and handed out later without ResetSession.
func TestUnclaimedConnectionIsCheckedBeforeItsFirstUse(t *testing.T) {
	for _, tt := range []struct {
		name string
		open func(t *testing.T, f *fakedb.DB) *sql.DB
		want error
	}{
		{"plain hands out the dead connection", func(t *testing.T, f *fakedb.DB) *sql.DB {
			db := sql.OpenDB(f)
			t.Cleanup(func() { db.Close() })
			return db
		}, fakedb.ErrGone},
		{"livepool", func(t *testing.T, f *fakedb.DB) *sql.DB {
			return labtest.OpenFake(t, f, func(c *livepool.Config) { c.ConnectTimeout = time.Minute }).DB
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				db := tt.open(t, f)
				leaveUnclaimed(t, f, db)
				f.Kill()
				c, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err = c.ExecContext(t.Context(), "DO 1"); !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
			})
		})
	}
}

// Hole of database/sql: PingContext does not retry a stale connection.
func TestPingReplacesAStaleConnection(t *testing.T) {
	f := &fakedb.DB{}
	plain := sql.OpenDB(f)
	defer plain.Close()
	fakedb.ServedBy(t, plain)
	f.Kill()
	if err := plain.Ping(); err == nil {
		t.Error("plain database/sql: the ping succeeded, the hole is closed: simplify conn.Ping")
	}

	f = &fakedb.DB{}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PrePing = livepool.PrePingOff })
	fakedb.ServedBy(t, p)
	f.Kill()
	if err := p.PingContext(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
	if id := fakedb.ServedBy(t, p); id != 2 {
		t.Errorf("served by connection %d, want 2", id)
	}
}

// What a caller has set on its connection is never lost silently.
func TestPingDoesNotReplaceAConnectionThatIsInUse(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fakedb.ServedBy(t, c) // SET @x = 1, for all we know
	f.Kill()
	if err := c.PingContext(t.Context()); err == nil {
		t.Error("the ping succeeded on a dead connection that had been used")
	}
	if n := f.Connects.Load(); n != 1 {
		t.Errorf("%d connections opened, want 1", n)
	}
}

func TestPingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnPing: func(ctx context.Context, c *fakedb.Conn) error {
			if c.ID > 1 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		p := labtest.OpenFake(t, f, nil)
		fakedb.ServedBy(t, p)
		start := time.Now()
		if err := p.Ping(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s, want PingTimeout, 1s", took)
		}
	})
}

// A caller whose context has ended before the check does not get an unchecked
// connection to use later.
func TestCheckThatAnEndedContextPreventedIsMadeUpFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		fakedb.Warm(t, p.DB, 1)
		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f.OnReset = func(*fakedb.Conn) error { cancel(); return nil }
		c, err := p.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f.OnReset = nil
		if n := f.Pings.Load(); n != 0 {
			t.Fatalf("%d pings for a caller that is gone, want 0", n)
		}
		f.Kill()
		if id := fakedb.ServedBy(t, c); id != 2 {
			t.Errorf("served by connection %d, want a new one", id)
		}
	})
}

// wrappingConnector is a connector of a user's that sets up each connection in its Connect,
// as tracing and configuration wrappers do.
type wrappingConnector struct {
	driver.Connector
	pings bool
}

func (s wrappingConnector) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := s.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if s.pings {
		if err := c.(driver.Pinger).Ping(ctx); err != nil {
			return nil, err
		}
	}
	_, err = c.(driver.ExecerContext).ExecContext(ctx, "SET @x = 1", nil)
	return c, err
}

// What a wrapper set up is on every connection that a statement meets: one that
// has died is not replaced beneath the wrapper, nor handed out because the
// wrapper's own statement was its first use.
func TestNothingIsReplacedBeneathAWrapper(t *testing.T) {
	for _, pings := range []bool{false, true} {
		for _, tt := range []struct {
			name string
			use  func(t *testing.T, db *sql.DB) error
			want error
		}{
			{"Exec", func(t *testing.T, db *sql.DB) error { _, err := db.ExecContext(t.Context(), "DO 1"); return err }, nil},
			{"a sql.Conn", func(t *testing.T, db *sql.DB) error {
				c, err := db.Conn(t.Context())
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.ExecContext(t.Context(), "DO 1")
				return err
			}, driver.ErrBadConn},
			{"Ping", func(t *testing.T, db *sql.DB) error { return db.PingContext(t.Context()) }, driver.ErrBadConn},
		} {
			t.Run(fmt.Sprint(tt.name, ", the wrapper pings: ", pings), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := &fakedb.DB{}
					ready := map[int64]bool{}
					f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
						switch {
						case c.Dead.Load():
						case query == "SET @x = 1":
							ready[c.ID] = true
						case !ready[c.ID]:
							t.Errorf("a statement on connection %d, which the wrapper has not set up", c.ID)
						}
						return nil
					}
					cfg := livepool.NewConfig()
					cfg.ConnectTimeout = time.Minute
					cfg.Logger = slog.New(slog.DiscardHandler)
					ctr, err := livepool.NewConnector(f, cfg)
					if err != nil {
						t.Fatal(err)
					}
					db := sql.OpenDB(wrappingConnector{ctr, pings})
					defer db.Close()
					leaveUnclaimed(t, f, db)
					f.Kill()
					if err := tt.use(t, db); !errors.Is(err, tt.want) || tt.want == nil && err != nil {
						t.Errorf("on a parked connection that has died: %v, want %v", err, tt.want)
					}
					fakedb.ServedBy(t, db)
					f.Kill() // within PingAfter
					if err := db.PingContext(t.Context()); !errors.Is(err, driver.ErrBadConn) {
						t.Errorf("ping of a connection that has died: %v", err)
					}
					fakedb.ServedBy(t, db)
				})
			})
		}
	}
}

// A test of a health check on sqlmock sees the failure that it asked for; one
// that the server may have closed is still replaced, and the fresh one pinged.
func TestPingOfAnyDriverSaysWhatTheDriverSays(t *testing.T) {
	dsn := fmt.Sprint("ping ", time.Now().UnixNano())
	db, mock, err := sqlmock.NewWithDSN(dsn, sqlmock.MonitorPingsOption(true))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p := labtest.Open(t, fakedb.ByDSN{Of: db.Driver(), DSN: dsn}, nil)
	sick := errors.New("sick")
	mock.ExpectPing().WillReturnError(sick)
	mock.ExpectPing()
	if err := p.PingContext(t.Context()); err != sick {
		t.Errorf("got %v, want what the driver says", err)
	}
	if err := p.PingContext(t.Context()); err != nil {
		t.Errorf("well again: %v", err)
	}
	mock.ExpectClose()

	f := &fakedb.DB{}
	p = labtest.OpenFake(t, f, nil)
	fakedb.Warm(t, p.DB, 1)
	f.Kill()
	if err := p.PingContext(t.Context()); err != nil || f.Connects.Load() != 2 {
		t.Errorf("got %v, %d connections, want another in place of the dead one", err, f.Connects.Load())
	}
	f.OnPing = func(context.Context, *fakedb.Conn) error { return io.ErrUnexpectedEOF }
	if err := p.PingContext(t.Context()); err == nil {
		t.Error("every ping fails, and PingContext says nil")
	}
}
