// locks.go is the faults of those who hold what the units wait for.

package soak

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/clock"
)

// holding runs f in a transaction of root's, which is rolled back.
func (n *node) holding(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*adminPatience)
	defer cancel()
	tx, err := n.admin.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	return f(ctx, tx)
}

// deadlock has two transactions cross the units' rows in opposite orders. They
// weigh more than any unit, so that the server sacrifices the units; in a cluster
// they may be on two nodes, and what the one holds the other learns from no lock.
func deadlock(ctx context.Context, n *nemesis, f fault) (string, error) {
	var wg sync.WaitGroup
	var struck atomic.Int32
	order := rand.New(rand.NewPCG(uint64(f.number), 1)).Perm(accounts)[:8]
	for side := range 2 {
		rows := slices.Clone(order)
		if side == 1 {
			slices.Reverse(rows)
		}
		wg.Go(func() {
			_ = n.lockable(f, side).holding(ctx, func(ctx context.Context, tx *sql.Tx) error { // in the end one of them is the victim
				if _, err := tx.ExecContext(ctx, "DELETE FROM "+ballast[side]); err != nil {
					return err
				}
				for i, id := range rows {
					for _, l := range n.ground.lanes {
						if _, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE %s SET balance = balance WHERE id = %d", l.tables.account, id)); err != nil {
							return err
						}
					}
					if i > 0 {
						struck.Add(1)
					}
					clock.Wait(ctx, nil, f.hold)
				}
				return nil
			})
		})
	}
	wg.Wait()
	if struck.Load() == 0 {
		return "", nil
	}
	return "crossing transactions", nil
}

// lockRow holds some rows for longer than some units wait.
func lockRow(ctx context.Context, n *nemesis, f fault) (string, error) {
	struck := ""
	err := n.lockable(f, 0).holding(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, l := range n.ground.lanes {
			queries := []string{
				fmt.Sprintf("SELECT balance FROM %s WHERE id IN (%d, %d) FOR UPDATE", l.tables.account, f.of(1, accounts), f.of(2, accounts)),
				fmt.Sprintf("SELECT n FROM %s WHERE id = %d FOR UPDATE", l.tables.counter, f.of(1, shards)),
			}
			if _, err := tx.ExecContext(ctx, queries[f.of(0, 2)]); err != nil {
				return err
			}
			struck = "rows locked"
		}
		clock.Wait(ctx, nil, f.hold)
		return nil
	})
	return struck, err
}

// commitTimeout is the pools', which some flush locks outlast.
const commitTimeout = 2 * time.Second

// flushLock holds up every COMMIT, as some backups do.
func flushLock(ctx context.Context, n *nemesis, f fault) (string, error) {
	commit := n.run.plain.openTx(ctx)
	defer commit.Wait()
	granted, err := n.demand(ctx, f, "FLUSH TABLES WITH READ LOCK", commit.begin, func(context.Context) error { return nil })
	commit.begin()
	return f.labelIf(granted, "flush lock", commitTimeout), err
}

// heldCommit is a transaction that wants to be committed while nobody may.
type heldCommit struct {
	sync.WaitGroup
	begin func()
}

// openTx begins one, whose COMMIT is sent with begin.
func (w *plainWork) openTx(ctx context.Context) *heldCommit {
	c := &heldCommit{begin: func() {}}
	e := w.entry("sql.Tx whose COMMIT a flush lock holds up", 2)
	e.tx = true
	tx, err := w.pool.Begin()
	if err != nil {
		return c
	}
	if err = w.twoRows(ctx, tx, e, func() {}); err != nil {
		tx.Rollback()
		w.end(e, err)
		return c
	}
	c.begin = sync.OnceFunc(func() {
		c.Go(func() {
			e.atCommit = true
			w.end(e, tx.Commit())
		})
	})
	return c
}

// alter changes a table under those who use it: it gets a column or loses it, or
// is built anew. It waits for their transactions, and they for it.
func alter(ctx context.Context, n *nemesis, f fault) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*adminPatience)
	defer cancel()
	victim, struck := n.ground.truth(), ""
	conn, err := victim.admin.Conn(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "SET SESSION lock_wait_timeout = 2"); err != nil {
		return "", err
	}
	for _, l := range n.ground.lanes {
		t := l.tables.all()[f.of(0, len(l.tables.all()))]
		how := "FORCE"
		if f.of(1, 2) == 0 {
			has, err := victim.list(ctx, "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = '"+t+"' AND column_name = 'extra'")
			if err != nil {
				return struck, err
			}
			how = "ADD COLUMN extra INT"
			if has != nil {
				how = "DROP COLUMN extra"
			}
		}
		if _, err := conn.ExecContext(ctx, "ALTER TABLE "+t+" "+how); err != nil {
			return struck, err
		}
		struck = "table altered"
	}
	return struck, nil
}
