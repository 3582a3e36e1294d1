package livepool_test

// The unit of work: what it has, how it ends, and what outlives it.

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A context that has ended runs nothing, neither alone nor inside another unit.
func TestUnitUnderAContextThatHasEnded(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	over, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the worker is stopping"))
	late, cancelLate := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancelLate()
	runs := 0
	run := func(ctx context.Context) error {
		return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error { runs++; return labtest.Work(ctx, s) })
	}
	if err := run(over); !errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the worker is stopping") {
		t.Errorf("cancelled: %v", err)
	}
	if err := run(late); !errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v", err)
	}
	if err := p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return run(ctx)
	}); !errors.Is(err, livepool.ErrSessionDone) {
		t.Errorf("inside: %v", err)
	}
	if runs != 0 {
		t.Errorf("ran %d times", runs)
	}
}

// The deadline of a statement's own context is told as that.
func TestDeadlineOfAStatementInAUnit(t *testing.T) {
	f := &fakedb.DB{OnExec: func(ctx context.Context, _ *fakedb.Conn, _ string) error { <-ctx.Done(); return ctx.Err() }}
	p := labtest.OpenFake(t, f, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		own, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if _, err := s.ExecContext(own, "DO 1"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("got %v", err)
		}
		return nil
	})
}

// A goroutine of the function has a statement under way, on the *sql.Tx or a
// Stmt, when the context ends; its failure comes while the unit is judged. For
// the race detector.
func TestFailureThatComesWhileTheUnitIsJudged(t *testing.T) {
	for name, statement := range map[string]func(*sql.Tx, *sql.Stmt){
		"tx":   func(tx *sql.Tx, _ *sql.Stmt) { tx.ExecContext(context.Background(), "SLOW") },
		"stmt": func(_ *sql.Tx, stmt *sql.Stmt) { stmt.ExecContext(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakedb.DB{}
			sent := make(chan struct{})
			slow := func(c *fakedb.Conn) error {
				close(sent)
				time.Sleep(200 * time.Millisecond) // a channel would order what is to be seen as a race
				c.Valid.Store(false)
				return mysql.ErrInvalidConn
			}
			f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
				if query == "SLOW" || query == "prepared" {
					return slow(c)
				}
				return nil
			}
			p := labtest.OpenFake(t, f, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			over := make(chan struct{})
			err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				tx, err := s.Tx(ctx)
				if err != nil {
					return err
				}
				stmt, err := s.PrepareContext(ctx, "prepared")
				if err != nil {
					return err
				}
				go func() { defer close(over); statement(tx, stmt) }()
				<-sent
				cancel()
				time.Sleep(50 * time.Millisecond) // meanwhile database/sql ends the transaction, and waits for the statement
				return ctx.Err()
			})
			<-over
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

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
	p := labtest.OpenFake(t, f, nil)
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
	p := labtest.OpenFake(t, f, nil)
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
		p := labtest.OpenFake(t, &fakedb.DB{}, nil)
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
		p := labtest.OpenFake(t, &fakedb.DB{}, nil)
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
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
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
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
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
	p := labtest.OpenFake(t, f, nil)
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
	plain := sql.OpenDB(fakedb.Noop{})
	defer plain.Close()
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
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.KeepAlive = 10 * time.Second })
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

// A semicolon in a literal costs a connection.
func TestUnitSemicolonInALiteral(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	for _, q := range []string{"INSERT INTO t VALUES ('a;b')", "SELECT 1; -- done", "SELECT 1 /* a; b */"} {
		before := f.Connects.Load()
		for range 5 {
			p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, q)
				return err
			})
		}
		if n := f.Connects.Load() - before; n > 1 {
			t.Errorf("%s: five units, %d connections", q, n)
		}
	}
}

// The Commit of somebody else, begun before the unit's own, waits for a statement.
func TestCommitOfSomebodyElseDuringTheUnits(t *testing.T) {
	f := &fakedb.DB{}
	var mu sync.Mutex
	commits := 0
	running, goOn := make(chan struct{}), make(chan struct{})
	f.OnExec = func(_ context.Context, c *fakedb.Conn, q string) error {
		if q == "DO SLEEP(1)" {
			close(running)
			<-goOn
		}
		return nil
	}
	f.OnCommit = func(c *fakedb.Conn) error { mu.Lock(); commits++; mu.Unlock(); return nil }
	p := labtest.OpenFake(t, f, nil)
	var wg sync.WaitGroup
	var uerr error
	err := p.WithSession(context.Background(), func(ctx context.Context, s *livepool.Session) error {
		tx, err := s.Tx(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT"); err != nil {
			return err
		}
		wg.Go(func() { tx.ExecContext(context.Background(), "DO SLEEP(1)") })
		<-running
		wg.Go(func() { uerr = tx.Commit() })
		time.Sleep(100 * time.Millisecond) // Commit is begun and waits for SLOW
		return nil
	})
	close(goOn)
	wg.Wait()
	if err != nil && commits != 0 {
		t.Errorf("committed, and the unit said %v (the other Commit: %v)", err, uerr)
	}
}

// ErrSessionDone says that nothing was committed.
func TestUnknownOutcomeIsNotSessionDone(t *testing.T) {
	f := &fakedb.DB{}
	ctx, cancel := context.WithCancel(t.Context())
	f.OnCommit = func(c *fakedb.Conn) error { cancel(); c.Valid.Store(false); return fakedb.ErrGone }
	p := labtest.OpenFake(t, f, nil)
	err := p.WithSession(ctx, labtest.Work, livepool.Once("k"))
	if !errors.Is(err, livepool.ErrCommitUnknown) {
		t.Fatal(err)
	}
	if errors.Is(err, livepool.ErrSessionDone) || strings.Contains(err.Error(), "nothing of it is committed") {
		t.Errorf("unknown, and at the same time not applied: %v", err)
	}
}

func TestOncePerIDTakesAName(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	job := livepool.Job(p, func(context.Context, *livepool.Session, int) error {
		t.Error("run, although nothing keeps it from being run twice")
		return nil
	}, livepool.OncePerID(""))
	if err := job(t.Context(), 5); err == nil || !strings.Contains(err.Error(), "OncePerID") {
		t.Errorf("error %v, want one about OncePerID", err)
	}
}

func TestSessionsAndPoolsAreNotSerialised(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		for name, v := range map[string]any{"session": s, "pool": p} {
			if _, err := json.Marshal(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
				t.Errorf("json of a %s: %v", name, err)
			}
			if err := gob.NewEncoder(new(bytes.Buffer)).Encode(v); err == nil || !strings.Contains(err.Error(), "pass the id") {
				t.Errorf("gob of a %s: %v", name, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A hook is never lost: neither that of an inner unit that has ended, nor one that
// a hook adds, nor one that comes when all others have run.
func TestNoHookIsLost(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	var ran []string
	hook := func(name string) func(context.Context) { return func(context.Context) { ran = append(ran, name) } }
	var outer, inner, deep, undone *livepool.Session
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		outer = s
		if err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			inner = s
			s.AfterCommit(func(context.Context) {
				ran = append(ran, "inner")
				inner.AfterCommit(hook("from the inner's own hook"))
				deep.AfterCommit(hook("from a hook, of the innermost"))
			})
			return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				deep = s
				return labtest.Work(ctx, s)
			})
		}); err != nil {
			return err
		}
		p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			undone = s
			s.AfterCommit(hook("undone"))
			return errors.New("refused")
		})
		undone.AfterCommit(hook("undone, and late"))
		inner.AfterCommit(hook("after the inner unit"))
		if len(ran) != 0 {
			t.Errorf("ran before the commit: %v", ran)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	outer.AfterCommit(hook("after all"))
	inner.AfterCommit(hook("after all, of the inner"))
	want := []string{"inner", "after the inner unit", "from the inner's own hook", "from a hook, of the innermost", "after all", "after all, of the inner"}
	if !slices.Equal(ran, want) {
		t.Errorf("ran %q\nwant %q", ran, want)
	}

	var failed *livepool.Session
	ran = nil
	p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error { failed = s; return errors.New("refused") })
	if failed.AfterCommit(hook("of a unit that failed")); len(ran) != 0 {
		t.Errorf("ran %q", ran)
	}
}

// The work is applied, whatever becomes of what follows it.
func TestHookThatPanics(t *testing.T) {
	log := &labtest.CapturedLog{}
	p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Logger = slog.New(log) })
	var ran []string
	unit := func(how func()) error {
		ran = nil
		return p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { ran = append(ran, "first"); how() })
			s.AfterCommit(func(context.Context) { ran = append(ran, "second") })
			return labtest.Work(ctx, s)
		}, livepool.Name("mailer"))
	}
	if err := unit(func() { panicInHook() }); err != nil || !slices.Equal(ran, []string{"first", "second"}) {
		t.Errorf("%v, ran %v", err, ran)
	}
	said := log.LinesWith("AfterCommit has panicked")
	if len(said) != 1 || !strings.Contains(said[0], "unit=mailer") || !strings.Contains(said[0], "boom") || !strings.Contains(said[0], "panicInHook") {
		t.Errorf("the log says %q", said)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		unit(runtime.Goexit)
	}()
	if <-over; !slices.Equal(ran, []string{"first", "second"}) {
		t.Errorf("Goexit: ran %v", ran)
	}
}

func panicInHook() { panic("boom") }

// A programmer's error is told where it is made, before anything is committed.
func TestNilHook(t *testing.T) {
	commits := 0
	f := &fakedb.DB{OnCommit: func(*fakedb.Conn) error { commits++; return nil }}
	p := labtest.OpenFake(t, f, nil)
	defer func() {
		if r := recover(); r == nil || commits != 0 {
			t.Errorf("recovered %v after %d commits", r, commits)
		}
	}()
	p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		s.AfterCommit(nil)
		return labtest.Work(ctx, s)
	})
	t.Error("AfterCommit(nil) is accepted")
}

// The context of a hook has the caller's values, and neither end nor session.
func TestContextOfAHook(t *testing.T) {
	type key struct{}
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	other := labtest.OpenFake(t, &fakedb.DB{}, nil)
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "value"), time.Minute)
	ran := false
	err := other.WithSession(ctx, func(ctx context.Context, _ *livepool.Session) error {
		return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { cancel() })
			s.AfterCommit(func(ctx context.Context) {
				ran = true
				_, has := ctx.Deadline()
				if s, ok := livepool.FromContext(ctx); ok || s != nil || has || ctx.Err() != nil || ctx.Done() != nil || ctx.Value(key{}) != "value" {
					t.Errorf("session %v, deadline %v, %v, value %v", ok, has, ctx.Err(), ctx.Value(key{}))
				}
			})
			return labtest.Work(ctx, s)
		})
	})
	if !ran || !errors.Is(err, livepool.ErrSessionDone) { // the outer unit's context has ended
		t.Errorf("ran %v, %v", ran, err)
	}
}

// A function that uses the pool where it means its session is told, or refused: what it
// does there is not undone with the unit.
func TestThePoolInsideItsUnit(t *testing.T) {
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict=%t", strict), func(t *testing.T) {
			log := &labtest.CapturedLog{}
			p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Strict, c.Logger = strict, slog.New(log) })
			other := labtest.OpenFake(t, &fakedb.DB{}, nil)
			var late func() error // what a goroutine that outlives its unit may do
			for range 2 {         // on a new connection, and on one that was used before
				if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					late = func() error { return do(ctx, p) }
					_, execErr := p.ExecContext(ctx, "UPDATE t SET v = 1")
					stmt, prepareErr := p.PrepareContext(ctx, "SELECT 1")
					tx, beginErr := p.BeginTx(ctx, nil)
					for _, err := range []error{execErr, prepareErr, beginErr} {
						if refused := err != nil && strings.Contains(err.Error(), "pool_strict"); refused != strict || !strict && err != nil {
							t.Error(err)
						}
					}
					if !strict {
						stmt.Close()
						tx.Rollback()
					}
					// What is meant to be outside.
					for what, err := range map[string]error{
						"another pool":         do(ctx, other),
						"a context of its own": do(context.Background(), p),
						"the session":          do(ctx, s),
						"a unit of its own":    p.WithSession(ctx, labtest.Work, livepool.RequiresNew()),
						"a unit inside":        p.WithSession(ctx, labtest.Work),
					} {
						if err != nil {
							t.Errorf("%s: %v", what, err)
						}
					}
					s.AfterCommit(func(ctx context.Context) {
						if err := do(ctx, p); err != nil {
							t.Errorf("after the commit: %v", err)
						}
					})
					return nil
				}, livepool.Name("pay")); err != nil {
					t.Fatal(err)
				}
			}
			if err := late(); err != nil {
				t.Errorf("after the unit: %v", err)
			}
			want := map[bool]int{false: 1}[strict]
			if lines := log.LinesWith("outside its transaction"); len(lines) != want || want > 0 && !strings.Contains(lines[0], "pay") {
				t.Errorf("logged %q", lines)
			}
		})
	}
}

func do(ctx context.Context, on interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}) error {
	_, err := on.ExecContext(ctx, "DO 1")
	return err
}

// DB may be called while a transaction on what it has returned is being undone, which
// takes two statements.
func TestDBIsCalledWhileATransactionOnItEnds(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	unit := func(_ context.Context, s *livepool.Session) error {
		f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if strings.HasPrefix(query, "ROLLBACK TO") {
				go func() { s.DB(); close(done) }()
				time.Sleep(20 * time.Millisecond) // for it to get as far as it can
			}
			return nil
		}
		tx, err := s.DB().Begin()
		if err != nil {
			return err
		}
		return tx.Rollback()
	}
	ended := make(chan error, 1)
	go func() { ended <- p.WithSession(context.Background(), unit) }()
	select {
	case err := <-ended:
		if <-done; err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		panic("the unit and Session.DB wait for each other")
	}
}
