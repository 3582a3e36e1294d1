package livepool_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
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
					_, err := s.ExecContext(ctx, "UPDATE t SET a = 1")
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

// A place comes back from every way out.
func TestPlacesComeBackFromPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := openFake(t, &fake{}, func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = 1, 0 })
		for range 3 {
			func() {
				defer func() { recover() }()
				p.WithSession(t.Context(), func(_ context.Context, s *livepool.Session) error {
					servedBy(t, s)
					panic("job")
				})
			}()
		}
		start := time.Now()
		if err := p.WithSession(t.Context(), insert(1)); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
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
