package connector_test

// What a statement leaves on its connection.

import (
	"testing"

	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// Statements of another driver are not judged by MySQL's grammar.
func TestOtherDriversStatementsCostNoConnection(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	for _, q := range []string{"PRAGMA foreign_keys = ON", "SET search_path = a", "BEGIN", "CALL p()"} {
		if _, err := p.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Connects.Load(); n != 1 {
		t.Errorf("%d connections were opened, want 1", n)
	}
}
