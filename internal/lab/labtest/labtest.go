package labtest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
)

// RunLoad has workers run statements one after the other for so long, with a pause
// after each, and counts those that succeeded within the time.
func RunLoad(db *sql.DB, workers int, lasts, pause time.Duration) (done int64) {
	var n atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(lasts)
	for range workers {
		wg.Go(func() {
			for time.Now().Before(end) {
				if _, err := db.Exec("DO 1"); err == nil && time.Now().Before(end) {
					n.Add(1)
				}
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	return n.Load()
}

// ReturnsWithin fails the test if f takes longer.
func ReturnsWithin(t *testing.T, what string, limit time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
		t.Logf("%s: %s", what, time.Since(start).Round(time.Millisecond))
	case <-time.After(limit):
		t.Fatalf("%s hangs", what)
	}
}

// Open opens a pool on a connector with the defaults as changed by change.
func Open(t testing.TB, c driver.Connector, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg := livepool.NewConfig()
	if change != nil {
		change(cfg)
	}
	p, err := livepool.OpenConnector(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20s in vain until %s", what)
		}
	}
}

// IsServerError says whether err is this error of the server.
func IsServerError(err error, number uint16) bool {
	var my *mysql.MySQLError
	return errors.As(err, &my) && my.Number == number
}

// UnitFunc is the function of a unit of work.
type UnitFunc = func(context.Context, *livepool.Session) error

// Insert is a unit that inserts v into the table t.
func Insert(v int) UnitFunc {
	return func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "INSERT INTO t (v) VALUES (?)", v)
		return err
	}
}

// Work is a unit of one statement.
func Work(ctx context.Context, s *livepool.Session) error {
	_, err := s.ExecContext(ctx, "DO 1")
	return err
}

// NetTimeoutError is what net.Dialer makes of a deadline: it is a
// context.DeadlineExceeded, whosever deadline it was.
type NetTimeoutError struct{}

func (NetTimeoutError) Error() string     { return "i/o timeout" }
func (NetTimeoutError) Timeout() bool     { return true }
func (NetTimeoutError) Temporary() bool   { return true }
func (NetTimeoutError) Is(err error) bool { return err == context.DeadlineExceeded }

// StartUnits starts n units and returns a function that waits for them and returns
// their errors.
func StartUnits(ctx context.Context, n int, p *livepool.Pool, fn UnitFunc, opts ...livepool.SessionOption) (wait func() []error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = p.WithSession(ctx, fn, opts...) })
	}
	return func() []error { wg.Wait(); return errs }
}

// CheckNoErrors fails the test if there are errors: it tells how many there are, and the first.
func CheckNoErrors(t *testing.T, errs []error) {
	t.Helper()
	var first error
	n := 0
	for _, err := range errs {
		if err != nil {
			n++
			if first == nil {
				first = err
			}
		}
	}
	if n > 0 {
		t.Errorf("%d of %d units failed, the first with: %v", n, len(errs), first)
	}
}
