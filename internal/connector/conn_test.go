package connector_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// invalidConn is a connection that is not to be kept, which is all that
// driver.Validator says.
type invalidConn struct{ *fakedb.Conn }

func (c invalidConn) IsValid() bool { return false }

type invalidConnector struct{ *fakedb.DB }

func (c invalidConnector) Connect(ctx context.Context) (driver.Conn, error) {
	dc, err := c.DB.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return invalidConn{dc.(*fakedb.Conn)}, nil
}

func TestValidatorOnlyDiscardsOnReturn(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.Open(t, invalidConnector{f}, nil)
	f.OnExec = func(_ context.Context, _ *fakedb.Conn, query string) error {
		if query == "DO fails()" {
			return errors.New("the driver's own")
		}
		return nil
	}
	for name, do := range map[string]func(exec func(query string) (sql.Result, error)) error{
		"ordinary": func(exec func(string) (sql.Result, error)) error { _, err := exec("DO 1"); return err },
		"an error": func(exec func(string) (sql.Result, error)) error {
			if _, err := exec("DO fails()"); err == nil {
				return errors.New("no error")
			}
			_, err := exec("DO 1")
			return err
		},
	} {
		tx, err := p.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(do(func(q string) (sql.Result, error) { return tx.Exec(q) }), tx.Commit()); err != nil {
			t.Errorf("%s, plain: %v", name, err)
		}
		if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			return do(func(q string) (sql.Result, error) { return s.ExecContext(ctx, q) })
		}); err != nil {
			t.Errorf("%s, unit: %v", name, err)
		}
	}
	if n := f.OpenConns(); n != 0 {
		t.Errorf("%d connections were kept", n)
	}
}

// What the driver says of a COMMIT that it has not sent.
func TestCommitThatWasNotSentIsNotUnknown(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	tries := 0
	f.OnCommit = func(*fakedb.Conn) error {
		if tries++; tries == 1 {
			return driver.ErrBadConn
		}
		return nil
	}
	runs := 0
	if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error { runs++; return labtest.Work(ctx, s) }); err != nil || runs != 2 {
		t.Errorf("%v after %d runs, want nil after 2", err, runs)
	}
}

// Of the statements that commit implicitly the error names the first: what came
// after it is not the one to blame.
func TestTheFirstImplicitCommitIsNamed(t *testing.T) {
	f := &fakedb.DB{}
	p := labtest.OpenFake(t, f, nil)
	err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
		for i := range 3 {
			if _, err := s.ExecContext(ctx, fmt.Sprintf("CREATE TABLE t%d (id INT)", i)); err != nil {
				return err
			}
		}
		return errors.New("sold out")
	})
	if err == nil || !strings.Contains(err.Error(), "CREATE TABLE t0") || strings.Contains(err.Error(), "CREATE TABLE t1") {
		t.Errorf("got %v, want the first of them named", err)
	}
}
