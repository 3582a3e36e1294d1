package livepool_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

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
