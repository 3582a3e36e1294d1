package behaviour_test

// The commit table: a unit of work is applied at most once.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// One key, one effect, and success for all.
func TestOnceAmongManyAtTheSameTime(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.DSN(), "")
		if err := p.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("order 1")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := count(t, s, "t"); n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
		ran := false
		if err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { ran = true; return nil }, livepool.Once("order 1")); err != nil || ran {
			t.Errorf("a redelivery: %v, fn ran: %v", err, ran)
		}
		if err := p.WithSession(t.Context(), labtest.Insert(2), livepool.Once("order 2")); err != nil || count(t, s, "t") != 2 {
			t.Errorf("another key: %v, %d rows", err, count(t, s, "t"))
		}
	})
}

// The client dies between COMMIT and its reply; the job is delivered again, to
// another process.
func TestOnceSurvivesACrashOfTheClient(t *testing.T) {
	if dsn := os.Getenv("LIVEPOOL_TEST_ONCE_DSN"); dsn != "" {
		p, err := livepool.Open(dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		fmt.Println("unit:", p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("order 1")))
		return
	}
	s, p := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	cut := via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.Stall)
	worker := func(dsn string) *exec.Cmd {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "LIVEPOOL_TEST_ONCE_DSN="+dsn)
		return cmd
	}
	first := worker(s.DSNVia(via.Addr()))
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	<-cut.Done()
	first.Process.Kill()
	first.Wait()
	if n := count(t, s, "t"); n != 1 {
		t.Fatalf("%d rows after the crash, want 1: its COMMIT had arrived", n)
	}
	out, err := worker(s.DSN()).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "unit: <nil>") {
		t.Errorf("the redelivery: %v\n%s", err, out)
	}
	if n := count(t, s, "t"); n != 1 {
		t.Errorf("%d rows after the redelivery, want 1", n)
	}
	if n, err := p.PurgeCommits(t.Context(), 0); err != nil || n != 1 {
		t.Errorf("purged %d, %v, want 1", n, err)
	}
	if n, err := p.PurgeCommits(t.Context(), time.Hour); err != nil || n != 0 {
		t.Errorf("purged %d, %v, want none", n, err)
	}
}

func TestMissingCommitTableSaysWhatToDo(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "")
	err := p.WithSession(t.Context(), labtest.Insert(1), livepool.VerifyCommit())
	if err == nil || !strings.Contains(err.Error(), "CreateCommitTable") {
		t.Errorf("got %v", err)
	}
}

// AfterCommit of a unit whose COMMIT was lost runs when it is known to have
// happened.
func TestAfterCommitOfAResolvedCommit(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	var hooks atomic.Int32
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		s.AfterCommit(func(context.Context) { hooks.Add(1) })
		return labtest.Insert(1)(ctx, s)
	}, livepool.VerifyCommit()); err != nil {
		t.Fatal(err)
	}
	if hooks.Load() != 1 || count(t, s, "t") != 1 {
		t.Errorf("AfterCommit ran %d times, %d rows, want one of each", hooks.Load(), count(t, s, "t"))
	}
	if st := p.Stats(); st.CommitsUnknown != 1 || st.CommitsResolved != 1 {
		t.Errorf("unknown %d, resolved %d, want 1 and 1", st.CommitsUnknown, st.CommitsResolved)
	}
}

// The outcome could be known: one insert of the key would tell.
func TestUnitOnceWithOneAttempt(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	if err := p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("k"), livepool.MaxAttempts(1)); errors.Is(err, livepool.ErrCommitUnknown) {
		t.Errorf("unknown, although it has a key: %v", err)
	}
}

// The context ends while COMMIT waits for an answer that does not come.
func TestUnitOnceContextEndsInCommit(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "pool_commit_timeout=300ms")
	ctx, cancel := context.WithCancel(t.Context())
	cut := via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.Stall)
	go func() { <-cut.Done(); cancel() }()
	err := p.WithSession(ctx, labtest.Insert(1), livepool.Once("k"))
	if !errors.Is(err, livepool.ErrCommitUnknown) {
		t.Errorf("%d rows, %v", count(t, s, "t"), err)
	}
	if text := fmt.Sprint(err); !strings.Contains(text, "deliver it again: its key tells") || strings.Contains(text, "look at the data") {
		t.Errorf("what to do is told as %v", err)
	}
}

// The key insert is cut in every way; the pool has one connection.
func TestUnitKeyInsertLost(t *testing.T) {
	for name, how := range map[string]proxy.Fault{"FIN": proxy.FIN, "RST": proxy.RST, "server side": proxy.KillServerSide} {
		for _, after := range []bool{false, true} {
			s, _ := openLedger(t, server.MariaDB, "--innodb-lock-wait-timeout=1")
			via := proxyTo(t, s)
			p := open(t, s.DSNVia(via.Addr()), "pool_size=1&pool_max_overflow=0&readTimeout=1s")
			m := proxy.QueryPrefix("INSERT INTO `test`.`livepool_commits`")
			if after {
				via.CutAfter(m, how)
			} else {
				via.CutBefore(m, how)
			}
			var hooks atomic.Int32
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				s.AfterCommit(func(context.Context) { hooks.Add(1) })
				return labtest.Insert(1)(ctx, s)
			}, livepool.Once("k"))
			if n := count(t, s, "t"); err != nil || n != 1 || hooks.Load() != 1 {
				t.Errorf("%s, after %v: %d rows, %d hooks, %v", name, after, n, hooks.Load(), err)
			}
		}
	}
}

func TestUnitEmptyKey(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	e := errors.Join(p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("")), p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("")))
	if n := count(t, s, "t"); n != 1 && e == nil {
		t.Errorf("Once(\"\") twice: %d rows and no error", n)
	}
}

// A key that was committed by a DDL: the redelivery is told that all is done.
func TestUnitOnceWithDDL(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	first := true
	unit := func(ctx context.Context, sess *livepool.Session) error {
		if _, err := sess.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS u (v INT)"); err != nil {
			return err
		}
		if first {
			first = false
			return errors.New("something passing")
		}
		return labtest.Insert(1)(ctx, sess)
	}
	err1 := p.WithSession(t.Context(), unit, livepool.Once("k"))
	err2 := p.WithSession(t.Context(), unit, livepool.Once("k"))
	if n := count(t, s, "t"); err2 == nil && n == 0 {
		t.Errorf("nil with zero rows; first %v, second %v", err1, err2)
	}
}

// What bun writes, with the values in the text: without multiStatements the
// server takes it for one statement, whatever is in it.
func TestUnitTextWithSemicolonsInAKeyedUnit(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	if err := s.Exec("CREATE TABLE test.doc (v TEXT)"); err != nil {
		t.Fatal(err)
	}
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		for _, v := range []string{`{"a": "line\\nof; text"}`, `<style>a{b:c;}</style> /*! c */`} {
			if _, err := s.ExecContext(ctx, "INSERT INTO doc VALUES ('"+v+"')"); err != nil {
				return err
			}
		}
		return nil
	}, livepool.VerifyCommit())
	if n := count(t, s, "doc"); err != nil || n != 2 {
		t.Errorf("%d rows: %v", n, err)
	}
	several := open(t, s.DSN(), "multiStatements=true")
	err = several.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "INSERT INTO doc VALUES ('3'); COMMIT")
		return err
	}, livepool.VerifyCommit())
	if n := count(t, s, "doc"); err == nil || n != 2 {
		t.Errorf("several statements, where the server takes them: %d rows, %v", n, err)
	}
}

// A key two minutes old is two minutes old, though the clocks went forward between.
func TestPurgeWhenTheClocksChange(t *testing.T) {
	t.Setenv("TZ", "Europe/Berlin")
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		before, after := open(t, s.DSN(), "timestamp=1774745940"), open(t, s.DSN(), "timestamp=1774746060") // around 2026-03-29 01:00 UTC
		if err := before.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := before.WithSession(t.Context(), func(context.Context, *livepool.Session) error { return nil }, livepool.Once("k")); err != nil {
			t.Fatal(err)
		}
		for olderThan, want := range map[time.Duration]int64{30 * time.Minute: 0, 121 * time.Second: 0} {
			if n, err := after.PurgeCommits(t.Context(), olderThan); n != want || err != nil {
				t.Errorf("purged %d keys older than %s, %v; want %d", n, olderThan, err, want)
			}
		}
		if n, err := after.PurgeCommits(t.Context(), 119*time.Second); n != 1 || err != nil {
			t.Errorf("purged %d keys older than 119s, %v; want 1", n, err)
		}
	})
}
