package connector_test

// What becomes of the work under way on a host that the pool leaves for another one.

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// work is something in a transaction, during which the pool leaves the host.
type work func(ctx context.Context, p *livepool.Pool, leave func()) error

func workOfUnit(opts ...livepool.SessionOption) work {
	return func(ctx context.Context, p *livepool.Pool, leave func()) error {
		return p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
			err := labtest.Work(ctx, s)
			leave()
			return err
		}, opts...)
	}
}

func workOfInnerUnit(ctx context.Context, p *livepool.Pool, leave func()) error {
	return p.WithSession(ctx, func(ctx context.Context, _ *livepool.Session) error { return workOfUnit()(ctx, p, leave) })
}

func workOfTransaction(isOnConn, isReadOnly bool) work {
	return func(ctx context.Context, p *livepool.Pool, leave func()) error {
		begin := p.BeginTx
		if isOnConn {
			c, err := p.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			begin = c.BeginTx
		}
		tx, err := begin(ctx, &sql.TxOptions{ReadOnly: isReadOnly})
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DO 1"); err != nil {
			return err
		}
		leave()
		return tx.Commit()
	}
}

// What an old primary commits is lost, or is that of a second one: a transaction that was begun
// there is not committed once the pool has left it, and its connection is closed. A unit is run
// again on the new primary. What is read-only has nothing to lose; and in a Galera cluster the
// commit of any node counts.
func TestNothingIsCommittedOnAHostThatWasLeft(t *testing.T) {
	const onOld, onNew, nowhere = "a", "b", ""
	for _, tt := range []struct {
		name      string
		do        work
		isCluster bool
		runs      int    // how often it was begun
		committed string // where
	}{
		{"a unit", workOfUnit(), false, 2, onNew},
		{"a unit with a key", workOfUnit(livepool.Once("unit")), false, 2, onNew},
		{"a unit around another one", workOfInnerUnit, false, 2, onNew},
		{"a read-only unit", workOfUnit(livepool.ReadOnly()), false, 1, onOld},
		{"a transaction", workOfTransaction(false, false), false, 1, nowhere},
		{"a transaction of a sql.Conn", workOfTransaction(true, false), false, 1, nowhere},
		{"a read-only transaction", workOfTransaction(false, true), false, 1, onOld},
		{"a unit in a cluster", workOfUnit(), true, 1, onOld},
		{"a transaction in a cluster", workOfTransaction(false, false), true, 1, onOld},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", true)
				a.IsNode, b.IsNode = tt.isCluster, tt.isCluster
				p, _ := openHosts(t, nil, a, b)
				committed, runs := "", 0
				leave := func() {
					if runs++; runs > 1 {
						return
					}
					a.OnConnect = func(context.Context, int64) error { return syscall.ECONNREFUSED } // what is connected remains so
					b.ReadOnly.Store(false)
					if err := p.WithSession(t.Context(), labtest.Work); err != nil || b.OpenConns() == 0 {
						t.Fatalf("%v; the pool has not gone over to the new primary", err)
					}
					a.OnCommit = func(*fakedb.Conn) error { committed += onOld; return nil }
					b.OnCommit = func(*fakedb.Conn) error { committed += onNew; return nil }
				}
				err := tt.do(t.Context(), p, leave)
				if committed != tt.committed || runs != tt.runs {
					t.Errorf("committed on %q after %d runs, want %q after %d", committed, runs, tt.committed, tt.runs)
				}
				switch isTold := err != nil && strings.Contains(err.Error(), "nothing was committed") && strings.Contains(err.Error(), "tcp(b:3306), which takes writes now"); {
				case tt.committed != nowhere && err != nil:
					t.Error(err)
				case tt.committed == nowhere && (!isTold || errors.Is(err, livepool.ErrCommitUnknown)):
					t.Errorf("%v, want that nothing was committed, and why", err)
				}
				if _, err := p.Exec(insert); err != nil {
					t.Errorf("the next statement: %v", err)
				}
				time.Sleep(time.Second)
				if n := a.OpenConns(); n != 0 {
					t.Errorf("%d connections to the old primary are left", n)
				}
			})
		})
	}
}

// Two addresses, as of two balancers, may lead to one server: what was begun by the one is committed,
// though the pool has gone over to the other.
func TestWorkIsCommittedOnTheSameServerByAnotherAddress(t *testing.T) {
	for name, do := range map[string]work{"a transaction": workOfTransaction(false, false), "a unit": workOfUnit()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("one", false), newHost("one", false)
				p, _ := openHosts(t, nil, a, b)
				committed, runs := 0, 0
				leave := func() {
					runs++
					a.OnConnect = func(context.Context, int64) error { return syscall.ECONNREFUSED } // as while it is drained
					if err := p.WithSession(t.Context(), labtest.Work); err != nil || b.OpenConns() == 0 {
						t.Fatalf("%v; the pool has not gone over to the other address", err)
					}
					a.OnCommit = func(*fakedb.Conn) error { committed++; return nil }
				}
				if err := do(t.Context(), p, leave); err != nil || committed != 1 || runs != 1 {
					t.Errorf("%v; committed %d times after %d runs, want once after one", err, committed, runs)
				}
			})
		})
	}
}
