// Command asynq is a worker on asynq, whose tasks are delivered at least once, and applied
// once.
//
//	DSN='app:secret@tcp(db:3306)/shop?pool_size=8' REDIS='redis://redis:6379' go run ./examples/asynq
//
// Its tables: example_orders (id BIGINT PRIMARY KEY, cents BIGINT), example_payments
// (order_id BIGINT, cents BIGINT), and livepool_commits. It creates those that are missing.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/hibiken/asynq"

	"github.com/livepool/livepool"
)

const payOrder = "order:pay" // the type of the tasks

// newTask is what the program that takes orders enqueues: the id of the order, never the
// order. It is the task's id, too, so that asynq refuses a second one while the first is there.
func newTask(order int64) *asynq.Task {
	id := strconv.FormatInt(order, 10)
	return asynq.NewTask(payOrder, []byte(id), asynq.TaskID("pay:"+id))
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Getenv("DSN"), os.Getenv("REDIS"))
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dsn, redis string) error {
	pool, err := livepool.Open(dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := createTables(ctx, pool); err != nil {
		return err
	}
	return serve(ctx, redis, handler(pool))
}

// createTables waits for a server that is away.
func createTables(ctx context.Context, pool *livepool.Pool) error {
	return pool.Retry(ctx, func(ctx context.Context) error {
		_, err1 := pool.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS example_orders (id BIGINT PRIMARY KEY, cents BIGINT NOT NULL)")
		_, err2 := pool.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS example_payments (order_id BIGINT NOT NULL, cents BIGINT NOT NULL)")
		return errors.Join(err1, err2, pool.CreateCommitTable(ctx))
	})
}

// serve handles tasks until ctx ends. Those under way then have 8 seconds (ShutdownTimeout);
// what is not done by then is delivered to another worker.
func serve(ctx context.Context, redis string, h asynq.Handler) error {
	opt, err := asynq.ParseRedisURI(redis)
	if err != nil {
		return err
	}
	server := asynq.NewServer(opt, asynq.Config{
		Concurrency:              8, // the pool's size, so that no task waits for a connection
		DelayedTaskCheckInterval: time.Second,
		RetryDelayFunc: func(retried int, _ error, _ *asynq.Task) time.Duration {
			return min(time.Second<<min(retried, 6), time.Minute) // asynq's own begins with half a minute
		},
		// An outage is not the task's fault, and uses none of its deliveries up.
		IsFailure: func(err error) bool { return !errors.Is(err, livepool.ErrUnreachable) },
	})
	if err := server.Start(h); err != nil {
		return err
	}
	<-ctx.Done()
	server.Shutdown()
	return nil
}

// handler applies each task once. asynq delivers again whatever returns an error, unless that
// is SkipRetry, which archives it.
func handler(pool *livepool.Pool) asynq.Handler {
	job := livepool.Job(pool, pay, livepool.OncePerID("pay"), livepool.Name("pay"))
	mux := asynq.NewServeMux()
	mux.HandleFunc(payOrder, func(ctx context.Context, t *asynq.Task) error {
		order, err := strconv.ParseInt(string(t.Payload()), 10, 64)
		if err == nil {
			err = job(ctx, order)
		}
		// After ErrCommitUnknown the next delivery finds out by the key.
		if err == nil || livepool.Retryable(err) || errors.Is(err, livepool.ErrCommitUnknown) {
			return err
		}
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	})
	return mux
}

// pay is the job itself. It reads the order as it is now, in its own transaction.
func pay(ctx context.Context, s *livepool.Session, order int64) error {
	var cents int64
	if err := s.QueryRowContext(ctx, "SELECT cents FROM example_orders WHERE id = ? FOR UPDATE", order).Scan(&cents); err != nil {
		return fmt.Errorf("order %d: %w", order, err)
	}
	_, err := s.ExecContext(ctx, "INSERT INTO example_payments (order_id, cents) VALUES (?, ?)", order, cents)
	return err
}
