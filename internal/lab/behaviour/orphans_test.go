package behaviour_test

// What is left on the server by connections that were given up, and statements
// that get no reply: KillAbandoned, Beacon and StallAfter, on real servers.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

// onEachServer runs f on a server of each kind, on both at the same time. The server
// has the table t, the accounts 1 to 99 and the commit table, and MariaDB's
// understands the PROXY header.
func onEachServer(t *testing.T, f func(t *testing.T, s *server.Server)) {
	var all parallel
	for _, kind := range server.Kinds() {
		all.run(t, string(kind), func(t *testing.T) { f(t, orphanServer(t, kind)) })
	}
	all.wg.Wait()
}

// parallel runs subtests at the same time, all of them: most of their time is spent
// waiting.
type parallel struct{ wg sync.WaitGroup }

func (c *parallel) run(t *testing.T, name string, f func(t *testing.T)) {
	c.wg.Go(func() { t.Run(name, f) })
}

func orphanServer(t *testing.T, kind server.Kind, args ...string) *server.Server {
	t.Helper()
	if kind != server.MySQL {
		args = append(args, "--proxy-protocol-networks=127.0.0.1")
	}
	s, _ := openLedger(t, kind, args...)
	var values []string
	for id := 10; id < 100; id++ {
		values = append(values, fmt.Sprintf("(%d,0)", id))
	}
	if err := s.Exec("INSERT INTO test.account VALUES " + strings.Join(values, ",")); err != nil {
		t.Fatal(err)
	}
	holdRow(t, s, 99) // for cancelled
	return s
}

// A path is a way from the pool to a server.
type proxyPath struct {
	name string
	opts []proxy.Option // of its proxy
}

// proxyPaths are those through a proxy: one behind which the server sees the proxy's
// ports, and one behind which it sees the client's.
func proxyPaths(s *server.Server) []proxyPath {
	all := []proxyPath{{"port rewritten", nil}}
	if s.Kind() != server.MySQL {
		all = append(all, proxyPath{"PROXY header", []proxy.Option{proxy.WithProxyHeader()}})
	}
	return all
}

func (w proxyPath) proxyTo(t testing.TB, s *server.Server) *proxy.Proxy {
	t.Helper()
	p, err := proxy.New(s.Addr(), w.opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// processCache is a server's processlist, a little old: many ask at the same time.
type processCache struct {
	mu   sync.Mutex
	at   time.Time
	list []server.Process
}

var processCaches sync.Map // by *server.Server

func processes(t testing.TB, s *server.Server) []server.Process {
	t.Helper()
	v, _ := processCaches.LoadOrStore(s, new(processCache))
	l := v.(*processCache)
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) > 30*time.Millisecond {
		list, err := s.Processes()
		if err != nil {
			t.Error(err)
		}
		l.at, l.list = time.Now(), list
	}
	return l.list
}

// threadsRunning are the ids of those that run a statement with this text in it.
func threadsRunning(t testing.TB, s *server.Server, text string) (ids []int64) {
	t.Helper()
	for _, p := range processes(t, s) {
		if strings.Contains(p.Info, text) {
			ids = append(ids, int64(p.ID))
		}
	}
	return ids
}

func isThreadAlive(t testing.TB, s *server.Server, id int64) bool {
	t.Helper()
	return slices.ContainsFunc(processes(t, s), func(p server.Process) bool { return p.ID == uint64(id) })
}

// waitWithin waits for a condition, less long than eventually, and tells how long.
func waitWithin(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Errorf("waited %s in vain until %s", limit, what)
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

func killByHand(t testing.TB, s *server.Server, id int64) {
	t.Helper()
	if err := s.Exec(fmt.Sprintf("KILL %d", id)); err != nil && !labtest.IsServerError(err, 1094) {
		t.Error(err)
	}
}

func balance(t testing.TB, s *server.Server, id int) (n int) {
	t.Helper()
	if err := s.QueryRow(fmt.Sprintf("SELECT balance FROM test.account WHERE id = %d", id), &n); err != nil {
		t.Error(err)
	}
	return n
}

func roundMS(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// holdRow locks a row until the function that it returns is called.
func holdRow(t testing.TB, s *server.Server, id int) (release func()) {
	t.Helper()
	tx, err := openPlain(t, s.DSN()).Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE account SET balance = balance WHERE id = ?", id); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	return func() { tx.Rollback() }
}

// queryer is what runs a statement on one connection.
type queryer interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
	PrepareContext(context.Context, string) (*sql.Stmt, error)
}

// queryers run f on one connection of the pool, which f must leave as it is,
// as a sql.Conn, in a transaction or in a session.
var queryers = map[string]func(context.Context, *livepool.Pool, func(queryer) error) error{
	"a conn": func(ctx context.Context, p *livepool.Pool, f func(queryer) error) error {
		c, err := p.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		return f(c)
	},
	"a tx": func(ctx context.Context, p *livepool.Pool, f func(queryer) error) error {
		tx, err := p.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if err := f(tx); err != nil {
			return err
		}
		return tx.Commit()
	},
	"a session": func(ctx context.Context, p *livepool.Pool, f func(queryer) error) error {
		return p.WithSession(ctx, func(_ context.Context, u *livepool.Session) error { return f(u) }, livepool.MaxAttempts(1))
	},
}

// runSleep runs SELECT SLEEP and fails if that was cut short.
func runSleep(ctx context.Context, row *sql.Row) error {
	var n int
	if err := row.Scan(&n); err != nil || n == 0 {
		return err
	}
	return errors.New("SLEEP was interrupted")
}

// cancelledStatement runs a statement that waits for a row lock on c, cancels it when it runs, and
// returns the thread that is left.
func cancelledStatement(t testing.TB, s *server.Server, c *sql.Conn, mark string) (orphan int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.ExecContext(ctx, "UPDATE account SET balance = 0 WHERE id = 99 /* "+mark+" */")
		done <- err
	}()
	labtest.Eventually(t, "it runs", func() bool { return len(threadsRunning(t, s, mark)) == 1 })
	orphan = threadsRunning(t, s, mark)[0]
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.Close()
	return orphan
}

// awaitOrphans waits until the pool has dealt with n orphans.
func awaitOrphans(t testing.TB, p *livepool.Pool, n int64) livepool.Stats {
	t.Helper()
	waitWithin(t, 10*time.Second, fmt.Sprintf("%d orphans are dealt with", n), func() bool {
		st := p.Stats()
		return st.Killed+st.KillUnneeded+st.KillUnproved+st.KillFailed >= n
	})
	return p.Stats()
}
