// Command worker is a whole job worker to copy: it polls an inbox, applies each job once
// whatever happens to the server meanwhile, says whether it is ready, shows its counters,
// forgets old keys, and on SIGTERM ends what it has begun.
//
//	DSN='app:secret@tcp(db:3306)/shop?pool_size=8' go run ./examples/worker
//
// Its tables: inbox (id BIGINT PRIMARY KEY, account BIGINT, cents BIGINT, failed TEXT),
// accounts (id BIGINT PRIMARY KEY, balance BIGINT), and livepool_commits, which it creates.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/livepool/livepool"
)

const (
	workers   = 8                      // jobs at a time
	pollEvery = 200 * time.Millisecond // while the inbox is empty, or the database is away
	jobTime   = time.Minute            // for one delivery, with all its attempts
	keepKeys  = 7 * 24 * time.Hour     // beyond any redelivery
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Getenv("DSN"), ":8080")
	stop()
	if err != nil {
		slog.Error("the worker ends", "error", err)
		os.Exit(1)
	}
}

// run works until ctx ends, and then ends the jobs under way.
func run(ctx context.Context, dsn, listen string) error {
	db, err := livepool.Open(dsn)
	if err != nil {
		return err
	}
	defer shutDown(db)
	// A refused login, or a table that cannot be had, passes for no job: it ends the worker
	// here, before it takes one. A server that is away is waited for.
	if err := db.Retry(ctx, db.CreateCommitTable, livepool.Name("the commit table")); err != nil {
		return err
	}
	server := &http.Server{Addr: listen, Handler: handler(db), ReadHeaderTimeout: time.Second}
	go func() {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("nobody can ask whether the worker is ready", "error", err)
		}
	}()
	defer server.Close()

	go purge(ctx, db)
	for ctx.Err() == nil {
		if done := round(ctx, db); done == 0 {
			wait(ctx, pollEvery)
		}
	}
	return nil
}

// shutDown lets end what is under way, the purge for example.
func shutDown(db *livepool.Pool) {
	ctx, cancel := context.WithTimeout(context.Background(), jobTime)
	defer cancel()
	if err := db.Shutdown(ctx); err != nil {
		slog.Warn("the worker does not wait any longer", "error", err)
		db.Close()
	}
}

// job is a row of the inbox. Its id is the key by which it is applied once.
type job struct{ id, account, cents int64 }

// round reads the inbox, delivers its jobs, a few at a time, and says how many are done
// with. When ctx ends it begins no more of them, and waits for those under way. A job that
// other replicas of this program deliver too is applied once: Once sorts that out.
func round(ctx context.Context, db *livepool.Pool) (done int64) {
	batch, err := next(ctx, db)
	if err != nil && ctx.Err() == nil {
		slog.Warn("the inbox cannot be read", "error", err)
	}
	var ending sync.WaitGroup
	var count atomic.Int64
	free := make(chan struct{}, workers)
	for _, j := range batch {
		free <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		ending.Go(func() {
			if deliver(db, j) {
				count.Add(1)
			}
			<-free
		})
	}
	ending.Wait()
	return count.Load()
}

func next(ctx context.Context, db *livepool.Pool) (batch []job, err error) {
	rows, err := db.QueryContext(ctx, "SELECT id, account, cents FROM inbox WHERE failed IS NULL ORDER BY id LIMIT 100")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var j job
		if err := rows.Scan(&j.id, &j.account, &j.cents); err != nil {
			return nil, err
		}
		batch = append(batch, j)
	}
	return batch, rows.Err()
}

// deliver applies a job, and takes it out of the inbox unless it is to come again. SIGTERM
// does not cut it short: it has its own time.
func deliver(db *livepool.Pool, j job) (done bool) {
	ctx, cancel := context.WithTimeout(context.Background(), jobTime)
	defer cancel()
	err := apply(ctx, db, j)
	switch {
	case err == nil:
	case livepool.Retryable(err), errors.Is(err, livepool.ErrCommitUnknown):
		slog.Warn("the job comes again", "job", j.id, "error", err)
		return false // it is still in the inbox
	default:
		// Nothing was applied. It stays in the inbox for a person: the fault may be the job's,
		// or that of the set-up, such as a right that was taken away.
		slog.Error("the job is set aside", "job", j.id, "error", err)
		_, err := db.ExecContext(livepool.Idempotent(ctx), "UPDATE inbox SET failed = ? WHERE id = ?", err.Error(), j.id)
		return err == nil
	}
	// Deleting twice does no harm, and a delete that is lost costs one more delivery.
	if _, err := db.ExecContext(livepool.Idempotent(ctx), "DELETE FROM inbox WHERE id = ?", j.id); err != nil {
		slog.Warn("the job comes again, and will be found applied", "job", j.id, "error", err)
	}
	return true
}

// apply is the job itself: all of it, once.
func apply(ctx context.Context, db *livepool.Pool, j job) error {
	return db.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		res, err := s.ExecContext(ctx, "UPDATE accounts SET balance = balance + ? WHERE id = ?", j.cents, j.account)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err == nil && n != 1 {
			err = fmt.Errorf("account %d does not exist", j.account)
		}
		return err
	}, livepool.Once(fmt.Sprint("inbox:", j.id)), livepool.Name("inbox"))
}

// wait waits for d, or for the end of ctx.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// purge removes the keys of jobs that cannot come again.
func purge(ctx context.Context, db *livepool.Pool) {
	for ctx.Err() == nil {
		if n, err := db.PurgeCommits(ctx, keepKeys); err != nil && ctx.Err() == nil {
			slog.Warn("old keys were not all removed", "removed", n, "error", err)
		}
		wait(ctx, time.Hour)
	}
}

// handler answers the orchestrator and the scraper.
func handler(db *livepool.Pool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/live", func(http.ResponseWriter, *http.Request) {}) // restarting this program heals no database
	mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		if err := db.Ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		st := db.Stats()
		for _, m := range []struct {
			name  string
			value int64
		}{
			{"connections_in_use", int64(st.InUse)}, {"connections_idle", int64(st.Idle)},
			{"deaths_total", st.Deaths}, {"outages_total", st.Outages}, {"retried_total", st.Retried},
			{"sessions_timed_out_total", st.SessionsTimedOut}, {"commits_unknown_total", st.CommitsUnknown},
			{"commits_resolved_total", st.CommitsResolved}, {"kill_unproved_total", st.KillUnproved},
		} {
			fmt.Fprintf(w, "livepool_%s %d\n", m.name, m.value)
		}
	})
	return mux
}
