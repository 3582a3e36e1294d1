package behaviour_test

// A unit as a *sql.DB, on real servers: what a library does with it is part of the unit,
// whatever happens to the connection.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

func insertOn(db interface {
	Exec(string, ...any) (sql.Result, error)
}, v int) error {
	_, err := db.Exec("INSERT INTO t (v) VALUES (?)", v)
	return err
}

// kept runs fn as a unit on each server, and returns which of the rows it inserted are
// there, and what the unit said.
func kept(t *testing.T, kind server.Kind, fn labtest.UnitFunc) (rows string, err error) {
	s, p := openLedger(t, kind)
	err = p.WithSession(context.WithValue(t.Context(), poolKey{}, p), fn)
	if err := s.QueryRow("SELECT COALESCE(GROUP_CONCAT(v ORDER BY v), '') FROM test.t", &rows); err != nil {
		t.Fatal(err)
	}
	return rows, err
}

// poolKey is the key of the pool in the context of kept.
type poolKey struct{}

func poolOf(ctx context.Context) *livepool.Pool { return ctx.Value(poolKey{}).(*livepool.Pool) }

func TestUnitAsADB(t *testing.T) {
	refused := errors.New("refused")
	for name, tt := range map[string]struct {
		fn   labtest.UnitFunc
		rows string
		err  string // "" for none
	}{
		"a transaction on it is kept or undone by itself": {func(ctx context.Context, s *livepool.Session) error {
			db := s.DB()
			if err := insertOn(db, 1); err != nil {
				return err
			}
			keep, err := db.Begin()
			if err != nil {
				return err
			}
			if err := errors.Join(insertOn(keep, 2), keep.Commit()); err != nil {
				return err
			}
			undo, err := db.Begin()
			if err != nil {
				return err
			}
			return errors.Join(insertOn(undo, 3), undo.Rollback(), insertOn(db, 4))
		}, "1,2,4", ""},
		"what it committed is undone with the unit": {func(ctx context.Context, s *livepool.Session) error {
			tx, err := s.DB().Begin()
			if err != nil {
				return err
			}
			return errors.Join(insertOn(tx, 1), tx.Commit(), refused)
		}, "", "refused"},
		"a transaction that is left open has the unit fail": {func(ctx context.Context, s *livepool.Session) error {
			tx, err := s.DB().BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			return insertOn(tx, 1)
		}, "", "a transaction that it began on Session.DB was open"},
		"one that does not nest has the unit fail": {func(ctx context.Context, s *livepool.Session) error {
			first, err := s.DB().BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			second, err := s.DB().BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			insertOn(second, 1)
			first.Rollback()
			return second.Commit()
		}, "", "savepoints only nest"},
		"an error that its rollback undid is handled": {func(ctx context.Context, s *livepool.Session) error {
			tx, err := s.DB().Begin()
			if err != nil {
				return err
			}
			own, cancel := context.WithCancel(ctx)
			cancel()
			if _, err := tx.ExecContext(own, "INSERT INTO t (v) VALUES (1)"); err == nil {
				return errors.New("the statement ran under a context that had ended")
			}
			return errors.Join(tx.Rollback(), insertOn(s.DB(), 2))
		}, "2", ""},
		"one whose context ends has the unit fail, for what follows may be undone with it": {func(ctx context.Context, s *livepool.Session) error {
			own, cancel := context.WithCancel(ctx)
			defer cancel()
			tx, err := s.DB().BeginTx(own, nil)
			if err != nil {
				return err
			}
			err = insertOn(tx, 1)
			cancel()
			_, execErr := s.ExecContext(ctx, "INSERT INTO t (v) VALUES (2)") // before or after that rollback
			return errors.Join(err, execErr)
		}, "", "livepool: nothing is committed"},
		"one that is rolled back with a unit inside that ended well has the unit fail": {func(ctx context.Context, s *livepool.Session) error {
			tx, err := s.DB().Begin()
			if err != nil {
				return err
			}
			if err := poolOf(ctx).WithSession(ctx, func(ctx context.Context, inner *livepool.Session) error {
				inner.AfterCommit(func(context.Context) { panic("told of what was undone") })
				return labtest.Insert(1)(ctx, inner)
			}); err != nil {
				return err
			}
			tx.Rollback()
			return nil
		}, "", "a unit inside had ended well"},
		"a library closes it": {func(_ context.Context, s *livepool.Session) error {
			return errors.Join(insertOn(s.DB(), 1), s.DB().Close(), insertOn(s.DB(), 2))
		}, "1,2", ""},
		"a unit inside it has its own": {func(ctx context.Context, s *livepool.Session) error {
			if err := insertOn(s.DB(), 1); err != nil {
				return err
			}
			err := poolOf(ctx).WithSession(ctx, func(ctx context.Context, inner *livepool.Session) error {
				tx, err := inner.DB().Begin()
				if err != nil {
					return err
				}
				return errors.Join(insertOn(tx, 2), tx.Commit(), refused)
			})
			if !errors.Is(err, refused) {
				return fmt.Errorf("the inner unit: %w", err)
			}
			return insertOn(s.DB(), 3)
		}, "1,3", ""},
	} {
		for _, kind := range server.Kinds() {
			t.Run(name+"/"+string(kind), func(t *testing.T) {
				t.Parallel()
				rows, err := kept(t, kind, tt.fn)
				if rows != tt.rows || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
					t.Errorf("rows %q, %v", rows, err)
				}
			})
		}
	}
}

// The connection dies in a transaction on it: the unit is run again, as a whole.
func TestLossUnderAUnitAsADB(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s, p := openLedger(t, kind)
			attempts := 0
			if err := p.WithSession(t.Context(), func(ctx context.Context, ses *livepool.Session) error {
				attempts++
				db := ses.DB()
				if err := insertOn(db, 1); err != nil {
					return err
				}
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				defer tx.Rollback()
				if attempts == 1 {
					if err := s.Exec(fmt.Sprintf("KILL %d", connectionID(t, tx))); err != nil {
						t.Error(err)
					}
				}
				if err := insertOn(tx, 2); err != nil {
					return err
				}
				return tx.Commit()
			}); err != nil || attempts != 2 {
				t.Errorf("%d attempts, %v", attempts, err)
			}
			if n := count(t, s, "t"); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		})
	}
}

// Each value and each type of a column is as on a plain sql.Tx.
func TestColumnsOfAUnitAsADB(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "parseTime=true")
	const query = "SELECT CAST(1 AS UNSIGNED) - 1 + 18446744073709551615 a, -5 b, 1.50 c, 2e0 d, NULL e, 'x' f, CAST('y' AS BINARY) g, " +
		"TIMESTAMP'2026-11-26 01:02:03' h, DATE'2026-11-26' i, TIME'11:12:13' j, CAST(REPEAT('z', 70000) AS CHAR) k"
	read := func(q interface {
		QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	}, query string, args ...any) (got []any) {
		rows, err := q.QueryContext(t.Context(), query, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		types, err := rows.ColumnTypes()
		if err != nil {
			t.Fatal(err)
		}
		values := make([]any, len(types))
		for i, ct := range types {
			values[i] = new(any)
			length, hasLength := ct.Length()
			nullable, knowsNull := ct.Nullable()
			precision, scale, isDecimal := ct.DecimalSize()
			got = append(got, ct.Name(), ct.DatabaseTypeName(), ct.ScanType(), length, hasLength, nullable, knowsNull, precision, scale, isDecimal)
		}
		for rows.Next() {
			if err := rows.Scan(values...); err != nil {
				t.Fatal(err)
			}
			for _, v := range values {
				got = append(got, *v.(*any))
			}
		}
		return append(got, rows.Err())
	}
	if err := p.WithSession(t.Context(), func(ctx context.Context, ses *livepool.Session) error {
		tx, err := ses.Tx(ctx)
		if err != nil {
			return err
		}
		for _, q := range []struct {
			query string
			args  []any
		}{{query, nil}, {query + " WHERE 1 = ?", []any{1}}} {
			if plain, got := read(tx, q.query, q.args...), read(ses.DB(), q.query, q.args...); !reflect.DeepEqual(plain, got) {
				t.Errorf("%v:\nplain %v\ngot   %v", q.args, plain, got)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Whoever reads the first of two results is told by Close that the second failed.
func TestResultThatFailsUnreadOnAUnitAsADB(t *testing.T) {
	p := open(t, servertest.Run(t, server.MariaDB).DSN(), "multiStatements=true")
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		rows, err := s.DB().QueryContext(ctx, "SELECT 1; SELECT absent")
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
		}
		if err := errors.Join(rows.Err(), rows.Close()); err == nil || !strings.Contains(err.Error(), "absent") {
			t.Errorf("the rows say %v", err)
		}
		return nil
	}); !errors.Is(err, livepool.ErrPoisoned) {
		t.Errorf("the unit says %v", err)
	}
}

// After its unit nothing runs on it, and nothing of it is left.
func TestUnitAsADBEndsWithTheUnit(t *testing.T) {
	_, p := openLedger(t, server.MariaDB)
	var session *livepool.Session
	var db *sql.DB
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		session, db = s, s.DB()
		if db != s.DB() {
			t.Error("there are two of it")
		}
		return insertOn(db, 1)
	}); err != nil {
		t.Fatal(err)
	}
	for name, after := range map[string]*sql.DB{"kept": db, "asked for": session.DB()} {
		if err := insertOn(after, 2); err == nil {
			t.Errorf("%s: a statement after the unit", name)
		}
		if _, err := after.Begin(); err == nil {
			t.Errorf("%s: a transaction after the unit", name)
		}
	}
}
