package livepooltest_test

// The faults on real servers, through livepool's public API.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
	"github.com/livepool/livepool/livepooltest"
)

// open opens a pool through a new proxy, and empties the table t.
func open(t *testing.T, s *server.Server, params string) (*livepool.Pool, *livepooltest.Proxy) {
	t.Helper()
	proxy := livepooltest.NewProxy(t, s.DSN()+"?"+params)
	pool, err := livepool.Open(proxy.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	for _, query := range []string{"DROP TABLE IF EXISTS t", "CREATE TABLE t (v INT) ENGINE=InnoDB"} {
		if _, err := pool.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	if err := pool.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return pool, proxy
}

// insert is a unit that counts how often it is run.
func insert(runs *int, v int) func(context.Context, *livepool.Session) error {
	return func(ctx context.Context, s *livepool.Session) error {
		*runs++
		_, err := s.ExecContext(ctx, "INSERT INTO t (v) VALUES (?)", v)
		return err
	}
}

// wantRows checks what is in the table.
func wantRows(t *testing.T, pool *livepool.Pool, want ...int) {
	t.Helper()
	rows, err := pool.QueryContext(t.Context(), "SELECT v FROM t ORDER BY v")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got []int
	for rows.Next() {
		var v int
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	if rows.Err() != nil || !slices.Equal(got, want) {
		t.Errorf("the rows are %v, %v, want %v", got, rows.Err(), want)
	}
}

// The statements of a test are prepared ones or text, as the DSN has it.
func eachWay(t *testing.T, f func(t *testing.T, s *server.Server, params string)) {
	t.Helper()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, params := range []string{"interpolateParams=false", "interpolateParams=true"} {
			t.Run(params, func(t *testing.T) { f(t, s, params) })
		}
	})
}

func TestProxyFailNextCommit(t *testing.T) {
	eachWay(t, func(t *testing.T, s *server.Server, params string) {
		pool, proxy := open(t, s, params)
		want := []int{}
		for v, tt := range []struct {
			when    livepooltest.CommitLoss
			opts    []livepool.SessionOption
			unknown bool
			runs    int
			applied bool
		}{
			{livepooltest.BeforeApplied, nil, true, 1, false},
			{livepooltest.AfterApplied, nil, true, 1, true},
			{livepooltest.BeforeApplied, []livepool.SessionOption{livepool.VerifyCommit()}, false, 2, true},
			{livepooltest.AfterApplied, []livepool.SessionOption{livepool.VerifyCommit()}, false, 1, true},
			{livepooltest.BeforeApplied, []livepool.SessionOption{livepool.Once("a" + params)}, false, 2, true},
			{livepooltest.AfterApplied, []livepool.SessionOption{livepool.Once("b" + params)}, false, 1, true},
		} {
			// Some units before it, so that one connection begins by BEGIN, and another without.
			for range v {
				if err := pool.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "DO 1")
					return err
				}); err != nil {
					t.Fatal(err)
				}
			}
			proxy.FailNextCommit(tt.when)
			runs := 0
			err := pool.WithSession(t.Context(), insert(&runs, v), tt.opts...)
			if errors.Is(err, livepool.ErrCommitUnknown) != tt.unknown || !tt.unknown && err != nil {
				t.Errorf("%d, %s: got %v", v, tt.when, err)
			}
			if runs != tt.runs {
				t.Errorf("%d, %s: %d runs, want %d", v, tt.when, runs, tt.runs)
			}
			if tt.applied {
				want = append(want, v)
			}
			wantRows(t, pool, want...)
		}
	})
}

func TestProxyNextStatement(t *testing.T) {
	eachWay(t, func(t *testing.T, s *server.Server, params string) {
		pool, proxy := open(t, s, params)
		var want []int
		for v, answer := range []mysql.MySQLError{livepooltest.Deadlock, livepooltest.LockWait, livepooltest.ReadOnly, {Number: 1180, Message: "own"}, livepooltest.Interrupted} {
			proxy.NextStatement("values", answer)
			runs := 0
			err := pool.WithSession(t.Context(), insert(&runs, v))
			if v < 3 { // these pass
				if err != nil || runs != 2 {
					t.Errorf("%v: got %v, %d runs", &answer, err, runs)
				}
				want = append(want, v)
				continue
			}
			var my *mysql.MySQLError
			if !errors.As(err, &my) || my.Number != answer.Number || my.Message != answer.Message || runs != 1 {
				t.Errorf("%v: got %v, %d runs", &answer, err, runs)
			}
		}
		wantRows(t, pool, want...)
	})
}

// What was done before a deadlock is gone on the server, too, and what was done before
// another error is not.
func TestProxyDeadlockEndsTheTransaction(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		_, proxy := open(t, s, "")
		db, err := sql.Open("mysql", proxy.DSN()) // livepool would not let the transaction go on
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, tt := range []struct {
			answer mysql.MySQLError
			left   int
		}{{livepooltest.Deadlock, 0}, {livepooltest.LockWait, 1}} {
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("INSERT INTO t VALUES (1)"); err != nil {
				t.Fatal(err)
			}
			proxy.NextStatement("INSERT INTO t", tt.answer)
			if _, err := tx.Exec("INSERT INTO t VALUES (2)"); err == nil {
				t.Error("the fault did not hit")
			}
			var left int
			if err := tx.QueryRow("SELECT COUNT(*) FROM t").Scan(&left); err != nil || left != tt.left {
				t.Errorf("%v: %d rows, %v, want %d", &tt.answer, left, err, tt.left)
			}
			tx.Rollback()
		}
	})
}

func TestProxyGoAway(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		pool, proxy := open(t, s, "")
		runs := 0
		if err := pool.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			if err := insert(&runs, 7)(ctx, s); err != nil || runs > 1 {
				return err
			}
			proxy.GoAway()
			_, err := s.ExecContext(ctx, "DO 1")
			if err == nil {
				t.Error("the connection is still there")
			}
			return err
		}); err != nil || runs != 2 {
			t.Errorf("got %v, %d runs", err, runs)
		}
		proxy.GoAway() // idle ones
		wantRows(t, pool, 7)
	})
}

func TestProxySlow(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	pool, proxy := open(t, s, "")
	proxy.Slow(200 * time.Millisecond)
	for _, query := range []string{"DO 1", "DO 2"} { // a round trip each
		start := time.Now()
		if _, err := pool.ExecContext(t.Context(), query); err != nil || time.Since(start) < 200*time.Millisecond {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	}
	proxy.Slow(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := pool.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an hour: got %v", err)
	}
	proxy.Slow(0)
	wantRows(t, pool)
}

// What is lost in a black hole is found by the pool, and the unit goes on after Restore.
func TestProxyBlackHole(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		pool, proxy := open(t, s, "pool_stall_after=300ms&pool_ping_timeout=300ms&pool_connect_timeout=500ms")
		runs := 0
		started, done := make(chan struct{}), make(chan error)
		go func() {
			done <- pool.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
				if runs == 0 {
					proxy.BlackHole()
					close(started)
				}
				return insert(&runs, 3)(ctx, s)
			})
		}()
		<-started
		select {
		case err := <-done:
			t.Fatalf("a unit in a black hole: %v", err)
		case <-time.After(time.Second):
		}
		proxy.Restore()
		if err := <-done; err != nil {
			t.Error(err)
		}
		wantRows(t, pool, 3)
	})
}

// More than a packet holds goes through in both directions.
func TestProxyPassesLargePackets(t *testing.T) {
	s := servertest.Run(t, server.MariaDB, "--max-allowed-packet=64M")
	pool, _ := open(t, s, "")
	const size = 1<<24 + 5
	var n int
	var back string
	if err := pool.QueryRowContext(t.Context(), "SELECT LENGTH(?), REPEAT('y', ?)", strings.Repeat("x", size), size).Scan(&n, &back); err != nil || n != size || len(back) != size {
		t.Errorf("%d there, %d back, %v", n, len(back), err)
	}
}

// The DSN stays as it is, but for the address.
func TestProxyDSN(t *testing.T) {
	for _, dsn := range []string{"root:p@ss/w@tcp(db:3306)/shop?pool_size=3&loc=UTC", "tcp(db)/", "root@/shop", "/shop"} {
		cfg, err := livepool.ParseDSN(livepooltest.NewProxy(t, dsn).DSN())
		want, wantErr := livepool.ParseDSN(dsn)
		if err != nil || wantErr != nil {
			t.Fatal(err, wantErr)
		}
		if !strings.HasPrefix(cfg.MySQL.Addr, "127.0.0.1:") || cfg.MySQL.Addr == want.MySQL.Addr {
			t.Errorf("%s: the address is %s", dsn, cfg.MySQL.Addr)
		}
		cfg.MySQL.Addr = want.MySQL.Addr
		if got := cfg.MySQL.FormatDSN(); got != want.MySQL.FormatDSN() || cfg.PoolSize != want.PoolSize {
			t.Errorf("%s became %s", dsn, got)
		}
	}
}

// What the proxy cannot look into is refused, and said without the password.
func TestProxyRefuses(t *testing.T) {
	for dsn, want := range map[string]string{
		"root:secret@tcp(db)/?tls=skip-verify": "tls=skip-verify",
		"root:secret@tcp(db)/?tls=preferred":   "tls=preferred",
		"root:secret@unix(/socket)/":           "tcp(host:port)",
		"root:secret@tcp(db)/?pool_siz=1":      "pool_size",
	} {
		said := failure(t, func(t testing.TB) { livepooltest.NewProxy(t, dsn) })
		if !strings.Contains(said, want) || strings.Contains(said, "secret") {
			t.Errorf("%s: said %q", dsn, said)
		}
	}
	s := servertest.RunOptions(t, server.MariaDB, server.Options{TLS: true})
	for name, change := range map[string]func(*mysql.Config){
		"tls":         func(c *mysql.Config) { c.TLS = s.TLSConfig() },
		"compression": func(c *mysql.Config) { _ = c.Apply(mysql.EnableCompression(true)) },
	} {
		said := failure(t, func(t testing.TB) {
			cfg, err := livepool.ParseDSN(livepooltest.NewProxy(t, s.DSN()).DSN())
			if err != nil {
				t.Fatal(err)
			}
			change(cfg.MySQL)
			cfg.OutageWait = 0
			pool, err := livepool.OpenConfig(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			if err := pool.PingContext(t.Context()); err == nil {
				t.Error("the proxy has passed it on")
			}
		})
		if !strings.Contains(said, "asks for TLS or compression") || strings.Contains(said, "passed it on") {
			t.Errorf("%s: said %q", name, said)
		}
	}
}

// A fault that hits nothing shows nothing.
func TestFaultThatMeetsNothingFailsTheTest(t *testing.T) {
	said := failure(t, func(t testing.TB) {
		_, _, faults := livepooltest.Mock(t)
		faults.FailNextCommit(livepooltest.AfterApplied)
		faults.NextStatement("update orders", livepooltest.Deadlock)
	})
	for _, want := range []string{"FailNextCommit(AfterApplied) has met no statement", "NextStatement(UPDATE ORDERS)"} {
		if !strings.Contains(said, want) {
			t.Errorf("said %q, which lacks %q", said, want)
		}
	}
	if said := failure(t, func(t testing.TB) {
		_, _, faults := livepooltest.Mock(t)
		faults.NextStatement("", livepooltest.Deadlock)
	}); !strings.Contains(said, "needs a text") {
		t.Errorf("no text: said %q", said)
	}
}

// fakeTB is a test that is seen to fail.
type fakeTB struct {
	testing.TB

	said     string
	cleanups []func()
}

func (f *fakeTB) Helper()                           {}
func (f *fakeTB) Cleanup(c func())                  { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Error(args ...any)                 { f.said += fmt.Sprintln(args...) }
func (f *fakeTB) Errorf(format string, args ...any) { f.said += fmt.Sprintf(format+"\n", args...) }
func (f *fakeTB) Fatal(args ...any)                 { f.Error(args...); panic(f) }
func (f *fakeTB) Fatalf(format string, args ...any) { f.Errorf(format, args...); panic(f) }

// end does what go test does at the end of a test.
func (f *fakeTB) end() {
	for _, c := range slices.Backward(f.cleanups) {
		c()
	}
}

// failure runs a test and returns what it said.
func failure(t *testing.T, test func(testing.TB)) string {
	t.Helper()
	f := &fakeTB{TB: t}
	func() {
		defer func() {
			if r := recover(); r != nil && r != any(f) {
				panic(r)
			}
		}()
		test(f)
	}()
	f.end()
	return f.said
}
