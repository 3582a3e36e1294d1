package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hibiken/asynq"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// MySQL is killed under two workers, of whom one ends before asynq knows that a task is done:
// that is delivered twice, others fail and come again, and each order is paid exactly once.
func TestTasksAreAppliedOnce(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		q := newQueue(t, s)
		dsn := s.DSN() + "?pool_max_elapsed=1s" // less than the outage, so that units fail
		pool, err := livepool.Open(dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if err := createTables(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		q.takeOrders()
		d := &deliveries{Handler: handler(pool), count: map[string]int{}, held: make(chan string), release: make(chan struct{})}
		defer close(d.release)

		stopFirst, firstEnded := work(t, func(ctx context.Context) error { return serve(ctx, q.uri, d) })
		q.enqueue(100)
		held := <-d.held
		stopSecond, secondEnded := work(t, func(ctx context.Context) error { return serve(ctx, q.uri, d) })
		stopFirst() // it gives up what it holds after 8 seconds
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		q.enqueue(100)
		labtest.Eventually(t, "a task is to come again, and the outage has used none of its deliveries up", func() bool {
			tasks, err := q.look.ListRetryTasks("default")
			return err == nil && slices.ContainsFunc(tasks, func(task *asynq.TaskInfo) bool { return task.Retried == 0 })
		})
		if err := <-firstEnded; err != nil {
			t.Error(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		q.awaitEmpty()
		stopSecond()
		if err := <-secondEnded; err != nil {
			t.Error(err)
		}
		n := d.of(held)
		t.Logf("task %s was delivered %d times: once done, then while the server was away, then found done", held, n)
		if n < 2 {
			t.Error("it was not delivered again")
		}
		q.check(0)

		// The whole program; and an order that does not exist is not tried again.
		stop, ended := work(t, func(ctx context.Context) error { return run(ctx, dsn, q.uri) })
		q.enqueue(10)
		if _, err := q.tasks.Enqueue(newTask(9999)); err != nil {
			t.Fatal(err)
		}
		q.awaitEmpty()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		q.check(1)
	})
}

// work runs a worker until it is told to stop.
func work(t *testing.T, f func(context.Context) error) (stop func(), ended <-chan error) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return stop, done
}

// deliveries counts the deliveries of each task. The first task that is done is held: asynq
// does not get to know.
type deliveries struct {
	asynq.Handler

	held    chan string
	release chan struct{}
	holds   atomic.Bool

	mu    sync.Mutex
	count map[string]int // guarded by mu
}

func (d *deliveries) ProcessTask(ctx context.Context, task *asynq.Task) error {
	id, _ := asynq.GetTaskID(ctx)
	d.mu.Lock()
	d.count[id]++
	d.mu.Unlock()
	err := d.Handler.ProcessTask(ctx, task)
	if err == nil && d.holds.CompareAndSwap(false, true) {
		d.held <- id
		<-d.release
	}
	return err
}

func (d *deliveries) of(id string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count[id]
}

// A queue is the other side: who takes orders, and looks at what becomes of the tasks.
type queue struct {
	t      *testing.T
	s      *server.Server
	uri    string
	tasks  *asynq.Client
	look   *asynq.Inspector
	orders int // enqueued so far; their ids are 1, 2, ...
}

const allOrders = 210

func newQueue(t *testing.T, s *server.Server) *queue {
	t.Helper()
	uri := servertest.RunRedis(t).URI()
	opt, err := asynq.ParseRedisURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	q := &queue{t: t, s: s, uri: uri, tasks: asynq.NewClient(opt), look: asynq.NewInspector(opt)}
	t.Cleanup(func() { q.tasks.Close(); q.look.Close() })
	return q
}

// takeOrders needs the server, which may be away when they are enqueued.
func (q *queue) takeOrders() {
	q.t.Helper()
	for id := 1; id <= allOrders; id++ {
		if err := q.s.Exec("INSERT INTO example_orders VALUES (?, ?)", id, 100+id); err != nil {
			q.t.Fatal(err)
		}
	}
}

func (q *queue) enqueue(n int) {
	q.t.Helper()
	for range n {
		q.orders++
		if _, err := q.tasks.Enqueue(newTask(int64(q.orders))); err != nil {
			q.t.Fatal(err)
		}
	}
}

func (q *queue) awaitEmpty() {
	q.t.Helper()
	labtest.Eventually(q.t, "no task is left", func() bool {
		info, err := q.look.GetQueueInfo("default")
		return err == nil && info.Pending+info.Active+info.Scheduled+info.Retry == 0
	})
}

// check counts the payments: one for each order, and no task has been given up but those.
func (q *queue) check(archived int) {
	q.t.Helper()
	var payments, orders, wrong int
	if err := q.s.QueryRow("SELECT COUNT(*), COUNT(DISTINCT order_id), COALESCE(SUM(p.cents <> o.cents), 0) FROM example_payments p JOIN example_orders o ON o.id = p.order_id",
		&payments, &orders, &wrong); err != nil {
		q.t.Fatal(err)
	}
	if payments != q.orders || orders != q.orders || wrong != 0 {
		q.t.Errorf("%d payments of %d orders, %d of a wrong sum; %d were enqueued", payments, orders, wrong, q.orders)
	}
	given, err := q.look.ListArchivedTasks("default")
	if err != nil || len(given) != archived {
		q.t.Errorf("%d tasks are archived, want %d; %v", len(given), archived, err)
	}
	for _, task := range given {
		if task.ID != "pay:9999" || !strings.Contains(task.LastErr, "order 9999: sql: no rows") {
			q.t.Errorf("task %s is archived: %s", task.ID, task.LastErr)
		}
	}
}
