package main

import (
	"context"
	"database/sql"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Two replicas on a server that closes their connections between the runs, and is killed.
// Each time at which a run was due has it applied once, or says that it was skipped.
func TestRunsAreAppliedOnce(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		dsn := s.DSN() + "?pool_keepalive=0&pool_max_elapsed=2m&pool_timeout=2m"
		replicas := []*replica{startReplica(t, dsn), startReplica(t, dsn)}
		if err := s.Exec("INSERT INTO example_accounts VALUES (1, 100000), (2, 200000)"); err != nil {
			t.Fatal(err)
		}
		awaitRun(t, s)
		labtest.AwaitDisconnect(t, s)
		awaitRun(t, s)

		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, "a run that waits for the server has the next one skipped", func() bool {
			return len(replicas[0].lines("skip")) > 0 && len(replicas[1].lines("skip")) > 0
		})
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		awaitRun(t, s)

		var applied []string
		for _, r := range replicas {
			<-r.cron.Stop().Done()
			done, byOther, skipped := r.lines("done"), r.lines("done by another"), r.lines("skip")
			if failed := r.lines("failed"); len(failed) > 0 {
				t.Errorf("failed: %q", failed)
			}
			if n := len(done) + len(byOther) + len(skipped); n != r.due() {
				t.Errorf("%d runs were due, of which %d are told of: done %q, by the other %q, %d skipped", r.due(), n, done, byOther, len(skipped))
			}
			applied = append(applied, done...)
			for _, due := range byOther {
				if !slices.Contains(append(replicas[0].lines("done"), replicas[1].lines("done")...), due) {
					t.Errorf("the run of %s is said to be done by the other", due)
				}
			}
		}
		slices.Sort(applied)
		var want []string
		for _, due := range applied {
			want = append(want, due, due) // two accounts
		}
		if got := rows(t, s.DSN()); !slices.Equal(got, want) {
			t.Errorf("interest was added at %q, want %q", got, want)
		}
		testProgram(t, dsn)
	}, "--wait-timeout=1")
}

// testProgram has the whole program run until it has done something.
func testProgram(t *testing.T, dsn string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended, log := make(chan error, 1), &labtest.CapturedLog{}
	go func() { ended <- run(ctx, dsn, "@every 1s", slog.New(log)) }()
	labtest.Eventually(t, "the program has run its job", func() bool { return len(log.LinesWith("done")) > 0 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A replica of the program. It counts how often a run was due.
type replica struct {
	cron.Schedule

	log   labtest.CapturedLog
	asked atomic.Int64 // when the next run is due: before the first, and at each
	cron  *cron.Cron
}

func startReplica(t *testing.T, dsn string) *replica {
	t.Helper()
	pool, err := livepool.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	if err := createTables(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	parser := cron.NewParser(cron.Second | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
	everyThird, err := parser.Parse("*/3 * * * * *") // seconds
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{Schedule: everyThird}
	r.cron = start(pool, r, slog.New(&r.log))
	return r
}

func (r *replica) Next(now time.Time) time.Time {
	r.asked.Add(1)
	return r.Schedule.Next(now)
}

func (r *replica) due() int { return int(r.asked.Load()) - 1 }

// lines are when those runs were due of which the log says this, as far as it tells.
func (r *replica) lines(text string) (due []string) {
	for _, line := range r.log.LinesWith(text) {
		if said, rest, _ := strings.Cut(line, "\n"); said == text {
			due = append(due, strings.TrimPrefix(rest, "due="))
		}
	}
	return due
}

// awaitRun waits for another run that is applied.
func awaitRun(t *testing.T, s *server.Server) {
	t.Helper()
	before := rows(t, s.DSN())
	labtest.Eventually(t, "a run is applied", func() bool { return len(rows(t, s.DSN())) > len(before) })
}

// rows are when interest was due that was added, as the server has it.
func rows(t *testing.T, dsn string) (due []string) {
	t.Helper()
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found, err := db.Query("SELECT due FROM example_interest ORDER BY due")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	for found.Next() {
		var at string
		if err := found.Scan(&at); err != nil {
			t.Fatal(err)
		}
		due = append(due, at)
	}
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return due
}
