package unitdb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/livepool/livepool/internal/unitdb"
)

// unit is a unit of work: a transaction, what was run on it, and whether it has ended.
type unit struct {
	*sql.Tx
	ran    []string
	ended  error
	broken error
	inner  int64  // how many units inside it have ended well
	fail   string // the statement of a savepoint that fails
}

func (u *unit) EndedErr() error { return u.ended }

func (u *unit) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	u.ran = append(u.ran, query)
	return u.Tx.ExecContext(ctx, query, args...)
}

// open is a unit as a *sql.DB, on a database that is prepared by expect.
func open(t *testing.T, own sql.TxOptions, expect func(sqlmock.Sqlmock)) (*unit, *unitdb.DB) {
	t.Helper()
	mock, m, err := sqlmock.New(sqlmock.QueryMatcherOption(sqlmock.QueryMatcherEqual))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mock.Close() })
	m.ExpectBegin()
	if expect != nil {
		expect(m)
	}
	tx, err := mock.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	u := &unit{Tx: tx}
	db := unitdb.New(unitdb.Env{Unit: u, Driver: mock.Driver(), Tx: &own, Prefix: "sp",
		Begin: func(context.Context) error { return nil }, Inner: func() int64 { return u.inner },
		Exec: func(query string) error {
			u.ran = append(u.ran, query)
			if query == u.fail {
				return errors.New("refused")
			}
			return nil
		},
		Broken: func(err error) { u.broken = err }})
	t.Cleanup(func() { db.Close() })
	return u, db
}

func TestTransactionsAreSavepoints(t *testing.T) {
	t.Parallel()
	begin := func(db *unitdb.DB) *sql.Tx {
		tx, err := db.SQL().Begin()
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	for name, tt := range map[string]struct {
		fail   string
		do     func(db *unitdb.DB) error
		ran    []string
		open   bool
		broken string
	}{
		"committed": {do: func(db *unitdb.DB) error { return begin(db).Commit() }, ran: []string{"SAVEPOINT sp1", "RELEASE SAVEPOINT sp1"}},
		"rolled back": {do: func(db *unitdb.DB) error { return begin(db).Rollback() },
			ran: []string{"SAVEPOINT sp1", "ROLLBACK TO SAVEPOINT sp1", "RELEASE SAVEPOINT sp1"}},
		"left open": {do: func(db *unitdb.DB) error { begin(db); return nil }, ran: []string{"SAVEPOINT sp1"}, open: true},
		"one in the other": {do: func(db *unitdb.DB) error {
			outer, inner := begin(db), begin(db)
			return errors.Join(inner.Rollback(), outer.Commit())
		}, ran: []string{"SAVEPOINT sp1", "SAVEPOINT sp2", "ROLLBACK TO SAVEPOINT sp2", "RELEASE SAVEPOINT sp2", "RELEASE SAVEPOINT sp1"}},
		"not nested": {do: func(db *unitdb.DB) error {
			outer := begin(db)
			begin(db)
			return outer.Rollback()
		}, ran: []string{"SAVEPOINT sp1", "SAVEPOINT sp2"}, broken: "savepoints only nest"},
		"ended with an earlier one": {do: func(db *unitdb.DB) error {
			outer, inner := begin(db), begin(db)
			outer.Rollback()
			return inner.Commit()
		}, ran: []string{"SAVEPOINT sp1", "SAVEPOINT sp2"}, broken: "savepoints only nest"},
		"not begun":    {fail: "SAVEPOINT sp1", do: func(db *unitdb.DB) error { _, err := db.SQL().Begin(); return err }, ran: []string{"SAVEPOINT sp1"}},
		"not released": {fail: "RELEASE SAVEPOINT sp1", do: func(db *unitdb.DB) error { return begin(db).Commit() }, ran: []string{"SAVEPOINT sp1", "RELEASE SAVEPOINT sp1"}, broken: "refused"},
		"not undone": {fail: "ROLLBACK TO SAVEPOINT sp1", do: func(db *unitdb.DB) error { return begin(db).Rollback() },
			ran: []string{"SAVEPOINT sp1", "ROLLBACK TO SAVEPOINT sp1"}, broken: "refused"},
	} {
		u, db := open(t, sql.TxOptions{}, nil)
		u.fail = tt.fail
		err := tt.do(db)
		if failed := tt.fail != "" || tt.broken != ""; (err != nil) != failed {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Equal(u.ran, tt.ran) || db.HasOpenTx() != tt.open {
			t.Errorf("%s: ran %q, open %t", name, u.ran, db.HasOpenTx())
		}
		if broken := fmt.Sprint(u.broken); tt.broken == "" && u.broken != nil || !strings.Contains(broken, tt.broken) {
			t.Errorf("%s: the unit is told %v", name, u.broken)
		}
	}
}

// A transaction whose own context ends is rolled back by database/sql, sooner or later:
// what the unit does meanwhile would be undone with it, so that the unit must fail.
func TestTransactionWhoseContextEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*sql.Tx) error{
		"and is rolled back": (*sql.Tx).Rollback, "and is committed": (*sql.Tx).Commit,
	} {
		u, db := open(t, sql.TxOptions{}, nil)
		ctx := &lateContext{Context: t.Context()}
		tx, err := db.SQL().BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx.ended = true
		end(tx)
		if !errors.Is(u.broken, context.Canceled) || db.HasOpenTx() {
			t.Errorf("%s: ran %q, told %v", name, u.ran, u.broken)
		}
	}
}

// lateContext has ended, but nobody who waits for its end has been woken yet.
type lateContext struct {
	context.Context
	ended bool
}

func (c *lateContext) Err() error {
	if c.ended {
		return context.Canceled
	}
	return c.Context.Err()
}

// A library may close it in the middle.
func TestItIsOpenedAgain(t *testing.T) {
	t.Parallel()
	_, db := open(t, sql.TxOptions{}, func(m sqlmock.Sqlmock) { m.ExpectExec("x").WillReturnResult(sqlmock.NewResult(1, 1)) })
	db.SQL().Close()
	if _, err := db.SQL().Exec("x"); err != nil {
		t.Error(err)
	}
}

func TestOptionsThatASavepointCannotHave(t *testing.T) {
	t.Parallel()
	own := sql.TxOptions{Isolation: sql.LevelSerializable, ReadOnly: true}
	for _, tt := range []struct {
		unit, asked sql.TxOptions
		ok          bool
	}{
		{sql.TxOptions{}, sql.TxOptions{}, true},
		{own, sql.TxOptions{}, true},
		{own, own, true},
		{sql.TxOptions{}, sql.TxOptions{ReadOnly: true}, false},
		{sql.TxOptions{}, sql.TxOptions{Isolation: sql.LevelSerializable}, false},
		{own, sql.TxOptions{Isolation: sql.LevelReadCommitted}, false},
	} {
		_, db := open(t, tt.unit, nil)
		if _, err := db.SQL().BeginTx(t.Context(), &tt.asked); (err == nil) != tt.ok {
			t.Errorf("%v in a unit with %v: %v", tt.asked, tt.unit, err)
		}
	}
}

func TestNothingRunsAfterTheUnit(t *testing.T) {
	t.Parallel()
	over := errors.New("the unit is over")
	u, db := open(t, sql.TxOptions{}, nil)
	held, err := db.SQL().Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	tx, err := held.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	u.ended = over
	if err := tx.Commit(); !errors.Is(err, over) {
		t.Errorf("COMMIT: %v", err)
	}
	if err := held.PingContext(t.Context()); !errors.Is(err, over) {
		t.Errorf("ping: %v", err)
	}
	if _, err := db.SQL().Begin(); !errors.Is(err, over) {
		t.Errorf("begin: %v", err)
	}
	if slices.Contains(u.ran, "RELEASE SAVEPOINT sp1") {
		t.Errorf("ran %q", u.ran)
	}
}

func TestArgumentsAndResults(t *testing.T) {
	t.Parallel()
	_, db := open(t, sql.TxOptions{}, func(m sqlmock.Sqlmock) {
		m.ExpectExec("named").WithArgs(sql.Named("id", 7)).WillReturnResult(sqlmock.NewResult(1, 2))
		m.ExpectQuery("two results").WithArgs(uint64(1<<62), nil).WillReturnRows(
			sqlmock.NewRows([]string{"a", "b"}).AddRow([]byte("x"), nil).AddRow([]byte("y"), uint64(1<<62)),
			sqlmock.NewRows([]string{"c"}).AddRow(int64(3)))
		m.ExpectPrepare("prepared").ExpectQuery().WithArgs("p").WillReturnRows(sqlmock.NewRows([]string{"a"}).AddRow("q"))
		m.ExpectQuery("fails late").WillReturnRows(sqlmock.NewRows([]string{"a"}).AddRow(1).AddRow(2).RowError(1, errors.New("lost")))
	})
	res, err := db.SQL().Exec("named", sql.Named("id", 7))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := res.RowsAffected(); n != 2 {
		t.Errorf("%d rows are affected", n)
	}

	rows, err := db.SQL().Query("two results", uint64(1<<62), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for rows.Next() {
		var a sql.RawBytes
		var b sql.Null[uint64]
		if err := rows.Scan(&a, &b); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(string(a), b.Valid, b.V))
	}
	if !rows.NextResultSet() {
		t.Fatal("there is no second result", rows.Err())
	}
	for rows.Next() {
		var c int
		if err := rows.Scan(&c); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(c))
	}
	if want := []string{"xfalse 0", "ytrue 4611686018427387904", "3"}; !slices.Equal(got, want) || rows.NextResultSet() || rows.Err() != nil {
		t.Errorf("got %q, %v", got, rows.Err())
	}

	stmt, err := db.SQL().Prepare("prepared")
	if err != nil {
		t.Fatal(err)
	}
	defer stmt.Close()
	var q string
	if err := stmt.QueryRow("p").Scan(&q); err != nil || q != "q" {
		t.Errorf("prepared: %q, %v", q, err)
	}
	rows, err = db.SQL().Query("fails late")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for rows.Next() {
		n++
	}
	if n != 1 || rows.Err() == nil {
		t.Errorf("%d rows, then %v", n, rows.Err())
	}
}
