package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slowly is a database whose pings take until a test lets them end.
type slowly struct {
	pinging chan struct{}
	finish  chan struct{}
	open    atomic.Int64
}

type slowConn struct{ db *slowly }

func (s *slowly) Connect(context.Context) (driver.Conn, error) {
	s.open.Add(1)
	return &slowConn{s}, nil
}
func (s *slowly) Driver() driver.Driver { return nil }

func (c *slowConn) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("slowly: no statements")
}
func (c *slowConn) Begin() (driver.Tx, error) { return nil, errors.New("slowly: no transactions") }
func (c *slowConn) Close() error              { c.db.open.Add(-1); return nil }
func (c *slowConn) Ping(context.Context) error {
	c.db.pinging <- struct{}{}
	<-c.db.finish
	return nil
}

// database/sql asks IsValid of a connection that nobody has checked out, too: of
// one that was returned for a waiter who gave up at the same moment. It must not
// end a visit, by which the maintainer and the next caller would meet on the wire.
func TestReturnOfWhatWasNotTakenEndsNoVisit(t *testing.T) {
	db := &slowly{pinging: make(chan struct{}), finish: make(chan struct{})}
	cfg := defaults()
	cfg.KeepAlive = 10 * time.Millisecond
	p, err := openTest(db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	conn, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	<-db.pinging
	c := p.ctr.residents()[0]
	if !c.IsValid() {
		t.Error("a connection that is being pinged is no longer valid")
	}
	var claimed atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { c.claim(t.Context()); claimed.Store(true) })
	time.Sleep(50 * time.Millisecond)
	if claimed.Load() {
		t.Error("the connection was handed out in the middle of a ping")
	}
	close(db.finish)
	wg.Wait()
	if got := c.state.Load(); got != inUse {
		t.Errorf("the state is %d, want in use", got)
	}
	c.state.Store(idle)
}
