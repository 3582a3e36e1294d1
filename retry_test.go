package livepool_test

// What is run again, for how long, and how a COMMIT whose answer was lost is resolved.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// fixedBackOff are the waits of a test: a second each, or none at all.
type fixedBackOff struct{ d time.Duration }

func (w fixedBackOff) NextBackOff() time.Duration { return w.d }

func (w fixedBackOff) Reset() {}

func TestBoundsOfRetrying(t *testing.T) {
	deadlock := fakedb.ServerError(1213, "Deadlock found")
	for _, tt := range []struct {
		name     string
		change   func(*livepool.Config)
		fails    func(attempt int) error
		patience time.Duration // of the caller, 0 for no end
		attempts int
		took     time.Duration
		says     string // "" for success
	}{
		{"a stale connection is replaced at once", nil,
			func(n int) error { return map[bool]error{true: mysql.ErrInvalidConn}[n == 1] }, 0, 2, 0, ""},
		{"but only the first time", nil,
			func(n int) error { return map[bool]error{true: mysql.ErrInvalidConn}[n <= 2] }, 0, 3, time.Second, ""},
		{"a deadlock waits", nil,
			func(n int) error { return map[bool]error{true: deadlock}[n == 1] }, 0, 2, time.Second, ""},
		{"MaxAttempts", func(c *livepool.Config) { c.MaxAttempts = 3 },
			func(int) error { return deadlock }, 0, 3, 2 * time.Second, "MaxAttempts"},
		{"MaxElapsed", func(c *livepool.Config) { c.MaxAttempts, c.MaxElapsed = 1000, 5*time.Second },
			func(int) error { return deadlock }, 0, 6, 5 * time.Second, "MaxElapsed"},
		{"BackOff stops", func(c *livepool.Config) { c.BackOff = func() backoff.BackOff { return &backoff.StopBackOff{} } },
			func(int) error { return deadlock }, 0, 1, 0, "BackOff"},
		{"the caller's context, in the middle of a wait", nil,
			func(int) error { return deadlock }, 2500 * time.Millisecond, 3, 2500 * time.Millisecond, "context"},
		{"an error that will not pass", nil,
			func(int) error { return fakedb.ServerError(1062, "Duplicate entry") }, 0, 1, 0, "Duplicate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				p := labtest.OpenFake(t, f, func(c *livepool.Config) {
					c.BackOff = func() backoff.BackOff { return fixedBackOff{time.Second} }
					if tt.change != nil {
						tt.change(c)
					}
				})
				attempts := 0
				f.OnExec = func(_ context.Context, c *fakedb.Conn, _ string) error {
					err := tt.fails(attempts)
					if err == mysql.ErrInvalidConn {
						c.Valid.Store(false)
					}
					return err
				}
				ctx := t.Context()
				if tt.patience > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.patience)
					defer cancel()
				}
				start := time.Now()
				err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
					attempts++
					_, err := s.ExecContext(ctx, fmt.Sprintf("UPDATE t SET a = %d", attempts))
					return err
				})
				if took := time.Since(start); attempts != tt.attempts || took != tt.took {
					t.Errorf("%d attempts in %s, want %d in %s", attempts, took, tt.attempts, tt.took)
				}
				if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, want it to say %q", err, tt.says)
				}
				if last := tt.fails(1000); tt.says != "" && !errors.Is(err, last) {
					t.Errorf("%v does not carry the last cause", err)
				}
			})
		})
	}
}

// A unit that would be run again, had its context not ended, says that.
func TestWhyAUnitWhoseContextEndedIsNotRunAgain(t *testing.T) {
	for _, opts := range [][]livepool.SessionOption{nil, {livepool.VerifyCommit()}} {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, nil)
		ctx, cancel := context.WithCancel(t.Context())
		f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if strings.HasPrefix(query, "UPDATE") {
				return fakedb.ServerError(1213, "Deadlock found when trying to get lock; try restarting transaction")
			}
			return nil
		}
		ran := 0
		err := p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			ran++
			_, err := s.ExecContext(ctx, "UPDATE t SET a = 1")
			cancel()
			return err
		}, opts...)
		if ran != 1 || !labtest.IsServerError(err, 1213) || !errors.Is(err, context.Canceled) || !errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("ran %d times: %v", ran, err)
		}
	}
}

// An unknown outcome stays one, whatever ends the attempts to resolve it.
func TestUnresolvedCommitStaysUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) {
			c.BackOff = func() backoff.BackOff { return fixedBackOff{time.Second} }
			c.MaxElapsed = 5 * time.Second
		})
		f.OnCommit = func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }
		ran := 0
		err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error {
			ran++
			f.OnExec = func(context.Context, *fakedb.Conn, string) error {
				return fakedb.ServerError(1205, "Lock wait timeout exceeded")
			}
			return nil
		}, livepool.Once("k"))
		if !errors.Is(err, livepool.ErrCommitUnknown) || ran != 1 {
			t.Errorf("fn ran %d times, %v: want ErrCommitUnknown and no second run", ran, err)
		}
	})
}

// Without a key a lost COMMIT is never followed by another attempt.
func TestLostCommitIsNotRepeated(t *testing.T) {
	f := &fakedb.DB{OnCommit: func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }}
	p := labtest.OpenFake(t, f, nil)
	ran := 0
	err := p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
		ran++
		fakedb.ServedBy(t, s)
		return nil
	})
	if !errors.Is(err, livepool.ErrCommitUnknown) || !errors.Is(err, mysql.ErrInvalidConn) || ran != 1 {
		t.Errorf("fn ran %d times, %v", ran, err)
	}
}

func TestMaxAttemptsHoldsAfterALostCommitWasSettled(t *testing.T) {
	commits, runs := 0, 0
	f := &fakedb.DB{
		OnCommit: func(c *fakedb.Conn) error {
			if commits++; commits > 1 {
				return nil
			}
			c.Valid.Store(false)
			return fakedb.ErrGone
		},
		OnExec: func(_ context.Context, _ *fakedb.Conn, query string) error {
			if query == "UPDATE t SET a = 1" && runs > 1 {
				return fakedb.ServerError(1213, "Deadlock found")
			}
			return nil
		},
	}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.BackOff = func() backoff.BackOff { return &backoff.ZeroBackOff{} }
	})
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		runs++
		_, err := s.ExecContext(ctx, "UPDATE t SET a = 1")
		return err
	}, livepool.VerifyCommit(), livepool.MaxAttempts(3))
	if runs > 3 || err == nil || errors.Is(err, livepool.ErrCommitUnknown) {
		t.Errorf("%d runs: %v", runs, err)
	}
}

// An error that has nothing to do with the database.
func TestUnitForeignErrorIsRetried(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	tries := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		tries++
		fakedb.ServedBy(t, s)
		return fmt.Errorf("the job's payload: %w", io.EOF)
	}, livepool.MaxAttempts(4))
	if tries != 1 {
		t.Errorf("%d tries: %v", tries, err)
	}
}

// MaxElapsed may end the wait for a server of which nothing is known yet.
func TestMaxElapsedDuringTheFirstConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnConnect: func(ctx context.Context, n int64) error { <-ctx.Done(); return ctx.Err() }}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.MaxElapsed = 200 * time.Millisecond })
		err := p.WithSession(context.Background(), labtest.Work)
		if err == nil {
			t.Fatal("nil")
		}
		defer func() {
			if r := recover(); r != nil {
				t.Fatalf("err.Error() of %T panics: %v", err, r)
			}
		}()
		t.Log(err.Error())
	})
}

// An unknown outcome says nobody should repeat it, but for those who may.
func TestRetryRepeatsACommitOfUnknownOutcome(t *testing.T) {
	f := &fakedb.DB{}
	f.OnCommit = func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }
	p := labtest.OpenFake(t, f, nil)
	tries := 0
	err := p.Retry(t.Context(), func(ctx context.Context) error {
		if tries++; tries == 2 {
			f.OnCommit = nil
		}
		err := p.WithSession(ctx, labtest.Work)
		if tries == 1 && (!errors.Is(err, livepool.ErrCommitUnknown) || livepool.Classify(err)&livepool.Retry != 0) {
			t.Errorf("%v: %s, want ErrCommitUnknown, and no Retry", err, livepool.Classify(err))
		}
		return err
	})
	if err != nil || tries != 2 {
		t.Errorf("%d tries: %v", tries, err)
	}
}

// A function that works elsewhere before it asks for a connection costs the unit
// none of MaxElapsed, in any of its attempts.
func TestWhatAFunctionDoesBeforeItAsksIsNotCounted(t *testing.T) {
	for name, fails := range map[string]func(attempt int) error{
		"the first": func(int) error { return nil },
		"the second": func(n int) error {
			if n == 1 {
				return fakedb.ServerError(1213, "Deadlock found")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakedb.DB{}
				attempts := 0
				f.OnExec = func(context.Context, *fakedb.Conn, string) error { return fails(attempts) }
				p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.MaxElapsed = 5 * time.Second; c.PoolSize = 0 })
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					attempts++
					time.Sleep(time.Minute)
					return labtest.Work(ctx, s)
				})
				if err != nil {
					t.Errorf("%d attempts: %v", attempts, err)
				}
			})
		})
	}
}

// The time that counts is still bounded.
func TestMaxElapsedCountsFromTheFirstAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnExec: func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1213, "Deadlock found") }}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) {
			c.BackOff = func() backoff.BackOff { return fixedBackOff{time.Second} }
			c.MaxAttempts, c.MaxElapsed = 1000, 5*time.Second
		})
		attempts := 0
		start := time.Now()
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			attempts++
			time.Sleep(time.Minute)
			return labtest.Work(ctx, s)
		})
		if took := time.Since(start); attempts != 6 || took != 6*time.Minute+5*time.Second || err == nil || !strings.Contains(err.Error(), "MaxElapsed") {
			t.Errorf("%d attempts in %s: %v", attempts, took, err)
		}
	})
}

// The caller of a unit gets what its function said and what the connection said.
func TestErrorOfTheFunctionAndItsCause(t *testing.T) {
	f := &fakedb.DB{OnExec: func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1213, "Deadlock found") }}
	p := labtest.OpenFake(t, f, func(c *livepool.Config) {
		c.BackOff = func() backoff.BackOff { return &backoff.ZeroBackOff{} }
	})
	own := errors.New("the order could not be saved")
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		labtest.Work(ctx, s)
		return own
	}, livepool.MaxAttempts(2))
	if !errors.Is(err, own) || !labtest.IsServerError(err, 1213) {
		t.Errorf("got %v", err)
	}
}

// A retried function whose context has ended says what it says, and is not tried
// again.
func TestRetryWhoseContextEnds(t *testing.T) {
	p := labtest.OpenFake(t, &fakedb.DB{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	err := p.Retry(ctx, func(context.Context) error {
		tries++
		cancel()
		return mysql.ErrInvalidConn
	})
	if err != mysql.ErrInvalidConn || tries != 1 || p.Stats().Retried != 0 {
		t.Errorf("%d tries, %d retried: %v", tries, p.Stats().Retried, err)
	}
}

// A unit that took longer than MaxElapsed may still ask.
func TestLostCommitOfALongUnitIsLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnCommit: func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }}
		p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.MaxElapsed = time.Second })
		inserts := 0
		f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if strings.HasPrefix(query, "INSERT INTO ") && strings.Contains(query, "livepool_commits") {
				if inserts++; inserts > 1 {
					return fakedb.ServerError(1062, "Duplicate entry")
				}
			}
			return nil
		}
		ran := 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			ran++
			time.Sleep(time.Minute)
			return nil
		}, livepool.Once("k"))
		if err != nil || ran != 1 || inserts != 2 || p.Stats().CommitsResolved != 1 {
			t.Errorf("ran %d times, %d looks: %v", ran, inserts-1, err)
		}
	})
}

// Whatever a look meets, another one is made; only the context and the time for it
// end them.
func TestAResolvingProbeThatFailsIsRepeated(t *testing.T) {
	for name, meets := range map[string]error{
		"1317": fakedb.ServerError(1317, "Query execution was interrupted"),
		"1969": fakedb.ServerError(1969, "Query execution was interrupted (max_statement_time exceeded)"),
		"3024": fakedb.ServerError(3024, "Query execution was interrupted, maximum statement execution time exceeded"),
		"1041": fakedb.ServerError(1041, "Out of memory"),
		"1105": fakedb.ServerError(1105, "unknown"),
		"lost": fakedb.ErrGone,
		"lock": fakedb.ServerError(1205, "Lock wait timeout exceeded"),
	} {
		for _, lasts := range []time.Duration{5 * time.Second, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				commits := 0
				f := &fakedb.DB{OnCommit: func(c *fakedb.Conn) error {
					if commits++; commits > 1 {
						return nil
					}
					c.Valid.Store(false)
					return mysql.ErrInvalidConn
				}}
				p := labtest.OpenFake(t, f, func(c *livepool.Config) { c.PoolTimeout = 0; c.PoolSize, c.MaxOverflow = 1, 0 })
				var lost time.Time
				ran, looks := 0, 0
				f.OnExec = func(_ context.Context, c *fakedb.Conn, query string) error {
					if !strings.HasPrefix(query, "INSERT INTO ") || lost.IsZero() {
						return nil
					}
					looks++
					if time.Since(lost) < lasts {
						c.Valid.Store(meets != fakedb.ErrGone)
						return meets
					}
					return fakedb.ServerError(1062, "Duplicate entry")
				}
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					ran++
					lost = time.Now()
					return nil
				}, livepool.Once("k"))
				took := time.Since(lost)
				unknown := errors.Is(err, livepool.ErrCommitUnknown)
				if ran != 1 || lasts < time.Minute && (err != nil || took > 8*time.Second) {
					t.Errorf("%s for %s: ran %d times, %d looks in %s: %v", name, lasts, ran, looks, took, err)
				}
				if lasts > time.Minute && (!unknown || errors.Is(err, livepool.ErrSessionDone) || !errors.Is(err, meets) && meets != fakedb.ErrGone || took < 40*time.Second || took > 41*time.Second || !strings.Contains(err.Error(), "40s")) {
					t.Errorf("%s: after %s and %d looks: %v", name, took, looks, err)
				}
			})
		}
	}
}

// Close ends the looks: there is nothing more to look with.
func TestCloseEndsTheResolvingProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{OnCommit: func(c *fakedb.Conn) error { c.Valid.Store(false); return mysql.ErrInvalidConn }}
		p := labtest.OpenFake(t, f, nil)
		var lost time.Time
		f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
			if !lost.IsZero() {
				return fakedb.ServerError(1205, "Lock wait timeout exceeded")
			}
			return nil
		}
		err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error {
			lost = time.Now()
			go func() { time.Sleep(5 * time.Second); p.Close() }()
			return nil
		}, livepool.Once("k"))
		if took := time.Since(lost); !errors.Is(err, livepool.ErrCommitUnknown) || took > 15*time.Second || !strings.Contains(err.Error(), "the pool was closed") {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

func TestRetryTakesNameAndMaxAttempts(t *testing.T) {
	f := &fakedb.DB{OnExec: func(context.Context, *fakedb.Conn, string) error {
		return fakedb.ServerError(1205, "Lock wait timeout exceeded")
	}}
	p := labtest.OpenFake(t, f, nil)
	runs := 0
	fails := func(ctx context.Context) error {
		runs++
		_, err := p.ExecContext(ctx, "UPDATE t SET v = 1")
		return err
	}
	err := p.Retry(t.Context(), fails, livepool.Name("the nightly sum"), livepool.MaxAttempts(2))
	if runs != 2 || err == nil || !strings.Contains(err.Error(), "the nightly sum failed after 2 attempt(s)") {
		t.Errorf("%d runs: %v", runs, err)
	}
	for name, opt := range map[string]livepool.SessionOption{
		"ReadOnly": livepool.ReadOnly(), "Once": livepool.Once("k"), "VerifyCommit": livepool.VerifyCommit(),
		"RequiresNew": livepool.RequiresNew(), "Isolation": livepool.Isolation(6), "OncePerID": livepool.OncePerID("x"),
	} {
		runs = 0
		if err := p.Retry(t.Context(), fails, opt); err == nil || runs != 0 || !strings.Contains(err.Error(), "Name and MaxAttempts") {
			t.Errorf("%s: %d runs: %v, want it refused", name, runs, err)
		}
	}
	if err := p.Retry(t.Context(), fails, livepool.MaxAttempts(-1)); err == nil || !strings.Contains(err.Error(), "MaxAttempts(-1)") {
		t.Errorf("%v", err)
	}
}
