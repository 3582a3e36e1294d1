package labtest

import (
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
)

// AwaitDisconnect waits until the server has closed the connections of the tests' user.
func AwaitDisconnect(t testing.TB, s *server.Server) {
	t.Helper()
	Eventually(t, "the server has closed the connections", func() bool {
		list, err := s.Processes()
		return err == nil && !slices.ContainsFunc(list, func(p server.Process) bool { return p.User == server.User })
	})
}

// RestartUnderWorkers has workers do something again and again while the server is killed,
// and started when it was down for as long as downs say. Errors are only for those that were in
// the middle, at most one for each worker and restart; where the server needs longer to
// start than OutageWait, who has waited that long is told so. whileDown is called before
// each start, down since began. It returns how many calls succeeded, and how many failed.
func RestartUnderWorkers(t *testing.T, s *server.Server, workers int, do func() error, whileDown func(began time.Time), downs ...time.Duration) (succeeded, failures int64) {
	t.Helper()
	var stop atomic.Bool
	var done, failed, vain atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for !stop.Load() {
				if err := do(); err == nil {
					done.Add(1)
				} else if strings.Contains(err.Error(), "pool_outage_wait") {
					vain.Add(1)
				} else if failed.Add(1); errors.As(err, new(*mysql.MySQLError)) || errors.Is(err, sql.ErrConnDone) {
					t.Log(err)
				}
			}
		})
	}
	for _, down := range downs {
		time.Sleep(300 * time.Millisecond)
		before, beforeVain, began := failed.Load(), vain.Load(), time.Now()
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(down)
		whileDown(began)
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		restarted := done.Load()
		Eventually(t, "work goes on", func() bool { return done.Load() > restarted+50 })
		errs, late, lasted := failed.Load()-before, vain.Load()-beforeVain, time.Since(began)
		t.Logf("%d errors in a restart after %s; %d waited in vain in %s", errs, down, late, lasted)
		if errs > int64(workers) {
			t.Errorf("%d errors of %d workers, of which one each is in the middle", errs, workers)
		}
		if late > int64(workers)*int64(lasted/livepool.NewConfig().OutageWait) {
			t.Errorf("%d gave up within %s", late, lasted)
		}
	}
	stop.Store(true)
	wg.Wait()
	return done.Load(), failed.Load()
}
