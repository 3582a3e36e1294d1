package behaviour_test

// What waits for a commit: each function once, whatever the others do.

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// What the hook of a RequiresNew does is no part of the unit around it, which fails.
func TestUnitOfAHookIsItsOwn(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.DSN(), "")
		var hookErr error
		err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
			if err := labtest.Insert(1)(ctx, outer); err != nil {
				return err
			}
			if err := p.WithSession(ctx, func(ctx context.Context, own *livepool.Session) error {
				own.AfterCommit(func(ctx context.Context) { hookErr = p.WithSession(ctx, labtest.Insert(3)) })
				return labtest.Insert(2)(ctx, own)
			}, livepool.RequiresNew()); err != nil {
				return err
			}
			return errors.New("refused")
		})
		if n, of := count(t, s, "t"), count(t, s, "t WHERE v = 3"); hookErr != nil || n != 2 || of != 1 {
			t.Errorf("the hook's unit said %v; %d rows, want 2, and %d of the hook's, want 1; %v", hookErr, n, of, err)
		}
	})
}

// Two deliveries of one key: the first one's COMMIT is lost and has not happened, the
// second is applied meanwhile. The key says that the work is applied, not by whom:
// the hooks of both are run, for with those of neither a notification would be lost.
func TestHooksOfTwoDeliveriesOfOneKey(t *testing.T) {
	s, direct := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p := open(t, s.DSNVia(via.Addr()), "pool_size=1")
	cut := via.CutBefore(proxy.QueryPrefix("COMMIT"), proxy.RST)
	var mu sync.Mutex
	var hooks []string
	unit := func(name string, v int) labtest.UnitFunc {
		return func(ctx context.Context, s *livepool.Session) error {
			s.AfterCommit(func(context.Context) { mu.Lock(); hooks = append(hooks, name); mu.Unlock() })
			if name == "first" && s.Attempt() == 1 {
				via.Refuse()
			}
			return labtest.Insert(v)(ctx, s)
		}
	}
	var second error
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-cut.Done()
		second = direct.WithSession(context.Background(), unit("second", 2), livepool.Once("k"))
		if err := via.Reopen(); err != nil {
			t.Error(err)
		}
	}()
	first := p.WithSession(t.Context(), unit("first", 1), livepool.Once("k"))
	<-done
	if n, of := count(t, s, "t"), count(t, s, "t WHERE v = 2"); n != 1 || of != 1 || first != nil || second != nil || !slices.Equal(hooks, []string{"second", "first"}) {
		t.Errorf("%d rows, %d of the second delivery, want 1 and 1; %v, %v; hooks %v", n, of, first, second, hooks)
	}
}
