package livepool_test

// What a program can ask of the error of a unit, and what the error tells its reader.

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A job whose unit failed is delivered again if nothing of it was applied and the cause may
// pass, and only then.
func TestRetryable(t *testing.T) {
	deadlock := fakedb.ServerError(1213, "Deadlock found")
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	execFails := func(err error) func(*fakedb.DB) {
		return func(f *fakedb.DB) { f.OnExec = func(context.Context, *fakedb.Conn, string) error { return err } }
	}
	update := func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "UPDATE t SET v = 1")
		return err
	}
	for name, tt := range map[string]struct {
		fault     func(*fakedb.DB)
		fn        func(context.Context, *livepool.Session) error
		opts      []livepool.SessionOption
		patience  time.Duration
		is        error
		retryable bool
		says      []string
	}{
		"attempts used up": {fault: execFails(deadlock), fn: update, is: deadlock, retryable: true,
			opts: []livepool.SessionOption{livepool.MaxAttempts(3), livepool.Name("pay")},
			says: []string{"livepool: Error 1213: Deadlock found; pay failed after 3 attempt(s)", "(pool_max_attempts)", "nothing of it was applied: deliver it again later"}},
		"an attempt, and no second": {fault: execFails(deadlock), fn: update, is: deadlock, retryable: true,
			opts: []livepool.SessionOption{livepool.MaxAttempts(1)}},
		"the server cannot be reached": {fault: func(f *fakedb.DB) { f.OnConnect = func(context.Context, int64) error { return refused } },
			fn: update, is: livepool.ErrUnreachable, retryable: true, opts: []livepool.SessionOption{livepool.Name("pay")},
			says: []string{"pay", "connection refused", "deliver it again later"}},
		"the context ends in an outage": {fault: func(f *fakedb.DB) { f.OnConnect = func(context.Context, int64) error { return refused } },
			fn: update, is: livepool.ErrUnreachable, retryable: true, patience: time.Second,
			says: []string{"context deadline exceeded", "connection refused"}},
		"the context has ended before": {fn: update, is: livepool.ErrSessionDone, retryable: true, patience: -1},
		"the context ends between the attempts": {fault: execFails(deadlock), fn: update, is: context.DeadlineExceeded, retryable: true,
			opts: []livepool.SessionOption{livepool.MaxAttempts(1000)}, patience: time.Second},
		"the function notices the end of its context": {fn: func(ctx context.Context, _ *livepool.Session) error { <-ctx.Done(); return ctx.Err() },
			is: context.DeadlineExceeded, retryable: true, patience: time.Second},
		"the function fails": {fn: func(context.Context, *livepool.Session) error { return io.ErrUnexpectedEOF }, is: io.ErrUnexpectedEOF},
		"the function fails when it is run again": {fault: func(f *fakedb.DB) {
			f.OnExec = func(context.Context, *fakedb.Conn, string) error { f.OnExec = nil; return deadlock }
		}, fn: func(ctx context.Context, s *livepool.Session) error {
			if err := update(ctx, s); err != nil {
				return err
			}
			return io.ErrUnexpectedEOF
		}, is: io.ErrUnexpectedEOF, says: []string{"failed after 2 attempt(s)"}},
		"an error that will not pass": {fault: execFails(fakedb.ServerError(1062, "Duplicate entry")), fn: update},
		"a write in a read-only unit": {fault: execFails(fakedb.ServerError(1792, "Cannot execute statement in a READ ONLY transaction")),
			fn: update, opts: []livepool.SessionOption{livepool.ReadOnly()}},
		"a statement that commits implicitly": {fault: func(f *fakedb.DB) {
			f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
				if strings.HasPrefix(query, "UPDATE") {
					return deadlock
				}
				return nil
			}
		}, fn: func(ctx context.Context, s *livepool.Session) error {
			if _, err := s.ExecContext(ctx, "CREATE TABLE t (v INT)"); err != nil {
				return err
			}
			return update(ctx, s)
		}, is: deadlock, says: []string{"CREATE TABLE"}},
		"a lost COMMIT": {fault: func(f *fakedb.DB) {
			f.OnCommit = func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }
		}, fn: update, is: livepool.ErrCommitUnknown, says: []string{"applied once or not at all"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				p := labtest.OpenFake(t, f, nil)
				if tt.fault != nil {
					tt.fault(f)
				}
				ctx := t.Context()
				if tt.patience != 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.patience)
					defer cancel()
				}
				err := p.WithSession(ctx, tt.fn, tt.opts...)
				if got := livepool.Retryable(err); err == nil || got != tt.retryable {
					t.Errorf("retryable %t, want %t: %v", got, tt.retryable, err)
				}
				if tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("%v, want what is %v", err, tt.is)
				}
				for _, part := range tt.says {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%v, want it to say %q", err, part)
					}
				}
				if strings.Contains(err.Error(), "\n") || strings.Count(err.Error(), "livepool: ") > 2 {
					t.Errorf("more than a line, or more than one prefix: %v", err)
				}
			})
		})
	}
}

func TestUnitErrorHasWhatWasTried(t *testing.T) {
	f := &fakedb.DB{OnExec: func(_ context.Context, _ *fakedb.Conn, query string) error {
		if strings.HasPrefix(query, "UPDATE") {
			return fakedb.ServerError(1213, "Deadlock found")
		}
		return nil
	}}
	p := labtest.OpenFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		_, err := s.ExecContext(ctx, "UPDATE t SET v = 1")
		return err
	}, livepool.Name("pay"), livepool.Once("pay:17"), livepool.MaxAttempts(2))
	var unit *livepool.UnitError
	if !errors.As(err, &unit) || unit.Name != "pay" || unit.Key != "pay:17" || unit.Attempts != 2 || unit.Reason == "" || unit.Elapsed <= 0 {
		t.Errorf("%+v", unit)
	}
	if !strings.Contains(err.Error(), `(key "pay:17")`) {
		t.Error(err)
	}
}

// Retry makes no promise about what its function did.
func TestRetryableOfAFunctionUnderRetry(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	err := p.Retry(t.Context(), func(context.Context) error { return mysql.ErrInvalidConn }, livepool.MaxAttempts(2))
	if !livepool.Retryable(err) || strings.Contains(err.Error(), "nothing") {
		t.Error(err)
	}
}

func TestRetryableOfWhatIsNoError(t *testing.T) {
	if livepool.Retryable(nil) {
		t.Error("nil is retryable")
	}
}

// The outer unit's function returns the unknown COMMIT of a unit of its own inside it, and its
// context has ended: delivered again, the inner one might be applied twice.
func TestUnknownCommitOfAnotherUnitIsNotRetryable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			fakedb.ServedBy(t, s)
			return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				fakedb.ServedBy(t, s)
				f.OnCommit = func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }
				f.OnConnect = func(context.Context, int64) error {
					return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
				}
				return nil
			}, livepool.RequiresNew(), livepool.VerifyCommit())
		})
		if !errors.Is(err, livepool.ErrCommitUnknown) {
			t.Fatalf("not what the test wants: %v", err)
		}
		if livepool.Retryable(err) {
			t.Errorf("ErrCommitUnknown, and retryable: %v", err)
		}
	})
}

// A function may join the errors of two units.
func TestJoinedErrorsAreRetryableIfAllAre(t *testing.T) {
	f := &fakedb.DB{OnExec: func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1213, "Deadlock found") }}
	p := labtest.OpenFake(t, f, nil)
	a := p.WithSession(t.Context(), labtest.Work, livepool.MaxAttempts(1))
	f.OnExec = nil
	f.OnCommit = func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }
	b := p.WithSession(t.Context(), labtest.Work)
	if err := errors.Join(a, b); livepool.Retryable(err) {
		t.Errorf("%v", err)
	}
}

func TestRetryWhoseContextEndsInAnOutageIsRetryable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnConnect: func(context.Context, int64) error {
			return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}}
		p := labtest.OpenFake(t, f, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := p.Retry(ctx, func(ctx context.Context) error { _, err := p.ExecContext(ctx, "DO 1"); return err })
		if !livepool.Retryable(err) {
			t.Errorf("%v", err)
		}
	})
}

// A session that is used after its function has returned is a mistake, which will not pass.
func TestUseOfAStaleSessionIsNotRetryable(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	var stale *livepool.Session
	if err := p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error { stale = s; return nil }); err != nil {
		t.Fatal(err)
	}
	err := p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error { return do(ctx, stale) })
	if livepool.Retryable(err) {
		t.Errorf("%v", err)
	}
}

// Under the context of a unit, too.
func TestLivepoolsOwnStatementsAreNotTheFunctions(t *testing.T) {
	for _, strict := range []bool{false, true} {
		log := &labtest.CapturedLog{}
		p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.Strict, c.Logger = strict, slog.New(log) })
		if err := p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
			if err := p.CreateCommitTable(ctx); err != nil {
				t.Errorf("strict %t: %v", strict, err)
			}
			if _, err := p.PurgeCommits(ctx, time.Hour); err != nil && strings.Contains(err.Error(), "pool_strict") {
				t.Errorf("strict %t: %v", strict, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if lines := log.LinesWith("outside its transaction"); len(lines) > 0 {
			t.Errorf("strict %t: %q", strict, lines)
		}
	}
}

// An exhausted pool is told with the unit that waited in vain.
func TestPoolTimeoutIsRetryable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := labtest.OpenFake(t, &fakedb.DB{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
		if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			fakedb.ServedBy(t, s)
			err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
				_, err := s.ExecContext(ctx, "DO 1")
				return err
			}, livepool.RequiresNew(), livepool.Name("pay"))
			if !errors.Is(err, livepool.ErrPoolTimeout) || !livepool.Retryable(err) || !strings.Contains(err.Error(), "no connection for pay within PoolTimeout") {
				t.Error(err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// A worker that is stopped delivers again what it could not begin.
func TestAUnitOnAClosedPoolIsRetryable(t *testing.T) {
	for name, end := range map[string]func(p *livepool.Pool) error{
		"Pool": func(p *livepool.Pool) error { return p.Close() },
		"DB":   func(p *livepool.Pool) error { return p.DB.Close() },
	} {
		p := labtest.OpenFake(t, &fakedb.DB{}, nil)
		if err := end(p); err != nil {
			t.Fatal(err)
		}
		if err := p.WithSession(t.Context(), labtest.Work); !errors.Is(err, livepool.ErrPoolClosed) || !livepool.Retryable(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The result is that of the attempt that was applied, and with an error there is none.
func TestDoReturnsTheResultOfTheAppliedAttempt(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	commits := 0
	f.OnCommit = func(*fakedb.Conn) error {
		if commits++; commits == 1 {
			return fakedb.ServerError(1213, "Deadlock found")
		}
		return nil
	}
	attempt := func(_ context.Context, s *livepool.Session) (int, error) {
		fakedb.ServedBy(t, s)
		return s.Attempt(), nil
	}
	if n, err := livepool.Do(t.Context(), p, attempt); n != 2 || err != nil {
		t.Errorf("%d, %v: want the second attempt's", n, err)
	}
	f.OnCommit = func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }
	if n, err := livepool.Do(t.Context(), p, attempt); n != 0 || !errors.Is(err, livepool.ErrCommitUnknown) {
		t.Errorf("%d, %v", n, err)
	}
}

// A unit whose key was applied before has no result, and says so where it is asked to.
func TestAKeyThatWasAppliedBeforeIsReported(t *testing.T) {
	f := &fakedb.DB{OnExec: func(_ context.Context, _ *fakedb.Conn, query string) error {
		if strings.HasPrefix(query, "INSERT") {
			return fakedb.ServerError(1062, "Duplicate entry")
		}
		return nil
	}}
	p := labtest.OpenFake(t, f, nil)
	fn := func(context.Context, *livepool.Session) error {
		t.Error("run again")
		return nil
	}
	if err := p.WithSession(t.Context(), fn, livepool.Once("k")); err != nil {
		t.Error(err)
	}
	reported := func(err error) {
		t.Helper()
		if !errors.Is(err, livepool.ErrAlreadyApplied) || livepool.Retryable(err) || !strings.Contains(err.Error(), `"k"`) {
			t.Error(err)
		}
	}
	reported(p.WithSession(t.Context(), fn, livepool.Once("k"), livepool.ReportApplied()))
	_, err := livepool.Do(t.Context(), p, func(ctx context.Context, s *livepool.Session) (int, error) { return 1, fn(ctx, s) }, livepool.Once("k"))
	reported(err)
	// Inside another unit, which may go on.
	if err := p.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
		reported(p.WithSession(ctx, fn, livepool.Once("k"), livepool.ReportApplied()))
		return nil
	}); err != nil {
		t.Error(err)
	}
	// A unit around it that returns that error was not applied: its own error does not say
	// that it was.
	inner := func(ctx context.Context, _ *livepool.Session) error {
		return p.WithSession(ctx, fn, livepool.Once("k"), livepool.ReportApplied())
	}
	for name, unit := range map[string]func(context.Context, *livepool.Session) error{
		"outer": inner, "outer of an outer": func(ctx context.Context, _ *livepool.Session) error { return p.WithSession(ctx, inner) },
	} {
		if err := p.WithSession(t.Context(), unit); err == nil || errors.Is(err, livepool.ErrAlreadyApplied) || livepool.Retryable(err) || !strings.Contains(err.Error(), "another unit") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMaxAttemptsTakesOneOrMore(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	fn := func(context.Context, *livepool.Session) error { t.Error("run"); return nil }
	for _, n := range []int{0, -1} {
		for _, err := range []error{
			p.WithSession(t.Context(), fn, livepool.MaxAttempts(n)),
			p.Retry(t.Context(), func(context.Context) error { t.Error("run"); return nil }, livepool.MaxAttempts(n)),
		} {
			if err == nil || !strings.Contains(err.Error(), "takes 1 or more") {
				t.Errorf("%d: %v", n, err)
			}
		}
	}
}

// A context may be of units of several pools.
func TestFromContextOfAPool(t *testing.T) {
	a, b := labtest.OpenFake(t, &fakedb.DB{}, nil), labtest.OpenFake(t, &fakedb.DB{}, nil)
	if _, ok := a.FromContext(t.Context()); ok {
		t.Error("a session without a unit")
	}
	if err := a.WithSession(t.Context(), func(ctx context.Context, ofA *livepool.Session) error {
		return b.WithSession(ctx, func(ctx context.Context, ofB *livepool.Session) error {
			if s, ok := a.FromContext(ctx); !ok || s != ofA {
				t.Error("not the session of a")
			}
			if s, ok := b.FromContext(ctx); !ok || s != ofB {
				t.Error("not the session of b")
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
}
