package connector

import (
	"context"
	"database/sql/driver"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
)

// connectorFunc is a lone that opens as f does.
type connectorFunc struct {
	*exclusiveDB
	f func(ctx context.Context) (driver.Conn, error)
}

func (c connectorFunc) Connect(ctx context.Context) (driver.Conn, error) { return c.f(ctx) }

// Statements of a connection that is offered to those who wait for room are closed on it.
func TestHandedOverConnectionHasNoStatements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &exclusiveDB{}
		var full atomic.Bool
		f := connectorFunc{l, func(ctx context.Context) (driver.Conn, error) {
			if full.Load() {
				return nil, &mysql.MySQLError{Number: 1040, Message: "Too many connections"}
			}
			return l.Connect(ctx)
		}}
		cfg := defaults()
		p, err := openTest(f, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		stmt, err := p.Prepare("DO 1")
		if err != nil {
			t.Fatal(err)
		}
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		full.Store(true)
		errs := make(chan error)
		go func() { _, err := p.Exec("DO 2"); errs <- err }()
		time.Sleep(time.Second)
		opened := p.Stats().Opened
		c.Close()
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if now := p.Stats().Opened; now != opened {
			t.Errorf("%d connections were opened, want the one that was offered taken", now-opened)
		}
		stmt.Close()
		for _, r := range p.ctr.snapshot() {
			if r.link.openStmts != 0 {
				t.Errorf("%d statements are left on the server with nobody to close them", r.link.openStmts)
			}
		}
	})
}
