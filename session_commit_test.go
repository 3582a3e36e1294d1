package livepool_test

// Commits inside a unit of work that are not its own.

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A semicolon in a literal costs a connection.
func TestUnitSemicolonInALiteral(t *testing.T) {
	f := &fakedb.DB{}
	p := openFake(t, f, nil)
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
	p := openFake(t, f, nil)
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
	p := openFake(t, f, nil)
	err := p.WithSession(ctx, labtest.Work, livepool.Once("k"))
	if !errors.Is(err, livepool.ErrCommitUnknown) {
		t.Fatal(err)
	}
	if errors.Is(err, livepool.ErrSessionDone) || strings.Contains(err.Error(), "nothing of it is committed") {
		t.Errorf("unknown, and at the same time not applied: %v", err)
	}
}
