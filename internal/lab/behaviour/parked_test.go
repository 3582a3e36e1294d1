package behaviour_test

// Connections whose owners are elsewhere between two statements.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// slowUnit is a unit that reads, calls a slow service and writes.
func slowUnit(runs *atomic.Int64, d time.Duration) labtest.UnitFunc {
	return func(ctx context.Context, s *livepool.Session) error {
		runs.Add(1)
		var n int
		if err := s.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(&n); err != nil {
			return err
		}
		time.Sleep(d)
		return labtest.Insert(1)(ctx, s)
	}
}

const briefWait = "--wait-timeout=2"

// holdLedger is a server that closes what is idle for two seconds, with a table.
func holdLedger(t *testing.T, s *server.Server) {
	t.Helper()
	if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
		t.Fatal(err)
	}
}

// Whoever has a connection and thinks for longer than wait_timeout between two
// statements still has it afterwards.
func TestThinkingForLongerThanWaitTimeout(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		holdLedger(t, s)
		const pause = 7 * time.Second
		p := open(t, s.DSN(), "")
		ways := map[string]func(t *testing.T){
			"unit": func(t *testing.T) {
				var runs atomic.Int64
				if err := p.WithSession(t.Context(), slowUnit(&runs, pause)); err != nil || runs.Load() != 1 {
					t.Errorf("%d runs: %v", runs.Load(), err)
				}
			},
			"unit before its commit": func(t *testing.T) {
				var runs atomic.Int64
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					runs.Add(1)
					defer time.Sleep(pause)
					return labtest.Insert(1)(ctx, s)
				})
				if err != nil || runs.Load() != 1 {
					t.Errorf("%d runs: %v", runs.Load(), err)
				}
			},
			"sql.Tx": func(t *testing.T) {
				tx, err := p.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(pause)
				if _, err := tx.Exec("INSERT INTO t (v) VALUES (?)", 1); err != nil {
					t.Error(err)
				}
				time.Sleep(pause)
				if err := tx.Commit(); err != nil {
					t.Error(err)
				}
			},
			"sql.Conn with state": func(t *testing.T) {
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := c.ExecContext(t.Context(), "SET @mine = 7"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(pause)
				var mine int
				if err := c.QueryRowContext(t.Context(), "SELECT @mine").Scan(&mine); err != nil || mine != 7 {
					t.Errorf("@mine is %d: %v", mine, err)
				}
				if _, err := c.ExecContext(t.Context(), "INSERT INTO t (v) VALUES (1)"); err != nil {
					t.Error(err)
				}
			},
			"prepared statement of a sql.Conn": func(t *testing.T) {
				c, err := p.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				stmt, err := c.PrepareContext(t.Context(), "INSERT INTO t (v) VALUES (?)")
				if err != nil {
					t.Fatal(err)
				}
				defer stmt.Close()
				time.Sleep(pause)
				if _, err := stmt.Exec(1); err != nil {
					t.Error(err)
				}
			},
		}
		t.Run("all", func(t *testing.T) {
			for name, way := range ways {
				t.Run(name, func(t *testing.T) { t.Parallel(); way(t) })
			}
		})
		if n := count(t, s, "t"); n != len(ways) {
			t.Errorf("%d rows, want %d", n, len(ways))
		}
		if st := p.Stats(); st.Retried != 0 || st.Deaths != 0 {
			t.Errorf("%d units were run again, %d connections died", st.Retried, st.Deaths)
		}
	}, briefWait)
}

// Where nothing keeps it alive the unit is run once more, and the error says for
// how long its connection was idle and what cut it.
func TestThinkingTooLong(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		holdLedger(t, s)
		const pause = 3 * time.Second
		units := map[string]func(*atomic.Int64) labtest.UnitFunc{
			"before a statement": func(runs *atomic.Int64) labtest.UnitFunc { return slowUnit(runs, pause) },
			"before its commit": func(runs *atomic.Int64) labtest.UnitFunc {
				return func(ctx context.Context, s *livepool.Session) error {
					runs.Add(1)
					defer time.Sleep(pause)
					return labtest.Insert(1)(ctx, s)
				}
			},
		}
		t.Run("all", func(t *testing.T) {
			for params, setting := range map[string]string{
				"pool_hold_limit=0": "HoldLimit (pool_hold_limit) is 0",
				"pool_keepalive=0":  "KeepAlive (pool_keepalive) is 0",
			} {
				p := open(t, s.DSN(), params)
				for name, unit := range units {
					t.Run(params+", "+name, func(t *testing.T) {
						t.Parallel()
						var runs atomic.Int64
						err := p.WithSession(t.Context(), unit(&runs))
						if err == nil || runs.Load() != 2 {
							t.Fatalf("%d runs, %v, want 2 and an error", runs.Load(), err)
						}
						for _, want := range []string{"nothing had been sent on it for ", "longer than the server's wait_timeout, 2s", setting, "2 attempt(s)", "died twice"} {
							if !strings.Contains(err.Error(), want) {
								t.Errorf("the error lacks %q: %v", want, err)
							}
						}
					})
				}
				t.Run(params+", sql.Conn", func(t *testing.T) {
					t.Parallel()
					c, err := p.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					time.Sleep(pause) // nothing has run on it yet, so that it can be replaced
					if _, err := c.ExecContext(t.Context(), "SET @mine = 7"); err != nil {
						t.Fatal(err)
					}
					time.Sleep(pause)
					if _, err := c.ExecContext(t.Context(), "DO 1"); err == nil || !strings.Contains(err.Error(), "wait_timeout, 2s") {
						t.Errorf("with state of its owner: %v", err)
					}
				})
			}
		})
		if n := count(t, s, "t"); n != 0 {
			t.Errorf("%d rows of failed units", n)
		}
	}, briefWait)
}

// A forgotten transaction is reported, and not kept for ever.
func TestHoldLimit(t *testing.T) {
	s := servertest.Run(t, server.MariaDB, briefWait)
	p, log := openLogged(t, s.DSN(), "pool_hold_limit=3s&pool_leak_after=1h")
	released := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			if err := labtest.Work(ctx, s); err != nil {
				return err
			}
			<-released
			return labtest.Work(ctx, s)
		}, livepool.Name("nightly report"), livepool.MaxAttempts(1))
	}()
	told := func() []string { return log.LinesWith("HoldLimit") }
	labtest.Eventually(t, "it is reported", func() bool { return len(told()) > 0 })
	labtest.Eventually(t, "the server has closed it", func() bool {
		var n int
		if err := s.QueryRow("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE COMMAND = 'Sleep'", &n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
	close(released)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "HoldLimit (pool_hold_limit), 3s") {
		t.Errorf("the unit's error: %v", err)
	}
	if r := told(); len(r) != 1 || !strings.Contains(r[0], "unit=nightly report") || !strings.Contains(r[0], "parked_test.go:") || !strings.Contains(r[0], "in_transaction=true") {
		t.Errorf("reports: %s", r)
	}
}

// What a ping in the owner's absence must not disturb.
func TestPingsOfHeldConnectionsDisturbNothing(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		holdLedger(t, s)
		p := open(t, s.DSN(), "pool_keepalive=20ms")
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		must := func(query string) {
			t.Helper()
			if _, err := c.ExecContext(t.Context(), query); err != nil {
				t.Fatalf("%s: %v", query, err)
			}
		}
		pinged := func() {
			t.Helper()
			seen := p.Stats().KeptAlive
			labtest.Eventually(t, "it is pinged", func() bool { return p.Stats().KeptAlive > seen })
		}
		says := func(query, want string) {
			t.Helper()
			var got sql.NullString
			if err := c.QueryRowContext(t.Context(), query).Scan(&got); err != nil || got.String != want {
				t.Errorf("%s: %q, %v, want %q", query, got.String, err, want)
			}
		}
		must("INSERT INTO t (v) VALUES (1), (2), (3)")
		pinged()
		says("SELECT LAST_INSERT_ID()", "1")
		must("DROP TABLE IF EXISTS nosuch")
		pinged()
		says("SELECT @@warning_count", "1")
		must("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
		pinged()
		tx, err := c.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		pinged()
		if _, err := tx.Exec("UPDATE t SET v = 9"); err != nil {
			t.Fatal(err)
		}
		pinged()
		inTx := func(query, want string) {
			t.Helper()
			var got string
			if err := tx.QueryRow(query).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %q, %v, want %q", query, got, err, want)
			}
		}
		inTx("SELECT trx_isolation_level FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()", "SERIALIZABLE")
	})
}

// Results that are being read, several of them, the driver's own connection: no
// ping gets between, and afterwards the connection is kept alive again.
func TestHeldConnectionThatIsBusy(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := open(t, s.DSN(), "pool_keepalive=20ms&multiStatements=true")
		ctx := t.Context()
		c, err := p.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		quiet := func(what string) {
			t.Helper()
			seen := p.Stats().KeptAlive
			time.Sleep(200 * time.Millisecond)
			if n := p.Stats().KeptAlive - seen; n > 0 {
				t.Errorf("%s: %d pings", what, n)
			}
		}
		pinged := func(what string) {
			t.Helper()
			seen := p.Stats().KeptAlive
			labtest.Eventually(t, what+": it is pinged", func() bool { return p.Stats().KeptAlive > seen })
		}
		pinged("never used")
		for _, prepared := range []bool{false, true} {
			query, args := "SELECT 1 UNION SELECT 2 UNION SELECT 3; SELECT 4", []any(nil)
			if prepared {
				query, args = "SELECT 1 UNION SELECT 2 UNION SELECT 3 WHERE ? = 1", []any{1}
			}
			rows, err := c.QueryContext(ctx, query, args...)
			if err != nil {
				t.Fatal(err)
			}
			sum := 0
			for more := true; more; more = rows.NextResultSet() {
				for rows.Next() {
					var n int
					if err := rows.Scan(&n); err != nil {
						t.Fatal(err)
					}
					sum += n
					quiet("a result that is being read")
				}
				if sum == 6 && !prepared {
					quiet("between two results")
				}
			}
			if want := map[bool]int{false: 10, true: 6}[prepared]; rows.Err() != nil || sum != want {
				t.Errorf("prepared %v: sum %d, %v, want %d", prepared, sum, rows.Err(), want)
			}
			rows.Close()
			pinged("after the result")
		}
		if _, err := c.ExecContext(ctx, "DO SLEEP(0.2)"); err != nil {
			t.Error(err)
		}
		pinged("after a slow statement")
		if _, err := c.ExecContext(ctx, "NO SUCH STATEMENT"); err == nil {
			t.Error("it should have failed")
		}
		pinged("after an error")
		if err := c.Raw(func(dc any) error { dc.(interface{ Raw() driver.Conn }).Raw(); return nil }); err != nil {
			t.Error(err)
		}
		if _, err := c.ExecContext(ctx, "DO 1"); err != nil {
			t.Error(err)
		}
		quiet("after its owner got the driver's own connection")
		c.Close()
		if c, err = p.Conn(ctx); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		pinged("after the next checkout")
	})
}

// A sql.Conn whose connection is lost while a transaction is open on it: no request
// waits for the transaction, which only the same caller could end, and Conn and
// Tx can be ended afterwards.
func TestConnLostUnderItsOpenTransaction(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		requests := map[string]func(ctx context.Context, c *sql.Conn) error{
			"exec":  func(ctx context.Context, c *sql.Conn) error { _, err := c.ExecContext(ctx, "DO 1"); return err },
			"query": func(ctx context.Context, c *sql.Conn) error { return c.QueryRowContext(ctx, "SELECT 1").Scan(new(int)) },
			"begin": func(ctx context.Context, c *sql.Conn) error { _, err := c.BeginTx(ctx, nil); return err },
			"ping":  func(ctx context.Context, c *sql.Conn) error { return c.PingContext(ctx) },
		}
		t.Run("all", func(t *testing.T) {
			for _, params := range []string{"", "pool_keepalive=0"} {
				p := open(t, s.DSN(), params)
				for name, request := range requests {
					for _, txFirst := range []bool{false, true} {
						t.Run(fmt.Sprintf("%s, %s, transaction first %v", params, name, txFirst), func(t *testing.T) {
							t.Parallel()
							c, tx := lostTx(t, s, p)
							if txFirst {
								if _, err := tx.Exec("DO 1"); err == nil || errors.Is(err, driver.ErrBadConn) || livepool.Classify(err)&livepool.Retry == 0 {
									t.Errorf("in the transaction: %v", err)
								}
							}
							labtest.ReturnsWithin(t, "a request of the sql.Conn", 30*time.Second, func() {
								err := request(context.Background(), c)
								if err == nil || errors.Is(err, driver.ErrBadConn) || txFirst && !errors.Is(err, livepool.ErrPoisoned) {
									t.Errorf("the request: %v", err)
								}
							})
							labtest.ReturnsWithin(t, "the ends", 30*time.Second, func() {
								if err := tx.Commit(); err == nil || errors.Is(err, livepool.ErrCommitUnknown) {
									t.Errorf("commit: %v", err)
								}
								if err := c.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) {
									t.Error(err)
								}
							})
						})
					}
				}
			}
		})
	})
}

// lostTx is a transaction on a sql.Conn whose connection was killed a while ago.
func lostTx(t *testing.T, s *server.Server, p *livepool.Pool) (*sql.Conn, *sql.Tx) {
	t.Helper()
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := connectionID(t, c)
	tx, err := c.BeginTx(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Exec(fmt.Sprintf("KILL %d", id)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // for longer than a look is not worth it
	return c, tx
}

// A statement of a sql.Conn beside its own open result, a while later: the rows
// that nobody has read yet are not taken for the server's announcement that it closes.
func TestConnBesideItsOpenResult(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, params := range []string{"", "pool_keepalive=0", "pool_hold_limit=0"} {
			t.Run(params, func(t *testing.T) {
				t.Parallel()
				p := open(t, s.DSN(), params)
				testBesideResult(t, p.DB)
				if n := p.Stats().Deaths; n > 0 {
					t.Errorf("%d deaths", n)
				}
			})
		}
		t.Run("NewConnector", func(t *testing.T) {
			t.Parallel()
			cfg, err := livepool.ParseDSN(s.DSN())
			if err != nil {
				t.Fatal(err)
			}
			connector, err := livepool.NewConnector(nil, cfg)
			if err != nil {
				t.Fatal(err)
			}
			db := sql.OpenDB(connector)
			defer db.Close()
			testBesideResult(t, db)
		})
	})
}

func testBesideResult(t *testing.T, db *sql.DB) {
	t.Helper()
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// What becomes of the result after that is the driver's affair, which does not
	// always notice; but the sql.Conn must not be closed, which waits for the result.
	rows, err := c.QueryContext(context.Background(), "SELECT REPEAT('x', 100000) UNION ALL SELECT REPEAT('y', 100000) UNION ALL SELECT REPEAT('z', 100000)")
	if err != nil {
		t.Fatal(err)
	}
	if !rows.Next() {
		t.Fatal(rows.Err())
	}
	time.Sleep(300 * time.Millisecond)
	labtest.ReturnsWithin(t, "a statement beside the result", 30*time.Second, func() {
		if _, err := c.ExecContext(context.Background(), "DO 1"); err == nil || errors.Is(err, driver.ErrBadConn) || strings.Contains(err.Error(), "before the statement was sent") {
			t.Errorf("beside the result: %v", err)
		}
	})
	rows.Close()
}
