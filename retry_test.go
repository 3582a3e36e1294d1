package livepool_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// waits are the waits of a test: a second each, or none at all.
type waits struct{ d time.Duration }

func (w waits) NextBackOff() time.Duration { return w.d }
func (w waits) Reset()                     {}

func TestBoundsOfRetrying(t *testing.T) {
	deadlock := serverError(1213, "Deadlock found")
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
			func(int) error { return serverError(1062, "Duplicate entry") }, 0, 1, 0, "Duplicate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{}
				p := openFake(t, f, func(c *livepool.Config) {
					c.BackOff = func() backoff.BackOff { return waits{time.Second} }
					if tt.change != nil {
						tt.change(c)
					}
				})
				attempts := 0
				f.onExec = func(_ context.Context, c *fakeConn, _ string) error {
					err := tt.fails(attempts)
					if err == mysql.ErrInvalidConn {
						c.valid.Store(false)
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
		f := &fake{}
		p := openFake(t, f, nil)
		ctx, cancel := context.WithCancel(t.Context())
		f.onExec = func(_ context.Context, _ *fakeConn, query string) error {
			if strings.HasPrefix(query, "UPDATE") {
				return serverError(1213, "Deadlock found when trying to get lock; try restarting transaction")
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
		if ran != 1 || !isServerError(err, 1213) || !errors.Is(err, context.Canceled) || !errors.Is(err, livepool.ErrSessionDone) {
			t.Errorf("ran %d times: %v", ran, err)
		}
	}
}

// An unknown outcome stays one, whatever ends the attempts to resolve it.
func TestUnresolvedCommitStaysUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		p := openFake(t, f, func(c *livepool.Config) {
			c.BackOff = func() backoff.BackOff { return waits{time.Second} }
			c.MaxElapsed = 5 * time.Second
		})
		f.onCommit = func(c *fakeConn) error { c.valid.Store(false); return mysql.ErrInvalidConn }
		ran := 0
		err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error {
			ran++
			f.onExec = func(context.Context, *fakeConn, string) error { return serverError(1205, "Lock wait timeout exceeded") }
			return nil
		}, livepool.Once("k"))
		if !errors.Is(err, livepool.ErrCommitUnknown) || ran != 1 {
			t.Errorf("fn ran %d times, %v: want ErrCommitUnknown and no second run", ran, err)
		}
	})
}

// Without a key a lost COMMIT is never followed by another attempt.
func TestLostCommitIsNotRepeated(t *testing.T) {
	f := &fake{onCommit: func(c *fakeConn) error { c.valid.Store(false); return mysql.ErrInvalidConn }}
	p := openFake(t, f, nil)
	ran := 0
	err := p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
		ran++
		servedBy(t, s)
		return nil
	})
	if !errors.Is(err, livepool.ErrCommitUnknown) || !errors.Is(err, mysql.ErrInvalidConn) || ran != 1 {
		t.Errorf("fn ran %d times, %v", ran, err)
	}
}

func TestMaxAttemptsHoldsAfterALostCommitWasSettled(t *testing.T) {
	commits, runs := 0, 0
	f := &fake{
		onCommit: func(c *fakeConn) error {
			if commits++; commits > 1 {
				return nil
			}
			c.valid.Store(false)
			return errGone
		},
		onExec: func(_ context.Context, _ *fakeConn, query string) error {
			if query == "UPDATE t SET a = 1" && runs > 1 {
				return serverError(1213, "Deadlock found")
			}
			return nil
		},
	}
	p := openFake(t, f, func(c *livepool.Config) {
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

// Both of two units that deadlock are applied once, also where the deadlock
// comes in the middle of a result.
func TestDeadlockedUnitsAreBothApplied(t *testing.T) {
	t.Parallel()
	for _, streamed := range []bool{false, true} {
		t.Run(fmt.Sprint("streamed ", streamed), func(t *testing.T) {
			servertest.Each(t, func(t *testing.T, s *server.Server) {
				for _, q := range []string{
					"CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)",
					"INSERT INTO test.account VALUES (1,0),(2,0),(3,0),(4,0),(5,0),(6,0),(7,0),(8,0),(9,0)",
				} {
					if err := s.Exec(q); err != nil {
						t.Fatal(err)
					}
				}
				p := open(t, s.DSN(), "")
				lockAll := func(ctx context.Context, s *livepool.Session) error {
					rows, err := s.QueryContext(ctx, "SELECT id FROM account ORDER BY id FOR UPDATE")
					if err != nil {
						return err
					}
					defer rows.Close()
					for rows.Next() {
					}
					return rows.Err()
				}
				update := func(id int) fn {
					return func(ctx context.Context, s *livepool.Session) error {
						_, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = ?", id)
						return err
					}
				}
				first, second := []fn{update(1), update(9)}, []fn{update(9), update(1)}
				if streamed {
					first[1] = lockAll
					second[1] = update(1)
				}
				var meet sync.WaitGroup
				meet.Add(2)
				var once [2]sync.Once
				unit := func(i int, steps []fn) {
					if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						if err := steps[0](ctx, s); err != nil {
							return err
						}
						once[i].Do(func() { meet.Done(); meet.Wait() }) // the first time both hold a lock that the other wants
						return steps[1](ctx, s)
					}); err != nil {
						t.Errorf("unit %d: %v", i, err)
					}
				}
				var wg sync.WaitGroup
				wg.Go(func() { unit(0, first) })
				wg.Go(func() { unit(1, second) })
				wg.Wait()
				want := 4
				if streamed {
					want = 3
				}
				var sum int
				if err := s.QueryRow("SELECT SUM(balance) FROM test.account", &sum); err != nil || sum != want {
					t.Errorf("sum %d, %v, want %d: each applied once", sum, err, want)
				}
				if p.Stats().Retried == 0 {
					t.Error("there was no deadlock: the test shows nothing")
				}
			})
		})
	}
}

// A transaction whose server has become read-only meanwhile was certainly not
// committed, and a unit finds its way to the new primary.
func TestCommitRefusedByADemotedServer(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			old, _ := ledger(t, kind)
			fresh, _ := ledger(t, kind)
			via := front(t, old)
			p := open(t, old.AppDSN(via.Addr()), "")
			attempts := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				attempts++
				if err := insert(1)(ctx, s); err != nil {
					return err
				}
				if attempts == 1 {
					if err := old.SetReadOnly(true); err != nil {
						t.Error(err)
					}
					via.SetUpstream(fresh.Addr())
				}
				return nil
			})
			if err != nil || attempts < 2 {
				t.Errorf("%v after %d attempts, want success on the new primary", err, attempts)
			}
			if a, b := count(t, old, "t"), count(t, fresh, "t"); a != 0 || b != 1 {
				t.Errorf("%d rows on the old primary, %d on the new one, want 0 and 1", a, b)
			}
		})
	}
}

// The pool is warm with connections to a server that was demoted; the address leads to a new primary.
func TestUnitDemotedBeforeTheUnit(t *testing.T) {
	t.Parallel()
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			old, _ := ledger(t, kind)
			fresh, _ := ledger(t, kind)
			via := front(t, old)
			p := open(t, old.AppDSN(via.Addr()), "")
			warmReal(t, p.DB, 2)
			if err := old.SetReadOnly(true); err != nil {
				t.Fatal(err)
			}
			via.SetUpstream(fresh.Addr())
			start := time.Now()
			err := p.WithSession(t.Context(), insert(1))
			t.Logf("after %s: %v", time.Since(start), err)
			if err != nil || count(t, fresh, "t") != 1 {
				t.Errorf("want success on the new primary: %v", err)
			}
		})
	}
}

// Read from one place in a ReadOnly unit, write to another in a unit of its own, whose COMMIT is lost.
func TestUnitReadOnlyRerunsAnotherUnitsUnknown(t *testing.T) {
	s, replica := ledger(t, server.MariaDB)
	via := front(t, s)
	primary := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	err := replica.WithSession(t.Context(), func(ctx context.Context, r *livepool.Session) error {
		if err := r.QueryRowContext(ctx, "SELECT COUNT(*) FROM account").Scan(new(int)); err != nil {
			return err
		}
		return primary.WithSession(ctx, insert(1))
	}, livepool.ReadOnly())
	if n := count(t, s, "t"); n != 1 || err == nil {
		t.Errorf("%d rows, said %v: want one row and ErrCommitUnknown", n, err)
	}
}

// The same under Once: the outer unit is rerun although its own COMMIT was never sent.
func TestUnitOnceRerunsAnotherUnitsUnknown(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	via := front(t, s)
	other := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN)
	err := p.WithSession(t.Context(), func(ctx context.Context, r *livepool.Session) error {
		return other.WithSession(ctx, insert(1))
	}, livepool.Once("k"))
	if n := count(t, s, "t"); n != 1 || err == nil {
		t.Errorf("%d rows, said %v: want one row and ErrCommitUnknown", n, err)
	}
}

// A pool's own statement, in fn, in the middle of a unit that is Once, whose answer is lost.
func TestUnitPoolStatementInsideTheUnit(t *testing.T) {
	s, _ := ledger(t, server.MariaDB)
	via := front(t, s)
	p := open(t, s.DSNVia(via.Addr()), "")
	via.CutAfter(proxy.QueryPrefix("INSERT INTO t"), proxy.FIN)
	err := p.WithSession(t.Context(), func(ctx context.Context, sess *livepool.Session) error {
		if _, err := sess.ExecContext(ctx, "DO 1"); err != nil {
			return err
		}
		_, err := p.ExecContext(ctx, "INSERT INTO t (v) VALUES (1)") // autocommit, may have run
		return err
	})
	if n := count(t, s, "t"); n > 1 {
		t.Errorf("%d rows of one autocommitted statement whose loss made the unit run again: %v", n, err)
	}
}

// NOWAIT on MariaDB: the function says no, for good.
func TestUnitNowaitIsRetried(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	tx, _ := openPlain(t, s.DSN()).Begin()
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE account SET balance=1 WHERE id=9"); err != nil {
		t.Fatal(err)
	}
	tries := 0
	taken := errors.New("somebody else has it")
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		tries++
		if err := s.QueryRowContext(ctx, "SELECT balance FROM account WHERE id=9 FOR UPDATE NOWAIT").Scan(new(int)); err != nil {
			return taken
		}
		return nil
	}, livepool.MaxAttempts(4))
	if tries != 1 {
		t.Errorf("%d tries: %v", tries, err)
	}
}

// An error that has nothing to do with the database.
func TestUnitForeignErrorIsRetried(t *testing.T) {
	p := openFake(t, &fake{}, nil)
	tries := 0
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		tries++
		servedBy(t, s)
		return fmt.Errorf("the job's payload: %w", io.EOF)
	}, livepool.MaxAttempts(4))
	if tries != 1 {
		t.Errorf("%d tries: %v", tries, err)
	}
}

// MaxElapsed may end the wait for a server of which nothing is known yet.
func TestMaxElapsedDuringTheFirstConnect(t *testing.T) {
	f := &fake{onConnect: func(ctx context.Context, n int64) error { <-ctx.Done(); return ctx.Err() }}
	p := openFake(t, f, func(c *livepool.Config) { c.MaxElapsed = 200 * time.Millisecond })
	err := p.WithSession(context.Background(), work)
	if err == nil {
		t.Fatal("nil")
	}
	defer func() {
		if r := recover(); r != nil {
			t.Fatalf("err.Error() of %T panics: %v", err, r)
		}
	}()
	t.Log(err.Error())
}

// An unknown outcome says nobody should repeat it, but for those who may.
func TestRetryRepeatsACommitOfUnknownOutcome(t *testing.T) {
	f := &fake{}
	f.onCommit = func(c *fakeConn) error { c.valid.Store(false); return mysql.ErrInvalidConn }
	p := openFake(t, f, nil)
	tries := 0
	err := p.Retry(t.Context(), func(ctx context.Context) error {
		if tries++; tries == 2 {
			f.onCommit = nil
		}
		err := p.WithSession(ctx, work)
		if tries == 1 && (!errors.Is(err, livepool.ErrCommitUnknown) || livepool.Classify(err)&livepool.Retry != 0) {
			t.Errorf("%v: %s, want ErrCommitUnknown, and no Retry", err, livepool.Classify(err))
		}
		return err
	})
	if err != nil || tries != 2 {
		t.Errorf("%d tries: %v", tries, err)
	}
}

func TestRetryOfAnIdempotentFunction(t *testing.T) {
	s, p := ledger(t, server.MariaDB)
	tries := 0
	err := p.Retry(t.Context(), func(ctx context.Context) error {
		tries++
		c, err := p.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if tries == 1 {
			if err := s.KillConnections(); err != nil {
				t.Error(err)
			}
		}
		_, err = c.ExecContext(ctx, "REPLACE INTO account VALUES (1, 5)")
		return err
	})
	if err != nil || tries != 2 {
		t.Errorf("%v after %d tries, want success at the second", err, tries)
	}
	tries = 0
	if err := p.Retry(t.Context(), func(ctx context.Context) error {
		tries++
		_, err := p.ExecContext(ctx, "INSERT INTO account VALUES (1, 5)")
		return err
	}); err == nil || tries != 1 {
		t.Errorf("a duplicate key: %v after %d tries, want the error at the first", err, tries)
	}
}

// A function that works elsewhere before it asks for a connection costs the unit
// none of MaxElapsed, in any of its attempts.
func TestWhatAFunctionDoesBeforeItAsksIsNotCounted(t *testing.T) {
	for name, fails := range map[string]func(attempt int) error{
		"the first": func(int) error { return nil },
		"the second": func(n int) error {
			if n == 1 {
				return serverError(1213, "Deadlock found")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{}
				attempts := 0
				f.onExec = func(context.Context, *fakeConn, string) error { return fails(attempts) }
				p := openFake(t, f, func(c *livepool.Config) { c.MaxElapsed = 5 * time.Second; c.PoolSize = 0 })
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					attempts++
					time.Sleep(time.Minute)
					return work(ctx, s)
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
		f := &fake{onExec: func(context.Context, *fakeConn, string) error { return serverError(1213, "Deadlock found") }}
		p := openFake(t, f, func(c *livepool.Config) {
			c.BackOff = func() backoff.BackOff { return waits{time.Second} }
			c.MaxAttempts, c.MaxElapsed = 1000, 5*time.Second
		})
		attempts := 0
		start := time.Now()
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			attempts++
			time.Sleep(time.Minute)
			return work(ctx, s)
		})
		if took := time.Since(start); attempts != 6 || took != 6*time.Minute+5*time.Second || err == nil || !strings.Contains(err.Error(), "MaxElapsed") {
			t.Errorf("%d attempts in %s: %v", attempts, took, err)
		}
	})
}

// The caller of a unit gets what its function said and what the connection said.
func TestErrorOfTheFunctionAndItsCause(t *testing.T) {
	f := &fake{onExec: func(context.Context, *fakeConn, string) error { return serverError(1213, "Deadlock found") }}
	p := openFake(t, f, func(c *livepool.Config) {
		c.BackOff = func() backoff.BackOff { return &backoff.ZeroBackOff{} }
	})
	own := errors.New("the order could not be saved")
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		work(ctx, s)
		return own
	}, livepool.MaxAttempts(2))
	if !errors.Is(err, own) || !isServerError(err, 1213) {
		t.Errorf("got %v", err)
	}
}

// A retried function whose context has ended says what it says, and is not tried
// again.
func TestRetryWhoseContextEnds(t *testing.T) {
	p := openFake(t, &fake{}, nil)
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
