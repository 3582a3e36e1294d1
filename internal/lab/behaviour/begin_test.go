package behaviour_test

// Units whose first statement begins their transaction, on connections that serve other
// callers, too.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// roundTripsOfUnits runs units, the later ones on a connection that serves nothing else, and
// returns the round trips of one of them.
func roundTripsOfUnits(t *testing.T, via *proxy.Proxy, p *livepool.Pool, opts func(i int) []livepool.SessionOption) float64 {
	t.Helper()
	const units = 20
	for i := range 2 * units {
		if i == units {
			via.ResetCounts()
		}
		if err := p.WithSession(t.Context(), insertLiteral(i), opts(i)...); err != nil {
			t.Fatal(err)
		}
	}
	return float64(via.Counts().RoundTrips()) / units
}

// insertLiteral inserts a row by one request.
func insertLiteral(v int) labtest.UnitFunc {
	return func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v))
		return err
	}
}

// A unit after the other is begun by its first statement, where that is safe.
func TestUnitsThatAreBegunByTheirFirstStatement(t *testing.T) {
	t.Parallel()
	key := func(i int) []livepool.SessionOption {
		return []livepool.SessionOption{livepool.Once(fmt.Sprint("key ", i))}
	}
	option := func(o livepool.SessionOption) func(int) []livepool.SessionOption {
		return func(int) []livepool.SessionOption { return []livepool.SessionOption{o} }
	}
	none := func(int) []livepool.SessionOption { return nil }
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, tt := range []struct {
			name   string
			params string
			opts   func(i int) []livepool.SessionOption
			proxy  []proxy.Option
			change func(*livepool.Config)
			want   float64
		}{
			{"a statement and COMMIT", "", none, nil, nil, 2},
			{"its key, a statement and COMMIT", "", key, nil, nil, 3},
			{"pool_begin=explicit", "pool_begin=explicit", none, nil, nil, 3},
			{"an isolation level", "", option(livepool.Isolation(sql.LevelReadCommitted)), nil, nil, 4},
			{"a unit that must not be run again", "", option(livepool.MaxAttempts(1)), nil, nil, 3},
			{"autocommit is not the DSN's", "autocommit=0", none, nil, nil, 3},
			{"a proxy that speaks SQL", "", none, []proxy.Option{proxy.WithThreadIDs(func(real uint32) uint32 { return real + 1000000 })}, nil, 3},
			{"a wrapper around the driver", "", none, nil, func(c *livepool.Config) { c.Wrap = func(inner driver.Connector) driver.Connector { return inner } }, 3},
			{"connections that have said nothing for long", "pool_ping_after=0s&pool_pre_ping=off", none, nil, nil, 3},
		} {
			t.Run(tt.name, func(t *testing.T) {
				createTables(t, s)
				via, err := proxy.New(s.Addr(), tt.proxy...)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { via.Close() })
				p := openWith(t, withParams(s.DSNVia(via.Addr()), tt.params), func(c *livepool.Config) {
					c.Logger = labtest.DiscardLogger
					if tt.change != nil {
						tt.change(c)
					}
				})
				if got := roundTripsOfUnits(t, via, p, tt.opts); got != tt.want {
					t.Errorf("%v round trips a unit, want %v", got, tt.want)
				}
			})
		}
	})
}

func createTables(t *testing.T, s *server.Server) {
	t.Helper()
	p := open(t, s.DSN(), "")
	for _, ddl := range []string{"DROP TABLE IF EXISTS t", "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"} {
		if _, err := p.ExecContext(t.Context(), ddl); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A connection on which autocommit is off is not changed for each job of a mixed load: what
// it costs to change back is bounded.
func TestMixedUseDoesNotChangeAutocommitAllTheTime(t *testing.T) {
	t.Parallel()
	s, _ := openLedger(t, server.MariaDB)
	via, err := proxy.New(s.Addr(), proxy.WithQueries())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { via.Close() })
	p := open(t, s.DSNVia(via.Addr()), "pool_size=1")
	for _, unitsBetween := range []int{1, 2, 3, 5} {
		for i := range 200 {
			for range unitsBetween {
				if err := p.WithSession(t.Context(), labtest.Insert(i)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := p.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (-1)"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if changes := changesOfAutocommit(via); changes == 0 || changes > 10 {
		t.Errorf("autocommit was changed %d times in 800 turns, want a few times", changes)
	}
}

func changesOfAutocommit(via *proxy.Proxy) (n int) {
	for _, q := range via.Queries() {
		if strings.HasPrefix(q, "SET autocommit") {
			n++
		}
	}
	return n
}

// What a unit's function may do, on a connection on which autocommit is off: all of it is
// applied or nothing.
func TestUnitThatIsBegunByItsFirstStatement(t *testing.T) {
	t.Parallel()
	errUndone := errors.New("undone")
	insert := func(ctx context.Context, s *livepool.Session, v int) error { return insertLiteral(v)(ctx, s) }
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, tt := range []struct {
			name string
			fn   func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error
			err  error // nil: it is applied
			rows int   // of it that are there afterwards
		}{
			{"nothing", func(context.Context, *livepool.Pool, *livepool.Session) error { return nil }, nil, 0},
			{"a query only", func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
				var n int
				return s.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(&n)
			}, nil, 0},
			{"two rows", func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
				return errors.Join(insert(ctx, s, 7), insert(ctx, s, 7))
			}, nil, 2},
			{"an error", func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
				return errors.Join(insert(ctx, s, 7), errUndone)
			}, errUndone, 0},
			{"a unit inside as the first, undone", func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
				inner := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error { return errors.Join(insert(ctx, s, 7), errUndone) })
				if !errors.Is(inner, errUndone) {
					return inner
				}
				return insert(ctx, s, 7)
			}, nil, 1},
			{"a unit inside as the first, and an error", func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
				return errors.Join(p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error { return insert(ctx, s, 7) }), errUndone)
			}, errUndone, 0},
			{"a savepoint as the first", func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
				for _, q := range []string{"SAVEPOINT a", "INSERT INTO t (v) VALUES (7)", "ROLLBACK TO SAVEPOINT a", "INSERT INTO t (v) VALUES (7)"} {
					if _, err := s.ExecContext(ctx, q); err != nil {
						return err
					}
				}
				return nil
			}, nil, 1},
			{"its transaction on a framework's", func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
				tx, err := s.Tx(ctx)
				if err != nil {
					return err
				}
				_, err = tx.ExecContext(ctx, "INSERT INTO t (v) VALUES (7)")
				return err
			}, nil, 1},
			{"a statement that fails, and whose error is swallowed", func(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
				_, _ = s.ExecContext(ctx, "INSERT INTO no_such_table (v) VALUES (7)")
				return insert(ctx, s, 7)
			}, nil, 1},
		} {
			t.Run(tt.name, func(t *testing.T) {
				createTables(t, s)
				via := proxyTo(t, s)
				p := open(t, s.DSNVia(via.Addr()), "pool_size=1")
				if trips := roundTripsOfUnits(t, via, p, func(int) []livepool.SessionOption { return nil }); trips != 2 {
					t.Fatalf("%v round trips: the first statement does not begin the unit", trips)
				}
				if _, err := openPlain(t, s.DSN()).ExecContext(t.Context(), "DELETE FROM t"); err != nil {
					t.Fatal(err)
				}
				if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error { return tt.fn(ctx, p, s) }); !errors.Is(err, tt.err) {
					t.Errorf("%v, want %v", err, tt.err)
				}
				if n := count(t, s, "t WHERE v = 7"); n != tt.rows {
					t.Errorf("%d rows, want %d", n, tt.rows)
				}
				if n, err := transactions(s, "1 = 1"); err != nil || n != 0 {
					t.Errorf("%d transactions are left open, %v", n, err)
				}
			})
		}
	})
}

// The connection is lost under the statement that begins the unit: it is run again, and
// applied once.
func TestUnitWhoseFirstStatementIsLost(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		createTables(t, s)
		via := proxyTo(t, s)
		p := open(t, s.DSNVia(via.Addr()), "pool_size=1")
		if trips := roundTripsOfUnits(t, via, p, func(int) []livepool.SessionOption { return nil }); trips != 2 {
			t.Fatalf("%v round trips: the first statement does not begin the unit", trips)
		}
		for _, cut := range []func(proxy.Match, proxy.Fault) *proxy.Cut{via.CutBefore, via.CutAfter} {
			fault := cut(proxy.QueryPrefix("INSERT INTO t (v) VALUES (4711)"), proxy.RST)
			runs := 0
			if err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				runs++
				_, err := u.ExecContext(ctx, "INSERT INTO t (v) VALUES (4711)")
				return err
			}); err != nil || runs != 2 || !fault.Fired() {
				t.Errorf("%v after %d runs, want nil after 2", err, runs)
			}
		}
		if n := count(t, s, "t WHERE v = 4711"); n != 2 {
			t.Errorf("%d rows, want one of each unit", n)
		}
	})
}

// A connection dies as autocommit is turned on, and a spare takes its place, on which it is
// off, too.
func TestSpareOnWhichAutocommitIsOff(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MariaDB)
	createTables(t, s)
	via, err := proxy.New(s.Addr(), proxy.WithQueries())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { via.Close() })
	const size = 4
	p := open(t, s.DSNVia(via.Addr()), "pool_size=4&pool_max_overflow=0&pool_min_idle=4&pool_idle_timeout=1s")
	for range 4 * unitsInARow {
		var begun, ended sync.WaitGroup
		begun.Add(size)
		for i := range size {
			ended.Go(func() {
				begin := sync.OnceFunc(begun.Done)
				if err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
					err := insertLiteral(i)(ctx, u)
					begin()
					begun.Wait() // so that each has a connection of its own
					return err
				}); err != nil {
					t.Error(err)
				}
			})
		}
		ended.Wait()
	}
	labtest.Eventually(t, "database/sql has closed all but one, and livepool keeps them as spares", func() bool {
		if err := p.WithSession(t.Context(), insertLiteral(0)); err != nil {
			t.Fatal(err)
		}
		return p.DB.Stats().Idle == 1
	})
	if changed := changesOfAutocommit(via); changed != size {
		t.Fatalf("autocommit was changed %d times: nothing is shown", changed)
	}
	cut := via.CutBefore(proxy.QueryPrefix("SET autocommit = 1"), proxy.RST)
	if _, err := p.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (4711)"); err != nil || !cut.Fired() {
		t.Errorf("%v, cut %v", err, cut.Fired())
	}
	if n := count(t, s, "t WHERE v = 4711"); n != 1 {
		t.Errorf("told as done, and others see it %d times", n)
	}
}

// unitsInARow is after how many units a connection changes.
const unitsInARow = 3

// A procedure that turns autocommit on commits what its unit has done before, and the unit
// says so. It happens to the first unit of a pool that calls one; the others send BEGIN.
func TestUnitWhoseProcedureTurnsAutocommitOn(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		createTables(t, s)
		via := proxyTo(t, s)
		p := open(t, s.DSNVia(via.Addr()), "pool_size=1")
		for _, ddl := range []string{"DROP PROCEDURE IF EXISTS turn_on", "CREATE PROCEDURE turn_on() SET autocommit = 1"} {
			if _, err := p.ExecContext(t.Context(), ddl); err != nil {
				t.Fatal(err)
			}
		}
		if trips := roundTripsOfUnits(t, via, p, func(int) []livepool.SessionOption { return nil }); trips != 2 {
			t.Fatalf("%v round trips: the first statement does not begin the unit", trips)
		}
		for i, wantErr := range []bool{true, false, false, false, false, false} {
			v := 100 + i
			err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				for _, query := range []string{fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v), "CALL turn_on()", fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v)} {
					if _, err := u.ExecContext(ctx, query); err != nil {
						return err
					}
				}
				return nil
			})
			n := count(t, s, fmt.Sprintf("t WHERE v = %d", v))
			if wantErr && (err == nil || !strings.Contains(err.Error(), "may be committed") || n != 1) || !wantErr && (err != nil || n != 2) {
				t.Errorf("unit %d: %v, and %d of 2 rows", i, err, n)
			}
		}
	})
}
