package livepooltest_test

// The faults on sqlmock, through livepool's public API.

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/livepooltest"
)

var one = sqlmock.NewResult(0, 1)

func TestMockFailNextCommit(t *testing.T) {
	pool, mock, faults := livepooltest.Mock(t)
	runs := 0

	mock.ExpectBegin()
	mock.ExpectExec("INSERT INTO t").WithArgs(1).WillReturnResult(one)
	mock.ExpectCommit()
	faults.FailNextCommit(livepooltest.AfterApplied)
	if err := pool.WithSession(t.Context(), insert(&runs, 1)); !errors.Is(err, livepool.ErrCommitUnknown) || runs != 1 {
		t.Errorf("after: got %v, %d runs", err, runs)
	}

	mock.ExpectBegin()
	mock.ExpectExec("INSERT INTO t").WithArgs(2).WillReturnResult(one)
	mock.ExpectRollback()
	faults.FailNextCommit(livepooltest.BeforeApplied)
	if err := pool.WithSession(t.Context(), insert(&runs, 2)); !errors.Is(err, livepool.ErrCommitUnknown) || runs != 2 {
		t.Errorf("before: got %v, %d runs", err, runs)
	}

	// With a key the outcome is found out.
	mock.ExpectBegin()
	mock.ExpectExec("INSERT INTO livepool_commits").WillReturnResult(one)
	mock.ExpectExec("INSERT INTO t").WithArgs(3).WillReturnResult(one)
	mock.ExpectCommit()
	mock.ExpectBegin()
	mock.ExpectExec("INSERT INTO livepool_commits").WillReturnError(&mysql.MySQLError{Number: 1062, Message: "Duplicate entry 'x' for key 'PRIMARY'"})
	mock.ExpectRollback()
	faults.FailNextCommit(livepooltest.AfterApplied)
	if err := pool.WithSession(t.Context(), insert(&runs, 3), livepool.VerifyCommit()); err != nil || runs != 3 {
		t.Errorf("verified: got %v, %d runs", err, runs)
	}
}

func TestMockNextStatement(t *testing.T) {
	pool, mock, faults := livepooltest.Mock(t)
	runs := 0
	for _, answer := range []mysql.MySQLError{livepooltest.Deadlock, livepooltest.LockWait, livepooltest.ReadOnly} {
		mock.ExpectBegin()
		mock.ExpectRollback()
		mock.ExpectBegin()
		mock.ExpectExec("INSERT INTO t").WithArgs(1).WillReturnResult(one)
		mock.ExpectCommit()
		faults.NextStatement("insert into t", answer)
		if err := pool.WithSession(t.Context(), insert(&runs, 1)); err != nil || runs != 2 {
			t.Errorf("%v: got %v, %d runs", &answer, err, runs)
		}
		runs = 0
	}

	// Prepared statements and queries are hit as well.
	mock.ExpectPrepare("SELECT 1").ExpectQuery().WillReturnRows(sqlmock.NewRows([]string{"1"}).AddRow(1))
	stmt, err := pool.PrepareContext(t.Context(), "SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	var my *mysql.MySQLError
	faults.NextStatement("SELECT 1", livepooltest.Interrupted)
	if err := stmt.QueryRowContext(t.Context()).Scan(new(int)); !errors.As(err, &my) || my.Number != 1317 {
		t.Errorf("prepared: got %v", err)
	}
	if err := stmt.QueryRowContext(t.Context()).Scan(new(int)); err != nil {
		t.Errorf("prepared, without a fault: %v", err)
	}
	faults.NextStatement("SELECT 2", livepooltest.Interrupted)
	if err := pool.QueryRowContext(t.Context(), "SELECT 2").Scan(new(int)); !errors.As(err, &my) || my.Number != 1317 {
		t.Errorf("query: got %v", err)
	}
}

func TestMockGoAway(t *testing.T) {
	pool, mock, faults := livepooltest.Mock(t)
	for _, atCommit := range []bool{false, true} {
		mock.ExpectBegin()
		mock.ExpectExec("INSERT INTO t").WillReturnResult(one)
		mock.ExpectRollback()
		mock.ExpectBegin()
		mock.ExpectExec("INSERT INTO t").WillReturnResult(one)
		mock.ExpectCommit()
		runs := 0
		if err := pool.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			if err := insert(&runs, 1)(ctx, s); err != nil || runs > 1 {
				return err
			}
			faults.GoAway()
			if atCommit {
				return nil
			}
			_, err := s.ExecContext(ctx, "DO 1")
			return err
		}); err != nil || runs != 2 {
			t.Errorf("at COMMIT %t: got %v, %d runs", atCommit, err, runs)
		}
	}
	faults.GoAway() // idle ones
	mock.ExpectExec("DO 1").WillReturnResult(one)
	if _, err := pool.ExecContext(t.Context(), "DO 1"); err != nil {
		t.Error(err)
	}
}

func TestMockSlowAndBlackHole(t *testing.T) {
	pool, mock, faults := livepooltest.Mock(t)
	soon := func(f func()) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		f()
		if _, err := pool.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		faults.Restore()
	}
	soon(func() { faults.Slow(time.Hour) })
	soon(faults.BlackHole)

	mock.ExpectExec("DO 2").WillReturnResult(one)
	faults.BlackHole()
	done := make(chan error)
	go func() {
		_, err := pool.ExecContext(context.Background(), "DO 2")
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("in a black hole: %v", err)
	case <-time.After(50 * time.Millisecond):
		faults.Restore()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// An expectation that is not met fails the test without its asking.
func TestMockChecksExpectations(t *testing.T) {
	said := failure(t, func(t testing.TB) {
		_, mock, _ := livepooltest.Mock(t)
		mock.ExpectBegin()
	})
	if said == "" {
		t.Error("nothing was said")
	}
}
