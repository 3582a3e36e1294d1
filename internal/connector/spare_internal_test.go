package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slowPingDB is a database whose pings take until a test lets them end.
type slowPingDB struct {
	pinging chan struct{}
	finish  chan struct{}
	open    atomic.Int64
}

type slowPingConn struct{ db *slowPingDB }

func (s *slowPingDB) Connect(context.Context) (driver.Conn, error) {
	s.open.Add(1)
	return &slowPingConn{s}, nil
}
func (s *slowPingDB) Driver() driver.Driver { return nil }

func (c *slowPingConn) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("slowly: no statements")
}
func (c *slowPingConn) Begin() (driver.Tx, error) { return nil, errors.New("slowly: no transactions") }
func (c *slowPingConn) Close() error              { c.db.open.Add(-1); return nil }
func (c *slowPingConn) Ping(context.Context) error {
	c.db.pinging <- struct{}{}
	<-c.db.finish
	return nil
}

// database/sql also calls IsValid on a connection that nobody has checked out: one
// that is returned for a waiter that gave up at the same moment. That must not end a
// reservation, or the maintainer and the next caller would both use the wire.
func TestReturnOfWhatWasNotTakenEndsNoReservation(t *testing.T) {
	db := &slowPingDB{pinging: make(chan struct{}), finish: make(chan struct{})}
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
	c := p.ctr.snapshot()[0]
	if !c.IsValid() {
		t.Error("a connection that is being pinged is no longer valid")
	}
	var claimed atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { c.acquire(t.Context()); claimed.Store(true) })
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
