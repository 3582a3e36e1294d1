// Command cron runs a job every hour with robfig/cron. The key of its unit names the hour:
// two replicas of this program apply it once.
//
//	DSN='app:secret@tcp(db:3306)/shop' go run ./examples/cron
//
// It leaves tables example_accounts, example_interest and livepool_commits.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/livepool/livepool"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Getenv("DSN"), "@hourly", slog.Default())
	stop()
	if err != nil {
		slog.Error("the program ends", "error", err)
		os.Exit(1)
	}
}

// run runs the job when it is due, until ctx ends. A run that is under way then comes to its end.
func run(ctx context.Context, dsn, spec string, log *slog.Logger) error {
	pool, err := livepool.Open(dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := createTables(ctx, pool); err != nil {
		return err
	}
	schedule, err := cron.ParseStandard(spec)
	if err != nil {
		return err
	}
	c := start(pool, schedule, log)
	<-ctx.Done()
	<-c.Stop().Done()
	return nil
}

// createTables waits for a server that is away.
func createTables(ctx context.Context, pool *livepool.Pool) error {
	return pool.Retry(ctx, func(ctx context.Context) error {
		_, err1 := pool.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS example_accounts (id BIGINT PRIMARY KEY, cents BIGINT NOT NULL)")
		_, err2 := pool.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS example_interest (account BIGINT NOT NULL, due DATETIME NOT NULL, cents BIGINT NOT NULL)")
		return errors.Join(err1, err2, pool.CreateCommitTable(ctx))
	})
}

// start starts the scheduler. A run that is due while the one before still waits for the
// server is skipped, and logged as skipped.
func start(pool *livepool.Pool, schedule cron.Schedule, log *slog.Logger) *cron.Cron {
	c := cron.New(cron.WithLocation(time.UTC), cron.WithChain(cron.SkipIfStillRunning(logger{log})))
	var id cron.EntryID
	id = c.Schedule(schedule, cron.FuncJob(func() {
		due := c.Entry(id).Prev.Format(time.DateTime) // the same for all replicas, unlike time.Now
		switch err := addInterest(context.Background(), pool, due); {
		case err == nil:
			log.Info("done", "due", due)
		case errors.Is(err, livepool.ErrAlreadyApplied):
			log.Info("done by another", "due", due)
		default: // a run by hand with the same key is safe, whatever the error says
			log.Error("failed", "due", due, "error", err)
		}
	}))
	c.Start()
	return c
}

// addInterest is the job: all of it, once for each time at which it is due.
func addInterest(ctx context.Context, pool *livepool.Pool, due string) error {
	return pool.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "INSERT INTO example_interest SELECT id, ?, cents DIV 1000 FROM example_accounts", due)
		if err != nil {
			return err
		}
		_, err = s.ExecContext(ctx, "UPDATE example_accounts SET cents = cents + cents DIV 1000")
		return err
	}, livepool.Once("interest:"+due), livepool.ReportApplied(), livepool.Name("interest"))
}

// logger has cron log a run that is skipped, by the word skip.
type logger struct{ *slog.Logger }

func (l logger) Error(err error, text string, args ...any) {
	l.Logger.Error(text, append(args, "error", err)...)
}
