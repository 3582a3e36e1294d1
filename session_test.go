package livepool_test

// The unit of work: what it has, how it ends, and what outlives it.

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A session is what sqlc, GORM and bun want.
var _ interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	PrepareContext(context.Context, string) (*sql.Stmt, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
} = (*livepool.Session)(nil)

// A session that sends nothing takes no connection.
func TestSessionTakesItsConnectionAtTheFirstStatement(t *testing.T) {
	f := &fakedb.DB{}
	p := openFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if n := f.Connects.Load(); n != 0 {
			t.Errorf("%d connections before the first statement", n)
		}
		fakedb.ServedBy(t, s)
		if n := f.Connects.Load(); n != 1 {
			t.Errorf("%d connections after it", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The first statement met a failing connect and was swallowed.
func TestUnitSwallowedConnectFailure(t *testing.T) {
	f := &fakedb.DB{}
	var queries []string
	f.OnConnect = func(_ context.Context, n int64) error {
		if n == 1 {
			return fakedb.ServerError(1040, "Too many connections")
		}
		return nil
	}
	f.OnExec = func(_ context.Context, _ *fakedb.Conn, q string) error { queries = append(queries, q); return nil }
	p := openFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		s.ExecContext(ctx, "A")
		s.ExecContext(ctx, "B")
		return nil
	})
	if err == nil && strings.Join(queries, "") == "B" {
		t.Errorf("half applied: %v ran, said %v", queries, err)
	}
}

func TestUnitHooks(t *testing.T) {
	t.Run("a panicking hook takes the others with it", func(t *testing.T) {
		p := openFake(t, &fakedb.DB{}, nil)
		second := false
		func() {
			defer func() { recover() }()
			p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				s.AfterCommit(func(context.Context) { panic("first") })
				s.AfterCommit(func(context.Context) { second = true })
				return nil
			})
		}()
		if !second {
			t.Error("the second hook of a committed unit did not run")
		}
	})
	t.Run("a hook of a hook", func(t *testing.T) {
		p := openFake(t, &fakedb.DB{}, nil)
		second := false
		p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { s.AfterCommit(func(context.Context) { second = true }) })
			return nil
		})
		if !second {
			t.Error("the hook that a hook added never ran, silently")
		}
	})
}

// Statements after the end of the caller's context.
func TestUnitStatementAfterTheEnd(t *testing.T) {
	p := openFake(t, &fakedb.DB{}, nil)
	sent := 0
	for range 2000 {
		ctx, cancel := context.WithCancel(t.Context())
		p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			s.ExecContext(ctx, "DO 1")
			cancel()
			if _, err := s.ExecContext(context.Background(), "INSERT"); err == nil {
				sent++
			}
			return nil
		})
	}
	if sent > 0 {
		t.Errorf("%d of 2000 statements after the end of the context ran, and said nil", sent)
	}
}

// Statements under contexts of their own.
func TestUnitForeignContextsPileUp(t *testing.T) {
	p := openFake(t, &fakedb.DB{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	p.WithSession(ctx, func(_ context.Context, s *livepool.Session) error {
		s.ExecContext(context.Background(), "DO 1")
		before := heap()
		for range 50000 {
			s.ExecContext(context.Background(), "DO 1")
		}
		if grown := int64(heap()) - int64(before); grown > 5<<20 {
			t.Errorf("50000 statements hold %d kB", grown>>10)
		}
		return nil
	})
}

// The caller's context ends while a goroutine of the unit is in a statement (run with -race).
func TestUnitRaceOnTheAttempt(t *testing.T) {
	f := &fakedb.DB{OnExec: func(_ context.Context, _ *fakedb.Conn, q string) error {
		if strings.HasPrefix(q, "CREATE") {
			time.Sleep(2 * time.Millisecond)
			return fakedb.ServerError(1213, "Deadlock found")
		}
		return nil
	}}
	p := openFake(t, f, nil)
	var wg sync.WaitGroup
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			s.ExecContext(ctx, "DO 1")
			started := make(chan struct{})
			wg.Go(func() { close(started); s.ExecContext(ctx, "CREATE TABLE x (a INT)") })
			<-started
			time.Sleep(500 * time.Microsecond)
			cancel()
			time.Sleep(500 * time.Microsecond)
			return errors.New("no")
		})
		wg.Wait()
	}
}

func TestUnitAllocatesLittleMoreThanItsTransaction(t *testing.T) {
	plain, _ := openNoop(t)
	p, err := livepool.OpenConnector(fakedb.Noop{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx := context.Background()
	measure := func(f func()) float64 {
		least := 1e9
		for range 5 {
			least = min(least, testing.AllocsPerRun(100, func() { f(); runtime.Gosched() }))
		}
		return least
	}
	tx := measure(func() {
		tx, _ := plain.BeginTx(ctx, nil)
		tx.ExecContext(ctx, "INSERT INTO t VALUES (1)")
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	})
	unit := measure(func() {
		if err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
	if unit > tx+4 {
		t.Errorf("a unit allocates %v times, its transaction alone %v: want at most 4 more", unit, tx)
	}
}

// The sweep has closed an idle connection behind database/sql's back; the next to
// be handed it is a session.
func TestSessionOnAConnectionThatWasSweptAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := openFake(t, f, func(c *livepool.Config) { c.KeepAlive = 10 * time.Second })
		fakedb.Warm(t, p.DB, 3)
		f.Kill()
		time.Sleep(time.Minute)
		synctest.Wait()
		for range 5 {
			if err := p.WithSession(t.Context(), labtest.Work); err != nil {
				t.Error(err)
			}
		}
	})
}
