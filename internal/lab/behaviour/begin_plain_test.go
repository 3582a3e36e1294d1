package behaviour_test

// Plain statements on connections that serve units, too.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// plainUses insert a row outside units, each in another way.
var plainUses = map[string]func(ctx context.Context, p *livepool.Pool, prepared *sql.Stmt, v int64) error{
	"Exec": func(ctx context.Context, p *livepool.Pool, _ *sql.Stmt, v int64) error {
		_, err := p.ExecContext(ctx, fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v))
		return err
	},
	"Exec with arguments": func(ctx context.Context, p *livepool.Pool, _ *sql.Stmt, v int64) error {
		_, err := p.ExecContext(ctx, "INSERT INTO t (v) VALUES (?)", v)
		return err
	},
	"prepared before": func(ctx context.Context, _ *livepool.Pool, prepared *sql.Stmt, v int64) error {
		_, err := prepared.ExecContext(ctx, v)
		return err
	},
	"Query of a procedure": func(ctx context.Context, p *livepool.Pool, _ *sql.Stmt, v int64) error {
		rows, err := p.QueryContext(ctx, fmt.Sprintf("CALL put(%d)", v))
		if err != nil {
			return err
		}
		return rows.Close()
	},
	"sql.Conn": func(ctx context.Context, p *livepool.Pool, _ *sql.Stmt, v int64) error {
		c, err := p.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.ExecContext(ctx, fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v))
		return err
	},
	"Raw": func(ctx context.Context, p *livepool.Pool, _ *sql.Stmt, v int64) error {
		c, err := p.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Raw(func(dc any) error {
			_, err := dc.(interface{ Raw() driver.Conn }).Raw().(driver.ExecerContext).ExecContext(ctx, fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v), nil)
			return err
		})
	},
	"Tx": func(ctx context.Context, p *livepool.Pool, _ *sql.Stmt, v int64) error {
		tx, err := p.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v)); err != nil {
			return err
		}
		return tx.Commit()
	},
}

// Plain statements among units, while connections are cut: each that is told as done is
// committed by itself, and another connection sees it at once.
func TestPlainStatementsAmongUnits(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		const workers, each = 6, 560 // plain statements of each worker
		createTables(t, s)
		via, err := proxy.New(s.Addr(), proxy.WithQueries())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { via.Close() })
		p := open(t, s.DSNVia(via.Addr()), "pool_size=4&pool_max_overflow=0")
		for _, ddl := range []string{"DROP PROCEDURE IF EXISTS put", "CREATE PROCEDURE put(x INT) INSERT INTO t (v) VALUES (x)"} {
			if _, err := p.ExecContext(t.Context(), ddl); err != nil {
				t.Fatal(err)
			}
		}
		prepared, err := p.PrepareContext(t.Context(), "INSERT INTO t (v) VALUES (?)")
		if err != nil {
			t.Fatal(err)
		}
		defer prepared.Close()
		other := openPlain(t, s.DSN())
		var next, done, lost, units atomic.Int64
		use := func(name string) {
			v := next.Add(1)
			err := plainUses[name](t.Context(), p, prepared, v)
			var n int
			if err := other.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM t WHERE v = ?", v).Scan(&n); err != nil {
				t.Error(err)
			}
			switch {
			case err == nil && n != 1:
				t.Errorf("%s: told as done, and there %d times", name, n)
			case err == nil:
				done.Add(1)
			case n > 1:
				t.Errorf("%s: %v, and there %d times", name, err, n)
			default:
				lost.Add(1)
			}
		}
		unit := func() {
			v := -next.Add(1)
			fails := rand.N(4) == 0
			errUndone := errors.New("undone")
			deliver := func() error {
				return p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
					if _, err := u.ExecContext(ctx, fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", v)); err != nil {
						return err
					}
					if fails {
						return errUndone
					}
					return nil
				}, livepool.Once(fmt.Sprint(t.Name(), v)))
			}
			err := deliver()
			for err != nil && strings.Contains(err.Error(), "lost twice in a row") { // by two cuts: as a job, it is delivered again
				err = deliver()
			}
			var n int
			if err := other.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM t WHERE v = ?", v).Scan(&n); err != nil {
				t.Error(err)
			}
			if fails && (!errors.Is(err, errUndone) || n != 0) || !fails && (err != nil || n != 1) {
				t.Errorf("a unit that fails %v: %v, and there %d times", fails, err, n)
			}
			units.Add(1)
		}
		names := slices.Collect(func(yield func(string) bool) {
			for name := range plainUses {
				if !yield(name) {
					return
				}
			}
		})
		stop := make(chan struct{})
		var cutting, wg sync.WaitGroup
		cutting.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(rand.N(2 * time.Second)):
					via.RST()
				}
			}
		})
		for range workers {
			wg.Go(func() {
				for i := 0; i < each; {
					for range 1 + rand.N(8) {
						unit()
					}
					for range 1 + rand.N(6) {
						use(names[rand.N(len(names))])
						i++
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		cutting.Wait()
		changed := changesOfAutocommit(via)
		t.Logf("%d plain statements done, %d told as lost; %d units; autocommit changed %d times", done.Load(), lost.Load(), units.Load(), changed)
		if done.Load() == 0 || units.Load() == 0 || changed < 20 {
			t.Error("too little was done to show anything")
		}
	})
}
