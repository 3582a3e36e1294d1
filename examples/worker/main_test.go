package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// The worker goes on over a server that is killed twice: each job is applied once, it is
// not ready meanwhile, and when it is told to end it leaves nothing half done.
func TestWorkerSurvivesItsServer(t *testing.T) {
	const accounts, cents = 20, 5
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, query := range []string{
			"CREATE TABLE test.inbox (id BIGINT AUTO_INCREMENT PRIMARY KEY, account BIGINT NOT NULL, cents BIGINT NOT NULL, failed TEXT)",
			"CREATE TABLE test.accounts (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL)",
		} {
			if err := s.Exec(query); err != nil {
				t.Fatal(err)
			}
		}
		for id := range accounts {
			if err := s.Exec("INSERT INTO test.accounts VALUES (?, 0)", id); err != nil {
				t.Fatal(err)
			}
		}
		enqueued := 0
		enqueue := func(n int) {
			t.Helper()
			rows := make([]string, n)
			for i := range rows {
				rows[i] = fmt.Sprintf("(%d, %d)", i%accounts, cents)
			}
			if err := s.Exec("INSERT INTO test.inbox (account, cents) VALUES " + strings.Join(rows, ", ")); err != nil {
				t.Fatal(err)
			}
			enqueued += n
		}
		listen := freePort(t)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- run(ctx, s.DSN(), listen) }()

		enqueue(200)
		labtest.Eventually(t, "the worker is ready and works", func() bool { return ready(t, listen) && left(t, s) < 200 })
		for range 2 {
			enqueue(300)
			time.Sleep(100 * time.Millisecond) // in the middle of them
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, "the worker says that it is not ready", func() bool { return !ready(t, listen) })
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, "the worker is ready again, and the inbox empty", func() bool { return ready(t, listen) && left(t, s) == 0 })
		}
		if text := get(t, listen, "/metrics"); !strings.Contains(text, "livepool_outages_total") {
			t.Errorf("metrics are %q", text)
		}
		// A job for an account that does not exist will not pass: it is set aside, and no other waits for it.
		if err := s.Exec("INSERT INTO test.inbox (account, cents) VALUES (999, 1)"); err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, "the job that will not pass is set aside", func() bool { return left(t, s) == 0 })
		var why string
		if err := s.QueryRow("SELECT failed FROM test.inbox WHERE account = 999", &why); err != nil || !strings.Contains(why, "does not exist") {
			t.Errorf("it failed for %q, %v", why, err)
		}

		enqueue(500)
		labtest.Eventually(t, "the worker is in the middle of them", func() bool { return left(t, s) < 490 })
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		var balance, keys, waiting int
		for query, dest := range map[string]*int{
			"SELECT SUM(balance) FROM test.accounts":               &balance,
			"SELECT COUNT(*) FROM test.livepool_commits":           &keys,
			"SELECT COUNT(*) FROM test.inbox WHERE failed IS NULL": &waiting,
		} {
			if err := s.QueryRow(query, dest); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d jobs, %d applied, %d still in the inbox", enqueued, keys, waiting)
		if balance != keys*cents || keys+waiting < enqueued || keys > enqueued {
			t.Errorf("%d jobs: %d keys, %d in the inbox, the balance is %d: want each applied once, or still there", enqueued, keys, waiting, balance)
		}
		labtest.AwaitDisconnect(t, s)
	})
}

func left(t *testing.T, s *server.Server) (n int) {
	t.Helper()
	if err := s.QueryRow("SELECT COUNT(*) FROM test.inbox WHERE failed IS NULL", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func ready(t *testing.T, addr string) bool {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/ready")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func get(t *testing.T, addr, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
