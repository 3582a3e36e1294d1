package connector_test

// Results that are being read inside a transaction.

import (
	"database/sql"
	"errors"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A result that is closed early may meet its error then: the caller is told, and
// what that error has ended is over.
func TestFailureOfRowsClose(t *testing.T) {
	b := &commitDB{failClose: fakedb.ServerError(1213, "Deadlock found")}
	p := b.pool(t)
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	rows, err := tx.Query("SELECT v FROM t FOR UPDATE")
	if err != nil || !rows.Next() {
		t.Fatalf("no rows: %v", err)
	}
	if err := rows.Close(); !labtest.IsServerError(err, 1213) {
		t.Errorf("Close: %v, want the deadlock", err)
	}
	if _, err := tx.Exec("INSERT"); !errors.Is(err, livepool.ErrPoisoned) {
		t.Errorf("the next statement: %v, want ErrPoisoned", err)
	}
	if err := tx.Commit(); !errors.Is(err, livepool.ErrPoisoned) || b.rows != 0 {
		t.Errorf("Commit: %v, %d rows", err, b.rows)
	}
}

// Several results that are open at a time, for a driver that can, and several
// statements are each its own.
func TestResultsAndStatementsThatAreOpenTogether(t *testing.T) {
	d := &fakedb.RecordingDB{}
	p := labtest.OpenRecording(t, d, nil)
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var open []*sql.Rows
	for range 3 {
		rows, err := tx.Query("SELECT 1")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, rows)
	}
	for i, rows := range open {
		n := 0
		for rows.Next() {
			n++
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil || n != 1 {
			t.Errorf("result %d has %d rows, want its own one: %v", i, n, err)
		}
	}
	var prepared []*sql.Stmt
	for range 3 {
		st, err := tx.Prepare("UPDATE t SET a = 1")
		if err != nil {
			t.Fatal(err)
		}
		prepared = append(prepared, st)
	}
	for i, st := range prepared {
		if _, err := st.Exec(); err != nil {
			t.Errorf("statement %d: %v", i, err)
		}
		st.Close()
		if want := int64(len(prepared) - 1 - i); d.Statements.Load() != want {
			t.Errorf("%d statements are open on the server, want %d", d.Statements.Load(), want)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	d.CheckClosed(t, p)
}
