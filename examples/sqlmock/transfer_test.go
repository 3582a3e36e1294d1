package transfer

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/livepooltest"
)

var (
	oneRow = sqlmock.NewResult(0, 1)
	noRow  = sqlmock.NewResult(0, 0)
)

// With livepooltest. Faults are said by name, and what the mock expects is checked at the end.

func TestTransfer(t *testing.T) {
	pool, mock, _ := livepooltest.Mock(t)
	expectTransfer(mock)
	if err := Transfer(t.Context(), pool, 17, 1, 2, 500); err != nil {
		t.Error(err)
	}
}

func TestTransferOfTooMuchIsUndone(t *testing.T) {
	pool, mock, _ := livepooltest.Mock(t)
	expectKey(mock)
	mock.ExpectExec("cents = cents - ").WithArgs(500, 1, 500).WillReturnResult(noRow)
	mock.ExpectRollback()
	if err := Transfer(t.Context(), pool, 17, 1, 2, 500); !errors.Is(err, ErrShort) {
		t.Errorf("got %v", err)
	}
}

func TestTransferAfterADeadlock(t *testing.T) {
	pool, mock, faults := livepooltest.Mock(t)
	faults.NextStatement("cents = cents + ", livepooltest.Deadlock) // the mock does not see the statement
	expectKey(mock)
	mock.ExpectExec("cents = cents - ").WithArgs(500, 1, 500).WillReturnResult(oneRow)
	mock.ExpectRollback()
	expectTransfer(mock)
	if err := Transfer(t.Context(), pool, 17, 1, 2, 500); err != nil {
		t.Error(err)
	}
}

// The answer to COMMIT is lost. The key is found to be there, and the money is not moved again.
func TestTransferWhoseCommitIsNotAnswered(t *testing.T) {
	pool, mock, faults := livepooltest.Mock(t)
	faults.FailNextCommit(livepooltest.AfterApplied)
	expectTransfer(mock)
	mock.ExpectBegin()
	mock.ExpectExec("INSERT INTO livepool_commits").WillReturnError(&mysql.MySQLError{Number: 1062, Message: "Duplicate entry"})
	mock.ExpectRollback()
	if err := Transfer(t.Context(), pool, 17, 1, 2, 500); err != nil {
		t.Error(err)
	}
}

// With livepool.OpenConnector alone, for who wants no other module: any driver does.

type mockConnector struct {
	driver driver.Driver
	name   string
}

func (c mockConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.name) }
func (c mockConnector) Driver() driver.Driver                        { return c.driver }

func TestTransferAfterADeadlockByHand(t *testing.T) {
	db, mock, err := sqlmock.NewWithDSN(t.Name()) // sqlmock takes each name once
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	pool, err := livepool.OpenConnector(mockConnector{db.Driver(), t.Name()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	expectKey(mock)
	mock.ExpectExec("cents = cents - ").WillReturnError(&mysql.MySQLError{Number: 1213, Message: "Deadlock found"})
	mock.ExpectRollback()
	expectTransfer(mock)
	if err := Transfer(t.Context(), pool, 17, 1, 2, 500); err != nil {
		t.Error(err)
	}
	if err := mock.ExpectationsWereMet(); err != nil {
		t.Error(err)
	}
}

// expectKey expects how each attempt begins.
func expectKey(mock sqlmock.Sqlmock) {
	mock.ExpectBegin()
	mock.ExpectExec("INSERT INTO livepool_commits").WillReturnResult(oneRow)
}

// expectTransfer expects an attempt that is committed.
func expectTransfer(mock sqlmock.Sqlmock) {
	expectKey(mock)
	mock.ExpectExec("cents = cents - ").WithArgs(500, 1, 500).WillReturnResult(oneRow)
	mock.ExpectExec(`cents = cents \+ `).WithArgs(500, 2).WillReturnResult(oneRow)
	mock.ExpectCommit()
}
