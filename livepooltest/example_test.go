package livepooltest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/livepooltest"
)

// exampleT stands for the *testing.T of a test: it prints what that would say.
type exampleT struct{ fakeTB }

func (*exampleT) Context() context.Context          { return context.Background() }
func (*exampleT) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (t *exampleT) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	panic("the test ends")
}
func (*exampleT) Logf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

var _ testing.TB = &exampleT{}

// pay is what the examples test.
func pay(ctx context.Context, s *livepool.Session) error {
	_, err := s.ExecContext(ctx, "UPDATE orders SET paid = 1 WHERE id = ?", 7)
	return err
}

// The answer to COMMIT is lost: the work was applied, and the caller cannot know.
func ExampleFaults_FailNextCommit() {
	t := &exampleT{}
	defer t.end()
	pool, mock, faults := livepooltest.Mock(t)
	mock.ExpectBegin()
	mock.ExpectExec("UPDATE orders").WillReturnResult(sqlmock.NewResult(0, 1))
	mock.ExpectCommit()
	faults.FailNextCommit(livepooltest.AfterApplied)
	err := pool.WithSession(t.Context(), pay)
	fmt.Println(errors.Is(err, livepool.ErrCommitUnknown))
	// Output: true
}

// After a deadlock the unit is run again.
func ExampleFaults_NextStatement() {
	t := &exampleT{}
	defer t.end()
	pool, mock, faults := livepooltest.Mock(t)
	mock.ExpectBegin() // the statement does not come
	mock.ExpectRollback()
	mock.ExpectBegin()
	mock.ExpectExec("UPDATE orders").WillReturnResult(sqlmock.NewResult(0, 1))
	mock.ExpectCommit()
	faults.NextStatement("UPDATE orders", livepooltest.Deadlock)
	fmt.Println(pool.WithSession(t.Context(), pay))
	// Output: <nil>
}

// All connections are lost while they are idle; nobody notices.
func ExampleFaults_GoAway() {
	t := &exampleT{}
	defer t.end()
	pool, mock, faults := livepooltest.Mock(t)
	for range 2 {
		mock.ExpectBegin()
		mock.ExpectExec("UPDATE orders").WillReturnResult(sqlmock.NewResult(0, 1))
		mock.ExpectCommit()
	}
	fmt.Println(pool.WithSession(t.Context(), pay))
	faults.GoAway()
	fmt.Println(pool.WithSession(t.Context(), pay))
	// Output:
	// <nil>
	// <nil>
}

// A function that sends a mail sends two when it is run twice.
func ExampleTwice() {
	t := &exampleT{}
	defer t.end()
	pool, mock, _ := livepooltest.Mock(t)
	mock.ExpectBegin()
	mock.ExpectExec("UPDATE orders").WillReturnResult(sqlmock.NewResult(0, 1))
	mock.ExpectRollback()
	mock.ExpectBegin()
	mock.ExpectExec("UPDATE orders").WillReturnResult(sqlmock.NewResult(0, 1))
	mock.ExpectCommit()

	mails := 0
	livepooltest.Twice(t, pool, func(ctx context.Context, s *livepool.Session) error {
		mails++
		return pay(ctx, s)
	}, livepooltest.Effect("mails sent", func() any { return mails }))
	// Output:
	// livepooltest: Twice: mails sent: not the same after two runs, the first of them rolled back, as after one:
	// 	only after one run: 1
	// 	only after two runs: 2
	// do it in Session.AfterCommit, which is called once, or so that it may be repeated.
}
