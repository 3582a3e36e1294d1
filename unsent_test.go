package livepool_test

// Statements that were asked for and not sent: swallowed, they are missing as any
// other that failed.

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A context that ends between database/sql and the driver.
func TestSwallowedContextThatEndsBeforeTheWrite(t *testing.T) {
	var cancel context.CancelFunc
	f := &fakedb.DB{OnExec: func(ctx context.Context, _ *fakedb.Conn, query string) error {
		if query == "INSERT" {
			cancel()
		}
		return ctx.Err()
	}}
	p := openFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		tx, err := s.Tx(ctx) // where the session itself does not look
		if err != nil {
			return err
		}
		var own context.Context
		own, cancel = context.WithCancel(ctx)
		tx.ExecContext(own, "INSERT")
		return nil
	})
	if !errors.Is(err, livepool.ErrPoisoned) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The context of an inner unit ends while its savepoint is set, by which nothing of
// the outer one is missing.
func TestSavepointOfAnInnerUnitIsSentUnderTheOuterContext(t *testing.T) {
	var cancel context.CancelFunc
	f := &fakedb.DB{OnExec: func(ctx context.Context, _ *fakedb.Conn, query string) error {
		if strings.HasPrefix(query, "SAVEPOINT") {
			cancel()
			select {
			case <-ctx.Done(): // it is the inner one's
			case <-time.After(100 * time.Millisecond):
			}
		}
		return ctx.Err()
	}}
	p := openFake(t, f, nil)
	var inner error
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		if err := labtest.Work(ctx, s); err != nil {
			return err
		}
		ctx, cancel = context.WithCancel(ctx)
		inner = p.WithSession(ctx, labtest.Work)
		return nil
	})
	if err != nil || !errors.Is(inner, context.Canceled) {
		t.Errorf("%v; the inner one %v", err, inner)
	}
}
