package behaviour_test

// Servers that take no writes, or no more connections, for a while.

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// testOutageWait has 16 units on 8 connections begin while the server refuses, and says
// what is right: every unit is applied once, the server is not stormed, and the
// operator is told twice.
func testOutageWait(t *testing.T, kind server.Kind, lasts time.Duration, begin func(s *server.Server) (end func()), args ...string) {
	t.Helper()
	s, _ := openLedger(t, kind, args...)
	var log labtest.CapturedLog
	p, k := openCounting(t, s.AppDSN(s.Addr()), func(c *livepool.Config) {
		c.PoolSize, c.MaxOverflow, c.Logger = 8, 0, slog.New(&log)
	})
	began := time.Now()
	end := begin(s)
	wait := labtest.StartUnits(t.Context(), 8, p, labtest.Insert(0))
	time.Sleep(time.Second)
	more := labtest.StartUnits(t.Context(), 8, p, labtest.Insert(1), livepool.MaxAttempts(2))
	time.Sleep(time.Until(began.Add(lasts)))
	end()
	over := time.Now()
	labtest.CheckNoErrors(t, wait())
	labtest.CheckNoErrors(t, more())
	took := time.Since(over)
	if n := count(t, s, "t"); n != 16 {
		t.Errorf("%d rows of 16 units", n)
	}
	dials := k.between(began, time.Now())
	t.Logf("%s: %d connections in an outage of %s; the last unit done %s after it; told: %q", kind, dials, lasts, took.Round(time.Millisecond), log.LinesWith(""))
	if dials > 60 {
		t.Errorf("%d connections", dials)
	}
	if n := len(log.LinesWith("")); n > 6 || len(log.LinesWith("takes")) < 2 {
		t.Errorf("%d lines in the log", n)
	}
	if took > 5*time.Second {
		t.Errorf("the last unit was done %s after the end", took)
	}
}

func TestOutageOfWrites(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			testOutageWait(t, kind, 8*time.Second, func(s *server.Server) func() {
				if err := s.SetReadOnly(true); err != nil {
					t.Fatal(err)
				}
				return func() {
					if err := s.SetReadOnly(false); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

func TestOutageOfRoom(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			testOutageWait(t, kind, 12*time.Second, func(s *server.Server) func() {
				plain := openPlain(t, s.AppDSN(s.Addr()))
				var held []func() error
				for {
					c, err := plain.Conn(t.Context())
					if labtest.IsServerError(err, 1040) {
						break
					} else if err != nil {
						t.Fatal(err)
					}
					held = append(held, c.Close)
				}
				return func() {
					for _, back := range held {
						back()
					}
					plain.Close()
				}
			}, "--max-connections=20")
		})
	}
}

// While writes are refused, those who read are not kept waiting, and a unit that
// has not been refused itself is not either.
func TestReadsGoOnWithoutWrites(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		p, _ := openCounting(t, s.AppDSN(s.Addr()), nil)
		if err := s.SetReadOnly(true); err != nil {
			t.Fatal(err)
		}
		wait := labtest.StartUnits(t.Context(), 4, p, labtest.Insert(1))
		labtest.Eventually(t, "the outage is known", func() bool { return p.Stats().Outages == 1 })
		read := func(ctx context.Context, u *livepool.Session) error {
			return u.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(new(int))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for range 5 {
			if err := p.WithSession(ctx, read, livepool.MaxAttempts(1)); err != nil {
				t.Error(err)
			}
			if err := p.WithSession(ctx, read, livepool.ReadOnly(), livepool.MaxAttempts(1)); err != nil {
				t.Error(err)
			}
		}
		// One that is never to be run twice is told of the refusal at once.
		if err := p.WithSession(ctx, labtest.Insert(2), livepool.MaxAttempts(1)); !labtest.IsServerError(err, 1290) || ctx.Err() != nil {
			t.Errorf("%v (%v), want the refusal before the context ends", err, ctx.Err())
		}
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := p.WithSession(short, labtest.Insert(2)); !errors.Is(err, context.DeadlineExceeded) || !labtest.IsServerError(err, 1290) {
			t.Errorf("%v, want the context's end, and why it was waited for", err)
		}
		if err := s.SetReadOnly(false); err != nil {
			t.Fatal(err)
		}
		labtest.CheckNoErrors(t, wait())
		if n := count(t, s, "t WHERE v = 1"); n != 4 {
			t.Errorf("%d rows of 4 units", n)
		}
	})
}

// A function under Retry waits for its server as a unit does, and for writes.
func TestRetryWaitsForTheServer(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p, _ := openCounting(t, s.AppDSN(via.Addr()), func(c *livepool.Config) { c.OutageWait = 0 })
	write := func(ctx context.Context) error {
		_, err := p.ExecContext(ctx, "INSERT INTO t (v) VALUES (1)")
		return err
	}
	for what, fault := range map[string]struct{ begin, end func() error }{
		"no server": {func() error { via.Refuse(); via.RST(); return nil }, via.Reopen},
		"no writes": {func() error { return s.SetReadOnly(true) }, func() error { return s.SetReadOnly(false) }},
	} {
		if err := fault.begin(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(6*time.Second, func() {
			if err := fault.end(); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		err := p.Retry(t.Context(), write, livepool.Name("a write"), livepool.MaxAttempts(3))
		t.Logf("%s: %v after %s", what, err, time.Since(start).Round(time.Millisecond))
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
