package livepool_test

import (
	"context"
	"errors"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

// Whatever has ended a transaction, nothing more runs in it, by whatever way it
// is sent; what has not ended it leaves it alone.
func TestNothingRunsInATransactionThatIsOver(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		over bool
	}{
		{"deadlock", fakedb.ServerError(1213, "Deadlock found"), true},
		{"lost connection", mysql.ErrInvalidConn, true},
		{"COMMIT failed half-way", fakedb.ServerError(1180, "Got error 6 during COMMIT"), true},
		{"Galera node without quorum", fakedb.ServerError(1047, "WSREP has not yet prepared node for application use"), true},
		{"Group Replication rolled back", fakedb.ServerError(3101, "Plugin instructed the server to rollback"), true},
		{"duplicate key", fakedb.ServerError(1062, "Duplicate entry"), false},
		{"syntax", fakedb.ServerError(1064, "You have an error"), false},
		{"read-only server", fakedb.ServerError(1290, readOnlyText), false},
		{"query killed", fakedb.ServerError(1317, "Query execution was interrupted"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakedb.DB{}
			p := openFake(t, f, nil)
			tx, err := p.Begin()
			if err != nil {
				t.Fatal(err)
			}
			prepared, err := tx.Prepare("INSERT INTO t VALUES (?)")
			if err != nil {
				t.Fatal(err)
			}
			f.OnExec = func(context.Context, *fakedb.Conn, string) error { return tt.err }
			if _, err := tx.Exec("UPDATE t SET a = 1"); !errors.Is(err, tt.err) {
				t.Fatalf("got %v", err)
			}
			f.OnExec = nil
			sent := f.Execs.Load()
			_, exec := tx.Exec("INSERT INTO t VALUES (1)")
			_, execPrepared := prepared.Exec(1)
			_, prepare := tx.Prepare("SELECT 1")
			for what, err := range map[string]error{"Exec": exec, "prepared Exec": execPrepared, "Prepare": prepare, "Commit": tx.Commit()} {
				if errors.Is(err, livepool.ErrPoisoned) != tt.over {
					t.Errorf("%s: %v", what, err)
				}
				if tt.over && !errors.Is(err, tt.err) {
					t.Errorf("%s: %v does not say why", what, err)
				}
			}
			if n := f.Execs.Load() - sent; (n == 0) != tt.over {
				t.Errorf("%d statements were sent afterwards", n)
			}
		})
	}
}

// The next transaction on the connection is a new one.
func TestPoisonEndsWithItsTransaction(t *testing.T) {
	f := &fakedb.DB{}
	p := openFake(t, f, nil)
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	f.OnExec = func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1213, "Deadlock found") }
	tx.Exec("UPDATE t SET a = 1")
	f.OnExec = nil
	tx.Rollback()
	if tx, err = p.Begin(); err != nil {
		t.Fatal(err)
	}
	if id := fakedb.ServedBy(t, tx); id != 1 {
		t.Errorf("served by connection %d, want the same", id)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
}

// A goroutine that outlives its unit leaves no transaction behind.
func TestLateGoroutineOfAUnit(t *testing.T) {
	f := &fakedb.DB{}
	p := openFake(t, f, nil)
	for range 200 {
		done := make(chan struct{})
		if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			go func() {
				defer close(done)
				s.ExecContext(ctx, "INSERT INTO t VALUES (1)")
			}()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		<-done
		if n := p.Stats().InUse; n != 0 {
			t.Fatalf("%d connections in use after the unit", n)
		}
	}
}
