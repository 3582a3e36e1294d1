package connector_test

import (
	"context"
	"errors"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// Of a server that does not say what a lock wait timeout ends, the transaction
// counts as ended.
func TestLockWaitOnAServerThatDoesNotSay(t *testing.T) {
	f := &fakedb.DB{OnExec: func(_ context.Context, _ *fakedb.Conn, query string) error {
		if query == "waits" {
			return fakedb.ServerError(1205, "Lock wait timeout exceeded")
		}
		return nil
	}}
	p := labtest.OpenFake(t, f, nil)
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("waits"); !labtest.IsServerError(err, 1205) {
		t.Fatal(err)
	}
	if _, err := tx.Exec("goes on"); !errors.Is(err, livepool.ErrPoisoned) {
		t.Errorf("%v, want ErrPoisoned", err)
	}
	if err := tx.Commit(); !errors.Is(err, livepool.ErrPoisoned) {
		t.Errorf("%v, want ErrPoisoned", err)
	}
}
