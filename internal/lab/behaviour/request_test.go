package behaviour_test

// Statements that were asked for and not sent: swallowed, they are missing as any
// other that failed.

import (
	"context"
	"errors"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// requests are the ways in which a session is asked for a statement.
var requests = map[string]func(context.Context, *livepool.Session) error{
	"Exec": func(ctx context.Context, u *livepool.Session) error {
		_, err := u.ExecContext(ctx, "INSERT INTO t (v) VALUES (3)")
		return err
	},
	"Exec with arguments": labtest.Insert(3),
	"Query": func(ctx context.Context, u *livepool.Session) error {
		rows, err := u.QueryContext(ctx, "SELECT v FROM t FOR UPDATE")
		if err == nil {
			rows.Close()
		}
		return err
	},
	"QueryRow": func(ctx context.Context, u *livepool.Session) error {
		var v int
		return u.QueryRowContext(ctx, "SELECT v FROM t FOR UPDATE").Scan(&v)
	},
	"Prepare": func(ctx context.Context, u *livepool.Session) error {
		_, err := u.PrepareContext(ctx, "INSERT INTO t (v) VALUES (3)")
		return err
	},
}

// underEndedContext has a statement asked for under a context of its own that has ended.
func underEndedContext(way labtest.UnitFunc) labtest.UnitFunc {
	return func(ctx context.Context, u *livepool.Session) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return way(ctx, u)
	}
}

// underOpenResult has a statement asked for while a result is open.
func underOpenResult(way labtest.UnitFunc) labtest.UnitFunc {
	return func(ctx context.Context, u *livepool.Session) error {
		rows, err := u.QueryContext(ctx, "SELECT v FROM t")
		if err != nil {
			return err
		}
		defer rows.Close()
		return way(ctx, u)
	}
}

func TestSwallowedStatementThatWasNotSent(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		p := open(t, s.DSN(), "")
		for name, way := range requests {
			for why, unsent := range map[string]labtest.UnitFunc{"its context had ended": underEndedContext(way), "a result was open": underOpenResult(way)} {
				swallowed, unit, rows := runSwallowing(t, s, p, unsent)
				if swallowed == nil {
					t.Errorf("%s, %s: sent", name, why)
				}
				if !errors.Is(unit, livepool.ErrPoisoned) || rows != 0 {
					t.Errorf("%s, %s: after %v the unit said %v, and %d rows are there", name, why, swallowed, unit, rows)
				}
				_, unit, rows = runSwallowing(t, s, p, func(ctx context.Context, u *livepool.Session) error {
					return p.WithSession(ctx, unsent) // may be given up
				})
				if unit != nil || rows != 2 {
					t.Errorf("%s, %s, in a unit of its own: %v, %d rows, want nil and 2", name, why, unit, rows)
				}
				_, unit, rows = runSwallowing(t, s, p, func(ctx context.Context, u *livepool.Session) error {
					return errors.Join(text("SAVEPOINT mine")(ctx, u), unsent(ctx, u), text("ROLLBACK TO mine")(ctx, u))
				})
				if unit != nil || rows != 2 {
					t.Errorf("%s, %s, behind a savepoint: %v, %d rows, want nil and 2", name, why, unit, rows)
				}
			}
		}
	})
}

// An inner unit whose context had ended was not begun: nothing is missing.
func TestInnerUnitWhoseContextHadEndedMayBeGivenUp(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	_, unit, rows := runSwallowing(t, s, p, func(ctx context.Context, _ *livepool.Session) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return p.WithSession(ctx, labtest.Insert(3))
	})
	if unit != nil || rows != 2 {
		t.Errorf("%v, %d rows", unit, rows)
	}
}
