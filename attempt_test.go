package livepool_test

// Contexts that end, and statements that are under way when they do.

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A context that has ended runs nothing, neither alone nor inside another unit.
func TestUnitUnderAContextThatHasEnded(t *testing.T) {
	p := openFake(t, &fakedb.DB{}, nil)
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
	p := openFake(t, f, nil)
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
			p := openFake(t, f, nil)
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
